/**
 * A drill: the newest version of a plan, resolved now, in test mode; begun by a Schedule. The run itself, its clean-up and its record are the plan's
 * (recovery-plan.ts). A drill that cannot even begin leaves a record too: that is what it found.
 */
import { executeChild, ParentClosePolicy, workflowInfo } from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import type { ResolvedPlan } from "#model/plan/resolved-plan.ts";
import { describeWork } from "#model/plan/resolved-plan.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOf } from "./failures.ts";
import { CONTROL_QUEUE, type OperationState } from "./messages.ts";
import { planSummary, planWorkflowId, type DrillStart } from "./plan-messages.ts";
import { recoveryPlan } from "./recovery-plan.ts";
import { now } from "./workflow-time.ts";

export async function drDrill(start: DrillStart): Promise<OperationState> {
  const { plan, site, by } = start;
  const operationId = `${plan}.drill.${workflowInfo().runId.replaceAll("-", "").slice(0, 16)}`;
  const startedAtMs = now();
  const at = { at: site, priority: PRIORITY.test };
  const resolved = await act("resolveDrill", { plan }, { ...at, summary: `resolve plan ${plan}` });
  if (resolved.blockers.length > 0) {
    const fault = blocked(resolved);
    await act(
      "recordRun",
      { site, report: reportOf(resolved, { operationId, by, startedAtMs, fault }) },
      { ...at, summary: "keep what blocked the drill" },
    );
    throw failureOf(fault);
  }
  return await executeChild(recoveryPlan, {
    workflowId: planWorkflowId(plan, operationId),
    args: [{ operationId, by, plan: resolved, site, drill: true }],
    taskQueue: CONTROL_QUEUE,
    // Ended from outside, the run takes away what it made.
    parentClosePolicy: ParentClosePolicy.REQUEST_CANCEL,
    staticSummary: `drill: ${planSummary(resolved)}`,
  });
}

function blocked({ plan, blockers }: ResolvedPlan): Fault {
  return new Fault(
    "REFUSED",
    `The drill of "${plan}" cannot begin: ${blockers.map(({ step, message }) => `${step}: ${message}`).join("; ")}`,
    {
      hint: blockers[0]?.hint ?? `See \`leeward plan run ${plan} --mode test --dry-run\``,
    },
  );
}

function reportOf(
  resolved: ResolvedPlan,
  {
    operationId,
    by,
    startedAtMs,
    fault,
  }: { readonly operationId: string; readonly by: string; readonly startedAtMs: number; readonly fault: Fault },
) {
  const { plan, version, mode, direction, objectives, predicted, steps, leftOut, blockers } = resolved;
  return {
    plan,
    planVersion: version,
    mode,
    direction,
    operationId,
    by,
    drill: true,
    startedAtMs,
    endedAtMs: now(),
    state: "failed" as const,
    fault: { code: fault.code, message: fault.message },
    objectives,
    predicted,
    steps: steps.map(({ id, work, budgetMs }) => ({
      id,
      what: describeWork(work),
      state: "skipped" as const,
      attempts: 0,
      budgetMs,
      ...(blockers.some(({ step }) => step === id)
        ? {
            evidence: blockers
              .filter(({ step }) => step === id)
              .map(({ message }) => message)
              .join("\n"),
          }
        : {}),
    })),
    leftOut,
    decisions: [],
    groups: [],
    left: [],
  };
}
