/**
 * Undo: the replica goes back to its source, and what was written at the target stays as a branch.
 *
 * Invariants:
 * - the source answers before anything is touched; a source that is gone cannot be given anything;
 * - the replica machines are proven off and their last writes are in the store before the source may write again: at no moment do two
 *   sites run the group;
 * - until "give back" begins everything is undone by itself: the same machines run on the same disks again. From then on there is only
 *   forward: whether the store did what it was asked cannot be told from a call that failed, so the group must ask again ("undo" once more);
 * - nothing is deleted but the local overlay, whose every block is in the branch by then.
 *
 * The source's replication is not ordered here: the group sends its order anew, under the epoch and on the branch that hold by then. A
 * source that kept running has tracked what it wrote since; one that was started anew compares.
 *
 * Source: docs/orchestration.md, "Undo"; the moves.
 */
import { CancellationScope } from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import { MOVE_STEPS } from "#model/move-steps.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOfOperation, faultOf } from "./failures.ts";
import { leaveReplica, removeReplica, type LeaveInput } from "./leave-replica.ts";
import type { OperationState } from "./messages.ts";
import { reporter, reportEnd, type Reporter } from "./operation-view.ts";
import { runOperation, type Runbook } from "./runbook.ts";
import type { UndoOutcome } from "./signals.ts";

export const SOURCE_ANSWER_MS = 8_000;
const FENCE_MS = 600_000;

export interface UndoInput extends LeaveInput {
  readonly sourceSite: string;
  /** The branch that the source wrote and goes on with. */
  readonly sourceBranch: string;
  /** As they were protected: found at the source by the taps that their disks are attached to, else by name. */
  readonly machines: readonly {
    readonly name: string;
    readonly machineId?: string;
    readonly tapUrls: readonly string[];
  }[];
}

type UndoSoFar = { -readonly [Key in keyof UndoOutcome]: UndoOutcome[Key] };

export async function undo(input: UndoInput): Promise<OperationState> {
  const { groupId, operationId, workflowId, by, sourceSite, targetSite } = input;
  const outcome: UndoSoFar = { undone: false, unknown: false, stopped: false };
  const report = reporter(groupId, `${input.groupName}: undo, ${targetSite} → ${sourceSite}`);
  const { operation, notUndone } = await runOperation(
    { operationId, kind: "undo", workflowId, groupId, by },
    MOVE_STEPS.undo,
    report,
    async (run) => await runUndo(input, run, outcome, report),
  );
  outcome.stopped = notUndone.length > 0;
  await reportEnd(groupId, { operation, undo: outcome });
  if (operation.state !== "done") throw failureOfOperation(operation);
  return operation;
}

async function runUndo(input: UndoInput, run: Runbook, outcome: UndoSoFar, report: Reporter): Promise<void> {
  const { groupId, operationId, sourceSite, targetSite } = input;
  const at = { at: targetSite, priority: PRIORITY.failover };
  await run.step(
    "pre-check",
    async (note) => {
      await assertSourceAnswers(input);
      note(`the process server of "${sourceSite}" answers`);
    },
    { waitsFor: "an answer of the source" },
  );
  await leaveReplica(input, run);

  // No way back from here, and no stopping half-way either.
  await CancellationScope.nonCancellable(async () => {
    run.keep();
    outcome.unknown = true;
    await run.step(
      "give back",
      async (note) => {
        // Ended from outside after this, nobody may think that the replica is still ours.
        await report.told();
        const back = await act(
          "fence",
          { site: targetSite, groupId, operationId, activeSite: sourceSite, resume: input.sourceBranch },
          { ...at, summary: `give the replica back to ${sourceSite}, branch ${input.sourceBranch}` },
        );
        outcome.epoch = back.groupEpoch;
        note(`epoch ${back.groupEpoch}, branch ${input.sourceBranch}`);
      },
      { waitsFor: "every disk to be given back", budgetMs: FENCE_MS },
    );
    outcome.undone = true;
    outcome.unknown = false;
    await run.step("remove replica", async (note) => await removeReplica(input, note));
    await run.step("start source", async (note) => note(await startSource(input)));
  });
}

/** Throws REFUSED: nothing has happened yet. */
export async function assertSourceAnswers(input: {
  readonly groupId: string;
  readonly groupName: string;
  readonly sourceSite: string;
  readonly targetSite: string;
}): Promise<void> {
  const seen = await act(
    "sourceState",
    { site: input.sourceSite, groupId: input.groupId, timeoutMs: SOURCE_ANSWER_MS },
    { at: input.targetSite, summary: `is ${input.sourceSite} reachable?`, priority: PRIORITY.failover, attempts: 2 },
  );
  if (seen.reachable) return;
  throw new Fault(
    "REFUSED",
    `Group "${input.groupName}" cannot be given back: the process server of its source site "${input.sourceSite}" does not answer (${seen.fault?.code ?? ""}: ${seen.fault?.message ?? ""})`,
    {
      hint: `Nothing was changed. Connect the process server of "${input.sourceSite}", then repeat the command; if that site is lost for good, type "leeward commit ${input.groupName}"`,
    },
  );
}

/** The group's machines run at the source from now on. One that does not start there is noted: the replica is given back all the same. */
async function startSource({ sourceSite, targetSite, machines }: UndoInput): Promise<string> {
  const at = { at: targetSite, priority: PRIORITY.failover };
  const names = machines.map(({ name }) => name);
  try {
    const found = await act(
      "findMachines",
      {
        site: sourceSite,
        names,
        tapUrls: machines.map(({ tapUrls }) => tapUrls),
        machineIds: machines.map(({ machineId = "" }) => machineId),
      },
      { ...at, summary: `find ${names.join(", ")} at ${sourceSite}`, budgetMs: 30_000 },
    );
    const off = found.flatMap(({ machineId, power }) =>
      machineId !== undefined && power !== "running" ? [machineId] : [],
    );
    if (off.length > 0)
      await act(
        "startMachines",
        { site: sourceSite, machineIds: off },
        { ...at, summary: `start ${off.length} machines at ${sourceSite}` },
      );
    return found
      .map(({ name, power }) => {
        if (power === "unknown") return `${name}: not known to the hypervisor there; start it yourself if it is off`;
        return `${name}: ${power === "running" ? "kept running" : "started"}`;
      })
      .join("; ");
  } catch (error) {
    return `not started: ${faultOf(error).code}: ${faultOf(error).message}`;
  }
}
