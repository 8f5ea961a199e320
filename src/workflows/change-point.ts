/**
 * Change point: the group goes on at the target, from another point. What it wrote since the failover becomes a kept branch.
 *
 * Invariants:
 * - the point is chosen before anything is stopped: one that does not exist changes nothing;
 * - the machines are off and their last writes in the store before the new branch begins; the group's epoch stays, for its site does;
 * - a failure before the first machine started is undone: the same machines run on the same disks again. From the first start on,
 *   nothing is undone;
 * - the machines and the overlay of the old branch are removed only once the new ones run.
 *
 * Source: docs/orchestration.md, "Change point"; the moves.
 */
import { CancellationScope, isCancellation } from "@temporalio/workflow";
import { LEAVING, MOVE_STEPS } from "#model/move-steps.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOfOperation, faultOf } from "./failures.ts";
import { startGuard, type Guard } from "./guard.ts";
import { leaveReplica, removeReplica, type LeaveInput } from "./leave-replica.ts";
import type { OperationState, ProtectedMachine } from "./messages.ts";
import { reporter, reportEnd, type Reporter } from "./operation-view.ts";
import { awaitAnswers, createMachines, startMachines, type BootPlan } from "./replica-machines.ts";
import { runOperation, type Runbook } from "./runbook.ts";
import type { ChangePointOutcome } from "./signals.ts";

const ANSWER_MS = 180_000;

export interface ChangePointInput extends LeaveInput {
  readonly point: string;
  /** What the source wrote: `latest` and times are looked up along this branch. */
  readonly sourceBranch: string;
  readonly machines: readonly ProtectedMachine[];
  readonly answerMs?: number;
}

type ChangeSoFar = { -readonly [Key in keyof ChangePointOutcome]: ChangePointOutcome[Key] };

export async function changePoint(input: ChangePointInput): Promise<OperationState> {
  const { groupId, operationId, workflowId, by } = input;
  const outcome: ChangeSoFar = { changed: false, stopped: false, partial: false, answering: true };
  const report = reporter(groupId, `${input.groupName}: change point to ${input.point}`);
  let guard: Guard | undefined;
  const { operation, notUndone } = await runOperation(
    { operationId, kind: "changePoint", workflowId, groupId, by },
    MOVE_STEPS["change-point"],
    report,
    async (run) => await runChange(input, run, outcome, { report, guarded: (started) => (guard = started) }),
  );
  // As in a failover: what could not be removed is left to the janitor.
  if (!notUndone.includes("open disks")) await guard?.release();
  outcome.stopped = notUndone.some((step) => LEAVING.some((one) => one === step));
  await reportEnd(groupId, { operation, changePoint: outcome });
  if (operation.state !== "done") throw failureOfOperation(operation);
  return operation;
}

async function runChange(
  input: ChangePointInput,
  run: Runbook,
  outcome: ChangeSoFar,
  { report, guarded }: { readonly report: Reporter; readonly guarded: (guard: Guard) => void },
): Promise<void> {
  const { groupId, groupName, operationId, targetSite } = input;
  const at = { at: targetSite, priority: PRIORITY.failover };
  const plan: BootPlan = {
    site: targetSite,
    operationId,
    machines: input.machines,
    mode: "user",
    priority: PRIORITY.failover,
  };
  try {
    const point = await run.step("choose point", async (note) => {
      const chosen = await act(
        "choosePoint",
        { site: targetSite, groupId, selector: input.point, branch: input.sourceBranch },
        { ...at, summary: `choose point ${input.point}`, budgetMs: 30_000 },
      );
      note(`barrier ${chosen.barrier}, ${chosen.consistency}-consistent`);
      run.set({ pointId: chosen.id, pointCutAtMs: chosen.cutAtMs });
      return chosen;
    });
    const guard = await run.step(
      "guard",
      async () => await startGuard({ groupId, groupName, site: targetSite, operationId }),
    );
    guarded(guard);
    await leaveReplica(input, run);

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
        { site: targetSite, groupId, operationId, point: point.id, mode: "read-write", reason: "changed-point" },
        { ...at, summary: "open the disks read-write, at the other point" },
      );
      note(`${status.disks.length} disks${status.branch === undefined ? "" : `, branch ${status.branch}`}`);
      return status;
    });
    if (opened.branch !== undefined) outcome.branch = opened.branch;
    const created = await run.step("create machines", async () => await createMachines(plan, opened.disks));
    // Should this workflow be ended from outside while they start, the group knows which machines may run.
    run.set({
      machines: created.map(({ machine }) => ({
        name: machine.name,
        machineId: machine.id,
        site: plan.site,
        forwards: machine.forwards,
      })),
    });
    // From the first start on the disks may hold writes that exist nowhere else; see janitor.ts.
    await guard.release();
    const booted = await run.step("start machines", async (note) => {
      await report.told();
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
    outcome.changed = true;
    outcome.partial = booted.failed.length > 0;
    run.set({ machines: booted.machines });
    await CancellationScope.nonCancellable(
      async () => await run.step("remove old machines", async (note) => await removeReplica(input, note)),
    );
    await run.step(
      "verify",
      async (note) => {
        try {
          const seen = await awaitAnswers(plan, booted.machines, input.answerMs ?? ANSWER_MS);
          outcome.answering = seen.all;
          note(seen.detail);
        } catch (error) {
          if (isCancellation(error)) throw error;
          // As in a failover: a finding, not a failure.
          outcome.answering = false;
          note(`not known: ${faultOf(error).message}`);
        }
      },
      { waitsFor: "the machines to answer", budgetMs: input.answerMs ?? ANSWER_MS },
    );
  } catch (error) {
    // Cancelled while waiting for answers: the machines run, the change stands.
    if (!(outcome.changed && isCancellation(error))) throw error;
    outcome.answering = false;
  }
}
