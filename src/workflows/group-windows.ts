/**
 * Windows: a group that is protected, or failed over, is watched by one activity that spans many cycles.
 *
 * A window ends at its time, or early when something changed that a person must know. Every await here may be interrupted by a
 * command; what is decided after one is decided from the record as it is then.
 */
import { isCancellation, patched, sleep } from "@temporalio/workflow";
import { CONDITIONS } from "#model/group-phase.ts";
import { duration } from "#model/health.ts";
import type { WatchInput, WatchResult } from "../activities/contract.ts";
import { act, PRIORITY } from "./act.ts";
import { faultOf } from "./failures.ts";
import { orderAgainIfMoved, orderAnew } from "./group-protect.ts";
import { hasCondition, rpoBreached, takeProgress, type GroupRecord, type ReplicaRecord } from "./group-record.ts";
import { endReseed, leaveExport, unwindReprotect } from "./group-reprotect.ts";
import { nextRestartAtMs, restartDied, restartsDue } from "./replica-restarts.ts";
import type { Group } from "./group-updates.ts";
import { now } from "./workflow-time.ts";

const WINDOW_MS_MAX = 60_000;
const WINDOW_CYCLES = 12;
/** While the source is away, windows are shorter: each ends with a look at whether the target still knows the group. */
const AWAY_WINDOW_MS = 15_000;
const FENCED_PAUSE_MS = 60_000;
const UNREACHABLE_PAUSE_MS = 5_000;
/** Between two windows that ended early at once: a connection that flaps must not flood the history. */
const FLAP_PAUSE_MS = 1_000;

/** Also while a group whose sites were swapped has no point of its new state yet. */
export async function watchProtected(group: Group, windowMs: number | undefined): Promise<void> {
  const { record } = group;
  if (record.orderDue === true) await sendOrderAgain(group);
  if (record.exportDue !== undefined) await tolerating(group, async () => await leaveExport(record));
  if (hasCondition(record, CONDITIONS.sourceFenced)) {
    // Nothing is replicated, so nothing can be watched. A command ends this wait.
    await sleep(FENCED_PAUSE_MS, { summary: "fenced: waits for a person" });
    return;
  }
  const begunAtMs = now();
  const { progress } = record;
  const usual = windowMs ?? Math.min(WINDOW_MS_MAX, WINDOW_CYCLES * record.policy.intervalMs);
  const length = progress?.connected === false ? Math.min(usual, AWAY_WINDOW_MS) : usual;
  const result: WatchResult = await act(
    "watchGroup",
    {
      site: record.targetSite,
      groupId: record.groupId,
      cursor: record.cursor,
      windowMs: length,
      known: {
        state: progress?.state ?? "",
        connected: progress?.connected ?? false,
        faultCode: progress?.fault?.code ?? "",
        rpoBreached: rpoBreached(record, begunAtMs),
      },
      rpoThresholdMs: record.policy.rpoThresholdMs,
      ...untilOf(record),
    },
    { at: record.targetSite, summary: `watch deltas for ${duration(length)}`, priority: PRIORITY.watch },
  );
  if (result.progress !== undefined) takeProgress(record, result.progress, result.cursor, now());
  if (result.endedBy === "point" && record.phase === "reseeding") {
    await endReseed(record);
    group.show();
  } else if (result.endedBy === "unreachable" && result.fault !== undefined) {
    record.targetFault = result.fault;
    record.observedAtMs = now();
    group.show();
    if (result.fault.code === "NOT_FOUND") await repair(group);
    await sleep(UNREACHABLE_PAUSE_MS, { summary: `the master target cannot be asked: ${result.fault.code}` });
  } else if (result.endedBy === "window" && record.progress?.connected === false) {
    await repair(group);
  } else if (result.endedBy === "changed" && now() - begunAtMs < FLAP_PAUSE_MS) {
    group.show();
    await sleep(FLAP_PAUSE_MS, { summary: "several changes at once" });
  }
}

function untilOf({ phase, reseed, branch }: GroupRecord): Pick<WatchInput, "until" | "line"> {
  if (phase !== "reseeding" || reseed === undefined) return { until: "window" };
  return { until: "point", line: { branch, afterBarrier: reseed.afterBarrier } };
}

/** The target may have forgotten the group, or listen elsewhere, after a restart. */
async function repair(group: Group): Promise<void> {
  await tolerating(group, async () => await orderAgainIfMoved(group.record));
}

async function sendOrderAgain(group: Group): Promise<void> {
  await tolerating(group, async () => {
    await orderAnew(group.record);
    group.record.orderDue = false;
  });
}

/** What fails here is shown and tried again in the next window. */
async function tolerating(group: Group, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (isCancellation(error)) throw error;
    group.record.targetFault = faultOf(error).toJSON();
    group.show();
  }
}

export async function watchReplicaWindow(group: Group, windowMs: number | undefined): Promise<void> {
  const { record } = group;
  const { replica } = record;
  if (replica === undefined) throw new RangeError("Failed over without a replica");
  if (record.unwind !== undefined) await tolerating(group, async () => await unwindReprotect(record));
  // The first look ends at once: whoever has just failed over wants to see the replica.
  const usual = replica.export === undefined ? 0 : (windowMs ?? WINDOW_MS_MAX);
  const ends = [replica.due?.atMs, nextRestartAtMs(replica)].filter((atMs) => atMs !== undefined);
  const length = Math.max(0, Math.min(usual, ...ends.map((atMs) => atMs - now())));
  const result = await act(
    "watchReplica",
    {
      site: record.targetSite,
      operationId: replica.operationId,
      machines: replica.machines,
      windowMs: length,
      known: { machinesOff: replica.machinesOff, faultCode: replica.fault?.code ?? "" },
      uncommittedSinceMs: replica.uncommittedSinceMs,
      writtenBytes: replica.export?.writtenBytes ?? 0,
      barrier: replica.export?.barrier ?? 0,
    },
    {
      at: record.targetSite,
      summary: length === 0 ? "first look at the replica machines" : `watch replica machines for ${duration(length)}`,
      priority: PRIORITY.watch,
    },
  );
  const wasAway = replica.fault !== undefined;
  const changed = changedMeanwhile(record, replica);
  const { fault: _fault, ...rest } = changed ?? replica;
  const next: ReplicaRecord = {
    ...rest,
    machinesOff: changed === undefined ? result.machinesOff : changed.machinesOff,
    uncommittedSinceMs: result.uncommittedSinceMs,
    ...(result.export === undefined ? {} : { export: result.export }),
    ...(result.fault === undefined ? {} : { fault: result.fault }),
  };
  // Who looked did not look at what a retry has changed since: the next window does, at once.
  if (result.machinesDied !== undefined && changed === undefined)
    next.restarts = restartsDue(next, result.machinesDied, now());
  record.replica = next;
  if (result.export?.branch !== undefined) record.branch = result.export.branch;
  record.observedAtMs = now();
  group.show();
  // Where the hypervisor cannot tell: one that is off after its master target was away died with it.
  const stopped = next.reopen !== undefined || (wasAway && result.machinesDied === undefined);
  if (result.fault?.code === "NOT_FOUND" || (stopped && result.machinesOff.length > 0)) await bringBack(group, next);
  else if (result.fault === undefined) await restartDied(group);
  if (result.fault !== undefined)
    await sleep(UNREACHABLE_PAUSE_MS, { summary: `the replica cannot be seen: ${result.fault.code}` });
}

/** The replica as a retry has left it since `before` was read; undefined when it is the same. Written back as it was, it would lose the retry's machines. */
function changedMeanwhile({ replica }: GroupRecord, before: ReplicaRecord): ReplicaRecord | undefined {
  if (replica === undefined || replica === before || replica.operationId !== before.operationId) return undefined;
  // Runs that have forgotten such machines already must go on as they did.
  return patched("window-keeps-retried") ? replica : undefined;
}

/** Open the disks again on the same branch and start the machines; both find what is still there. */
async function bringBack(group: Group, replica: ReplicaRecord): Promise<void> {
  const { record } = group;
  const at = { at: record.targetSite, priority: PRIORITY.failover };
  try {
    await act(
      "openExport",
      {
        site: record.targetSite,
        groupId: record.groupId,
        operationId: replica.operationId,
        point: replica.pointId,
        mode: "read-write",
        ...(replica.reopen === undefined ? {} : { reopen: replica.reopen }),
      },
      { ...at, summary: "open the disks again" },
    );
    for (const { name, machineId } of replica.machines)
      await act(
        "startMachine",
        { site: record.targetSite, machineId },
        { ...at, summary: `start machine ${name} again` },
      );
    const { reopen: _reopen, ...running } = changedMeanwhile(record, replica) ?? replica;
    record.replica = running;
  } catch (error) {
    if (isCancellation(error)) throw error;
    record.replica = { ...(changedMeanwhile(record, replica) ?? replica), fault: faultOf(error).toJSON() };
    group.show();
  }
}
