/**
 * Beginning and ending protection, as runbooks of the group's own workflow.
 *
 * Invariants:
 * - tracking starts before the first byte is read: the order goes out before the sync is watched;
 * - a protect that fails leaves nothing that still works for it: the order is stopped and the target released;
 * - ending protection never waits for a source that is gone longer than its bound; what the store holds stays.
 */
import { CancellationScope, executeChild, isCancellation, ParentClosePolicy } from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import { CONDITIONS } from "#model/group-phase.ts";
import { MOVE_STEPS } from "#model/move-steps.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import { act, PRIORITY } from "./act.ts";
import { faultOf } from "./failures.ts";
import { keepInCatalog } from "./group-catalog.ts";
import { leavingReplica, reopenLater } from "./group-moves.ts";
import { currentOrder, groupDisks, nextOrder } from "./group-order.ts";
import { putOperation, takeProgress, type GroupRecord } from "./group-record.ts";
import { initialSync } from "./initial-sync.ts";
import { leaveReplica, removeReplica } from "./leave-replica.ts";
import { CONTROL_QUEUE, groupWorkflowId, type OperationState } from "./messages.ts";
import { childAttributes } from "./operation-view.ts";
import { runOperation, type Runbook } from "./runbook.ts";
import { now } from "./workflow-time.ts";

const TAPS_MS = 120_000;
const STOP_MS = 60_000;

/** Who asked, and under which id. */
export interface Asked {
  readonly operationId: string;
  readonly by: string;
}

/** Runs until the group has its first point ("done"), or everything is undone. `changed` after each change of the record. */
export async function protectGroup(record: GroupRecord, asked: Asked, changed: () => void): Promise<OperationState> {
  const { operation } = await runOperation(
    {
      operationId: asked.operationId,
      kind: "protect",
      workflowId: groupWorkflowId(record.groupId),
      groupId: record.groupId,
      by: asked.by,
    },
    ["look at disks", "probe store", "prepare target", "order replication", "serve disks", "initial sync"],
    (state) => {
      putOperation(record, state);
      changed();
    },
    async (run) => await runProtect(record, run),
  );
  return operation;
}

async function runProtect(record: GroupRecord, run: Runbook): Promise<void> {
  const { groupId, targetSite, sourceSite } = record;
  const at = { at: targetSite, priority: PRIORITY.watch };
  await run.step("look at disks", async (note) => note(await lookAtDisks(record)));
  await run.step("probe store", async (note) =>
    note((await act("probeStore", { site: targetSite }, { ...at, summary: "is the store safe?" })).endpoint),
  );

  run.undo(
    "prepare target",
    async () =>
      await act(
        "releaseGroup",
        { site: targetSite, groupId, operationId: record.protectOperationId },
        { ...at, summary: "undo: release the target" },
      ),
  );
  await run.step("prepare target", async (note) => note(await prepareTarget(record)));

  run.undo(
    "order replication",
    async () => void (await putOrder(nextOrder(record, "stopped"), targetSite, "undo: stop replication")),
  );
  await run.step("order replication", async (note) => {
    const delivered = await putOrder(nextOrder(record, "active"), targetSite, "order replication");
    note(delivered ? "delivered" : `waits for the process server of "${sourceSite}"`);
  });
  await run.step(
    "serve disks",
    async (note) => {
      const diskIds = groupDisks(record).map((disk) => disk.diskId);
      const reports = await act(
        "awaitTaps",
        { site: sourceSite, groupId, diskIds, timeoutMs: TAPS_MS },
        { ...at, summary: "wait until the agents serve the disks", budgetMs: TAPS_MS + 30_000 },
      );
      record.machines = record.machines.map((machine) => ({
        ...machine,
        disks: machine.disks.map((disk) => {
          const tapUrl = reports.find((report) => report.diskId === disk.diskId)?.tapUrl;
          return tapUrl === undefined ? disk : { ...disk, tapUrl };
        }),
      }));
      note(`${reports.length} taps`);
      // An initial sync may take days, and should survive the loss of control.
      await keepInCatalog(record);
    },
    { waitsFor: "the agents to serve the disks", budgetMs: TAPS_MS },
  );
  await run.step(
    "initial sync",
    async () => {
      const progress = await executeChild(initialSync, {
        workflowId: `${groupWorkflowId(groupId)}/sync/${record.protectOperationId}`,
        args: [
          {
            groupId,
            groupName: record.name,
            site: targetSite,
            rpoThresholdMs: record.policy.rpoThresholdMs,
            cursor: record.cursor,
          },
        ],
        taskQueue: CONTROL_QUEUE,
        // It only watches: it ends with its group.
        parentClosePolicy: ParentClosePolicy.TERMINATE,
        priority: { priorityKey: PRIORITY.sync },
        staticSummary: `${record.name}: initial sync to ${targetSite}`,
        typedSearchAttributes: childAttributes("initialSync", record.name, targetSite),
      });
      takeProgress(record, progress, record.cursor, now());
    },
    { waitsFor: "the first recovery point" },
  );
}

/** Sizes may have changed since the request was made. */
async function lookAtDisks(record: GroupRecord): Promise<string> {
  const { groupId, targetSite, sourceSite } = record;
  let count = 0;
  for (const machine of record.machines) {
    const seen = await act(
      "inspectDisks",
      { site: sourceSite, groupId, machine: machine.name, sources: machine.disks.map((disk) => disk.source) },
      { at: targetSite, summary: `look at the disks of ${machine.name}` },
    );
    for (const disk of machine.disks) {
      const found = seen.find((one) => one.source === disk.source);
      if (found === undefined)
        throw new Fault("IMAGE_MISSING", `Machine "${machine.name}" does not report "${disk.source}"`, {
          hint: "Check the path on that machine",
        });
      if (found.sizeBytes !== disk.sizeBytes) {
        throw new Fault(
          "IMAGE_INVALID",
          `"${disk.source}" has ${found.sizeBytes} bytes, expected ${disk.sizeBytes} as it was when asked`,
          { hint: "Protect it again once its size is settled" },
        );
      }
      count += 1;
    }
  }
  return `${count} disks`;
}

/** Also repairs: a target that forgot the group gets it again under the same id, and says where it listens now. */
export async function prepareTarget(record: GroupRecord): Promise<string> {
  const prepared = await act(
    "prepareGroup",
    {
      site: record.targetSite,
      groupId: record.groupId,
      operationId: record.protectOperationId,
      groupName: record.name,
      sourceSite: record.sourceSite,
      disks: groupDisks(record),
      // A store that a reprotect has prepared may have had the group before.
      ...(record.home === undefined ? {} : { atLeastEpoch: record.epoch }),
      record: JSON.stringify({
        name: record.name,
        policy: record.policy,
        sourceSite: record.sourceSite,
        targetSite: record.targetSite,
        machines: record.machines,
      }),
    },
    { at: record.targetSite, summary: "make the group receivable" },
  );
  record.target = { host: prepared.host, port: prepared.port };
  record.branch = prepared.branch;
  record.epoch = Math.max(record.epoch, prepared.groupEpoch);
  return `branch ${prepared.branch}, epoch ${prepared.groupEpoch}`;
}

export async function putOrder(order: ReplicationOrder, at: string, summary: string): Promise<boolean> {
  return (await act("putOrder", { order }, { at, summary })).delivered;
}

/**
 * A source that cannot be reached is noted, and the order waits for it. A group whose machines run at the target leaves them first, so
 * that all they wrote is in the store; until the target is released a failure brings them back.
 */
export async function unprotectGroup(record: GroupRecord, asked: Asked, changed: () => void): Promise<OperationState> {
  const { groupId, targetSite } = record;
  const workflowId = groupWorkflowId(groupId);
  const leaving = record.replica === undefined ? undefined : leavingReplica(record, asked, workflowId);
  const { operation, notUndone } = await runOperation(
    { operationId: asked.operationId, kind: "unprotect", workflowId, groupId, by: asked.by },
    MOVE_STEPS[leaving === undefined ? "unprotect" : "unprotect-replica"],
    (state) => {
      putOperation(record, state);
      changed();
    },
    async (run) => {
      await CancellationScope.nonCancellable(async () => {
        if (leaving !== undefined) await leaveReplica(leaving, run);
        await run.step(
          "stop replication",
          async (note) => {
            try {
              const { delivered } = await act(
                "putOrder",
                { order: nextOrder(record, "stopped") },
                { at: targetSite, summary: "stop replication", budgetMs: STOP_MS },
              );
              note(delivered ? "stopped" : "the order to stop waits for its process server");
            } catch (error) {
              if (isCancellation(error)) throw error;
              // Once the target is released nothing is received any more, whatever the source does.
              note(`not told: ${faultOf(error).message}`);
            }
          },
          { budgetMs: STOP_MS },
        );
        await run.step(
          "release target",
          async () =>
            await act(
              "releaseGroup",
              { site: targetSite, groupId, operationId: asked.operationId },
              { at: targetSite, summary: "release the target; the store keeps everything" },
            ),
        );
        run.keep();
        if (leaving !== undefined) await run.step("remove replica", async (note) => await removeReplica(leaving, note));
        if (record.home !== undefined)
          await run.step("release source", async (note) => {
            const { sourceSite } = record;
            try {
              // Its store had the group before the sites were swapped, and still keeps a former source out.
              await act(
                "releaseGroup",
                { site: sourceSite, groupId, operationId: asked.operationId },
                { at: targetSite, summary: `release ${sourceSite} too`, budgetMs: STOP_MS },
              );
            } catch (error) {
              note(`not told: ${faultOf(error).message}`);
            }
          });
      });
    },
  );
  if (operation.state === "done") delete record.replica;
  else if (notUndone.length > 0) reopenLater(record, operation);
  return operation;
}

/** The target moved, or the group was given back to its source on another branch: its process server must hear. */
export async function orderAgainIfMoved(record: GroupRecord): Promise<void> {
  const before = currentOrder(record);
  await prepareTarget(record);
  const { target, groupEpoch, branch } = currentOrder(record);
  const same =
    target.host === before.target.host &&
    target.port === before.target.port &&
    groupEpoch === before.groupEpoch &&
    branch === before.branch;
  if (!same) await putOrder(nextOrder(record, record.order.state), record.targetSite, "order again");
}

/** Replicate (or track, while paused) under the epoch and on the branch that the target says hold now. */
export async function orderAnew(record: GroupRecord): Promise<void> {
  await prepareTarget(record);
  const state = record.conditions.includes(CONDITIONS.paused) ? "paused" : "active";
  await putOrder(nextOrder(record, state), record.targetSite, state === "active" ? "replicate" : "track changes");
}
