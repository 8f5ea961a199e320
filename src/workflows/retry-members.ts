/**
 * Starting the machines of a group that did not start with the others: on the same disks, at the point that the others run on.
 *
 * Invariants: the others are not touched; nothing is undone, for every step only finds or makes what the failover would have made; a
 * machine that still does not start fails the operation, and those that did start stay.
 */
import { isCancellation } from "@temporalio/workflow";
import { MOVE_STEPS } from "#model/move-steps.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOfOperation, faultOf } from "./failures.ts";
import type { OperationState, ProtectedMachine } from "./messages.ts";
import { reporter, reportEnd, type Reporter } from "./operation-view.ts";
import { awaitAnswers, createMachines, startMachines, type BootPlan } from "./replica-machines.ts";
import { runOperation, type Runbook } from "./runbook.ts";

const ANSWER_MS = 180_000;

export interface RetryInput {
  readonly groupId: string;
  readonly groupName: string;
  readonly operationId: string;
  readonly workflowId: string;
  readonly by: string;
  readonly targetSite: string;
  readonly replica: { readonly operationId: string; readonly pointId: string };
  /** Those that are missing. */
  readonly machines: readonly ProtectedMachine[];
  readonly answerMs?: number;
}

export async function retryMembers(input: RetryInput): Promise<OperationState> {
  const { groupId, operationId, workflowId, by } = input;
  const names = input.machines.map(({ name }) => name).join(", ");
  const report = reporter(groupId, `${input.groupName}: start ${names} at ${input.targetSite}`);
  const outcome = { answering: true };
  const { operation } = await runOperation(
    { operationId, kind: "retry", workflowId, groupId, by },
    MOVE_STEPS["retry-member"],
    report,
    async (run) => {
      outcome.answering = await runRetry(input, run, report);
    },
  );
  await reportEnd(groupId, { operation, retry: outcome });
  if (operation.state !== "done") throw failureOfOperation(operation);
  return operation;
}

/** Whether they answer. */
async function runRetry(input: RetryInput, run: Runbook, report: Reporter): Promise<boolean> {
  const { groupId, targetSite, replica } = input;
  const plan: BootPlan = {
    site: targetSite,
    operationId: replica.operationId,
    machines: input.machines,
    mode: "user",
    priority: PRIORITY.failover,
  };
  const { disks } = await run.step(
    "open disks",
    async () =>
      await act(
        "openExport",
        { site: targetSite, groupId, operationId: replica.operationId, point: replica.pointId, mode: "read-write" },
        { at: targetSite, summary: "find the disks of the others", priority: PRIORITY.failover },
      ),
  );
  const created = await run.step("create machines", async () => await createMachines(plan, disks));
  const booted = await run.step("start machines", async (note) => {
    await report.told();
    const result = await startMachines(plan, created, disks);
    run.set({ machines: result.machines });
    const [first] = result.failed;
    if (first !== undefined) {
      note(`started: ${result.machines.map(({ name }) => name).join(", ") || "none"}`);
      throw first.fault;
    }
    return result;
  });
  return await run.step(
    "verify",
    async (note) => {
      try {
        const seen = await awaitAnswers(plan, booted.machines, input.answerMs ?? ANSWER_MS);
        note(seen.detail);
        return seen.all;
      } catch (error) {
        if (isCancellation(error)) throw error;
        note(`not known: ${faultOf(error).message}`);
        return false;
      }
    },
    { waitsFor: "the machines to answer", budgetMs: input.answerMs ?? ANSWER_MS },
  );
}
