/**
 * Failover: fence → point → disks → machines → answers. Read it as the runbook it replaces.
 *
 * Invariants:
 * - whether the source is lost was decided before step 1; it never asks in the middle;
 * - no point is chosen before every disk is fenced; the fence cannot be cancelled;
 * - every call to the source side has a bound, and none of them can hold up an unplanned failover for more than a minute;
 * - planned: the final cut is asked for after the machines are off, so its barrier holds all they ever wrote;
 * - a failure before the first machine started is undone: the replica goes back to a source that is not lost, and a source that we
 *   shut down is powered on again. From the first start on, nothing is undone.
 *
 * Source: docs/orchestration.md, "Failover"; the moves.
 */
import { CancellationScope, isCancellation } from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import { duration } from "#model/health.ts";
import { MOVE_STEPS } from "#model/move-steps.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import { act, PRIORITY } from "./act.ts";
import type { FailoverInput, OutcomeSoFar } from "./failover-input.ts";
import { emptySource, preCheck, stopSource } from "./failover-source.ts";
import { failureOfOperation, faultOf } from "./failures.ts";
import { startGuard, type Guard } from "./guard.ts";
import type { OperationState } from "./messages.ts";
import { reporter, reportEnd } from "./operation-view.ts";
import { awaitAnswers, createMachines, startMachines, type BootPlan } from "./replica-machines.ts";
import { runOperation, type Runbook } from "./runbook.ts";
import { now, timestamp } from "./workflow-time.ts";
import type { OperationEnd } from "./signals.ts";

const FENCE_MS = 600_000;
const ANSWER_MS = 180_000;

export async function failover(input: FailoverInput): Promise<OperationState> {
  const headline = `${input.groupName}: ${input.mode} failover ${input.sourceSite} → ${input.targetSite}`;
  const outcome: OutcomeSoFar = {
    booted: false,
    sourceFenced: false,
    partial: false,
    answering: true,
    sourceMayRun: false,
  };
  let guard: Guard | undefined;
  const { operation, notUndone } = await runOperation(
    {
      operationId: input.operationId,
      kind: "failover",
      workflowId: input.workflowId,
      groupId: input.groupId,
      by: input.by,
    },
    MOVE_STEPS[input.mode === "planned" ? "planned-failover" : "failover"],
    reporter(input.groupId, headline),
    async (run) => await runFailover(input, run, outcome, (started) => (guard = started)),
  );
  // Removed by ourselves: nothing is left for the janitor. Otherwise it goes on trying.
  if (!notUndone.includes("open disks")) await guard?.release();
  // A fence that could not be given back, or whose end is not known, shuts the source out: say so, and let "resume" repair it.
  if (!outcome.booted && notUndone.includes("fence")) outcome.sourceFenced = true;
  const end: OperationEnd = { operation, failover: outcome };
  await reportEnd(input.groupId, end);
  if (operation.state !== "done") throw failureOfOperation(operation);
  return operation;
}

async function runFailover(
  input: FailoverInput,
  run: Runbook,
  outcome: OutcomeSoFar,
  guarded: (guard: Guard) => void,
): Promise<void> {
  const { groupId, operationId, targetSite } = input;
  const plan: BootPlan = {
    site: targetSite,
    operationId,
    machines: input.machines,
    mode: "user",
    priority: PRIORITY.failover,
  };
  const at = { at: targetSite, priority: PRIORITY.failover };

  await run.step("pre-check", async (note) => note(await preCheck(input)), { waitsFor: "an answer of the source" });
  const guard = await run.step(
    "guard",
    async () => await startGuard({ groupId, groupName: input.groupName, site: targetSite, operationId }),
  );
  guarded(guard);
  try {
    const atLeast = input.mode === "planned" ? await emptySource(input, run) : undefined;
    // Unplanned: beside each other. The source comes first, so that its machines are powered on after the fence was given back.
    const stopping = input.mode === "planned" ? undefined : stopSource(input, run, outcome);
    // A cancellation may end it while the fence, which cannot be cancelled, still runs; it is awaited there.
    stopping?.catch(() => undefined);
    const fenced = await fence(input, run, outcome, stopping);

    const point = await run.step("choose point", async (note) => {
      const chosen = await act(
        "choosePoint",
        { site: targetSite, groupId, selector: input.point, branch: input.stopOrder.branch },
        { ...at, summary: `choose point ${input.point}`, budgetMs: 30_000 },
      );
      if (atLeast !== undefined && chosen.barrier < atLeast) {
        throw new Fault(
          "OPERATION_FAILED",
          `The newest point is barrier ${chosen.barrier}, expected the final cut ${atLeast}`,
          { hint: "Look at the master target's log; the source is powered on again" },
        );
      }
      const lost = input.mode === "planned" ? "nothing is lost" : "what was written after that cut is lost";
      note(
        `cut at ${timestamp(chosen.cutAtMs)}, ${duration(now() - chosen.cutAtMs)} ago, ${chosen.consistency}-consistent, barrier ${chosen.barrier} of ${fenced.newest ?? "none"}; ${lost}`,
      );
      run.set({ pointId: chosen.id, pointCutAtMs: chosen.cutAtMs });
      return chosen;
    });
    outcome.point = point;

    run.undo(
      "open disks",
      async () =>
        void (await act(
          "removeOperation",
          { site: targetSite, operationId, discard: true },
          { ...at, summary: "undo: remove machines and disks" },
        )),
    );
    const opened = await run.step("open disks", async (note) => {
      const status = await act(
        "openExport",
        { site: targetSite, groupId, operationId, point: point.id, mode: "read-write" },
        { ...at, summary: "open the disks read-write" },
      );
      note(`${status.disks.length} disks${status.branch === undefined ? "" : `, branch ${status.branch}`}`);
      return status;
    });
    const created = await run.step("create machines", async () => await createMachines(plan, opened.disks));

    // From here on the disks may hold writes that exist nowhere else. A janitor must not touch them; see janitor.ts.
    await guard.release();
    const booted = await run.step("start machines", async (note) => {
      const result = await startMachines(plan, created, opened.disks);
      const [first] = result.failed;
      if (result.machines.length === 0 && first !== undefined) throw first.fault;
      if (first !== undefined)
        note(
          `not started: ${result.failed.map((one) => `${one.name} (${one.fault.code}: ${one.fault.message})`).join("; ")}`,
        );
      return result;
    });
    run.keep();
    outcome.booted = true;
    outcome.partial = booted.failed.length > 0;
    if (opened.branch !== undefined) outcome.branch = opened.branch;
    run.set({ machines: booted.machines });

    await run.step(
      "verify",
      async (note) => {
        try {
          const seen = await awaitAnswers(plan, booted.machines, input.answerMs ?? ANSWER_MS);
          outcome.answering = seen.all;
          note(seen.detail);
        } catch (error) {
          // The machines run: not knowing whether they answer is a finding of the operation, not its failure.
          if (isCancellation(error)) throw error;
          outcome.answering = false;
          note(`not known: ${faultOf(error).message}`);
        }
      },
      { waitsFor: "the machines to answer", budgetMs: input.answerMs ?? ANSWER_MS },
    );
  } catch (error) {
    // Cancelled while waiting for answers: the machines run, the failover stands.
    if (!(outcome.booted && isCancellation(error))) throw error;
    outcome.answering = false;
  }
}
/** Also waits for `stopping`: what is tried at the source ends before anything is built on the fence, or undone. */
async function fence(
  input: FailoverInput,
  run: Runbook,
  outcome: OutcomeSoFar,
  stopping: Promise<void> | undefined,
): Promise<{ readonly newest: number | undefined }> {
  const { groupId, operationId, sourceSite, targetSite } = input;
  const at = { at: targetSite, priority: PRIORITY.failover };
  if (input.sourceLost) outcome.sourceFenced = true;
  else {
    run.undo("fence", async () => {
      const back = await act(
        "fence",
        {
          site: targetSite,
          groupId,
          operationId: `${operationId}-undo`,
          activeSite: sourceSite,
          resume: input.stopOrder.branch,
        },
        { ...at, summary: `undo: give the replica back to ${sourceSite}` },
      );
      outcome.epoch = back.groupEpoch;
    });
  }
  try {
    return await run.step(
      "fence",
      async (note) => {
        const fenced = await CancellationScope.nonCancellable(
          async () =>
            await act(
              "fence",
              { site: targetSite, groupId, operationId, activeSite: targetSite, resume: input.stopOrder.branch },
              { ...at, summary: `fence: from now on only ${targetSite} writes` },
            ),
        );
        outcome.epoch = fenced.groupEpoch;
        const newest: RecoveryPoint | undefined = fenced.newestPoint;
        note(`epoch ${fenced.groupEpoch}, newest barrier ${newest?.barrier ?? "none"}`);
        return { newest: newest?.barrier };
      },
      { waitsFor: "every disk to be fenced", budgetMs: FENCE_MS },
    );
  } finally {
    await stopping;
  }
}
