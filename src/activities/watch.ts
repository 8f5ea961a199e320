/**
 * Watching: one activity spans a window of cycles beside the receiver, so that a group costs a few events a minute however often it
 * cuts.
 *
 * Invariants:
 * - a heartbeat carries the last committed barrier and goes out only after an answer: a watcher that hangs stops beating and is replaced;
 * - nothing is decided here; a watcher that runs twice, or in two places, harms nobody;
 * - what a person must know at once (connection, state, fault, RPO) ends the window early.
 *
 * Source: the rules for movers in docs/orchestration.md.
 */
import { Context } from "@temporalio/activity";
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { Hypervisor } from "#ports/hypervisor.ts";
import type { ExportStatus, MasterTarget } from "#ports/master-target.ts";
import type { GroupProgress } from "#ports/replication.ts";
import type { WatchedFacts, WatchInput, WatchReplicaInput, WatchReplicaResult, WatchResult } from "./contract.ts";

/** One long poll; well below the heartbeat time-out of 10 s, since only its answer beats. */
const POLL_MS = 3_000;
const ANSWER_MS = 8_000;
const PAUSE_MS = 1_000;
/** Unreachable for this long ends a window: the workflow then knows, and says so. */
const UNREACHABLE_MS = 4_000;
/** Between two looks at an export. */
const REPLICA_PAUSE_MS = 2_000;

export async function watchGroup(masterTarget: MasterTarget, clock: Clock, input: WatchInput): Promise<WatchResult> {
  const context = Context.current();
  const end = clock.monotonic() + input.windowMs;
  let cursor = input.cursor;
  let progress: GroupProgress | undefined;
  let firstBarrier: number | undefined;
  let lagMsMax = 0;
  let failingSince: number | undefined;
  const result = (endedBy: WatchResult["endedBy"], fault?: Fault): WatchResult => ({
    endedBy,
    cursor,
    ...(progress === undefined ? {} : { progress }),
    barriers: progress === undefined ? 0 : progress.barrier - (firstBarrier ?? progress.barrier),
    lagMsMax,
    ...(fault === undefined ? {} : { fault: fault.toJSON() }),
  });
  context.heartbeat({ barrier: 0, state: input.known.state });
  for (;;) {
    const left = end - clock.monotonic();
    if (left <= 0) return result("window");
    try {
      const poll = masterTarget.observeGroup({
        groupId: input.groupId,
        cursor,
        waitMs: Math.min(POLL_MS, Math.max(0, Math.round(left))),
      });
      const { cursor: next, ...seen } = await answered(poll, clock);
      cursor = next;
      progress = seen;
      failingSince = undefined;
    } catch (error) {
      if (!isFault(error)) throw error;
      // Not there at all: waiting would not help, the workflow must prepare the group again.
      if (error.code === "NOT_FOUND" || !error.retryable) return result("unreachable", error);
      failingSince ??= clock.monotonic();
      if (clock.monotonic() - failingSince >= UNREACHABLE_MS) return result("unreachable", error);
      context.heartbeat({ barrier: progress?.barrier ?? 0, state: "unreachable", code: error.code });
      await Promise.race([clock.sleep(PAUSE_MS), context.cancelled]);
      continue;
    }
    firstBarrier ??= progress.barrier;
    const lagMs = progress.currentAsOfMs === 0 ? 0 : Math.max(0, clock.now() - progress.currentAsOfMs);
    lagMsMax = Math.max(lagMsMax, lagMs);
    context.heartbeat({
      barrier: progress.barrier,
      state: progress.state,
      connected: progress.connected,
      lagMs,
      syncRemainingBytes: remaining(progress),
    });
    if (input.until === "point" && isSeeded(progress) && (await isOnLine(masterTarget, clock, input)))
      return result("point");
    if (differs(input.known, progress, lagMs > input.rpoThresholdMs)) return result("changed");
  }
}

/** The first point exists and no disk has anything left to sync. */
export function isSeeded(progress: GroupProgress): boolean {
  return progress.barrier > 0 && remaining(progress) === 0;
}

/** A store that had the group before has points already: they say nothing of what is being copied now. */
async function isOnLine(masterTarget: MasterTarget, clock: Clock, { groupId, line }: WatchInput): Promise<boolean> {
  if (line === undefined) return true;
  try {
    const asked = masterTarget.listPoints({ groupId, branch: line.branch, limit: 1 });
    const [newest] = await answered(asked, clock);
    return (newest?.barrier ?? 0) > line.afterBarrier;
  } catch (error) {
    // A store that does not answer now is asked again with the next look.
    if (isFault(error) && error.retryable) return false;
    throw error;
  }
}

function remaining(progress: GroupProgress): number {
  return progress.disks.reduce((sum, disk) => sum + disk.syncRemainingBytes, 0);
}

function differs(known: WatchedFacts, seen: GroupProgress, rpoBreached: boolean): boolean {
  return (
    known.state !== seen.state ||
    known.connected !== seen.connected ||
    known.faultCode !== (seen.fault?.code ?? "") ||
    known.rpoBreached !== rpoBreached
  );
}

/** What the replica machines wrote, and whether they run. Reopening what is lost is the workflow's. */
export async function watchReplica(
  masterTarget: MasterTarget,
  hypervisor: Hypervisor,
  clock: Clock,
  input: WatchReplicaInput,
): Promise<WatchReplicaResult> {
  const context = Context.current();
  const end = clock.monotonic() + input.windowMs;
  let { uncommittedSinceMs, writtenBytes, barrier } = input;
  let status: ExportStatus | undefined;
  let { machinesOff } = input.known;
  let machinesDied: readonly string[] | undefined;
  let failures = 0;
  const result = (fault?: Fault): WatchReplicaResult => ({
    ...(status === undefined ? {} : { export: status }),
    machinesOff,
    ...(machinesDied === undefined ? {} : { machinesDied }),
    uncommittedSinceMs,
    ...(fault === undefined ? {} : { fault: fault.toJSON() }),
  });
  for (;;) {
    try {
      status = await answered(masterTarget.exportStatus({ operationId: input.operationId }), clock);
      ({ machinesOff, machinesDied } = await answered(lookAtMachines(hypervisor, input.machines), clock));
      failures = 0;
    } catch (error) {
      if (!isFault(error)) throw error;
      failures += 1;
      if (error.code === "NOT_FOUND" || !error.retryable || failures > 3) return result(error);
    }
    if (status !== undefined && failures === 0) {
      // A new barrier holds what was written before its cut; what came after it starts waiting now.
      if (status.barrier !== barrier) uncommittedSinceMs = 0;
      else if (status.writtenBytes > writtenBytes && uncommittedSinceMs === 0) uncommittedSinceMs = clock.now();
      ({ writtenBytes, barrier } = status);
      context.heartbeat({ barrier, writtenBytes });
      if (input.known.faultCode !== "" || machinesOff.join() !== input.known.machinesOff.join()) return result();
    } else {
      context.heartbeat({ barrier, failures });
    }
    if (clock.monotonic() >= end) return result();
    await Promise.race([clock.sleep(REPLICA_PAUSE_MS), context.cancelled]);
  }
}

async function lookAtMachines(
  hypervisor: Hypervisor,
  machines: WatchReplicaInput["machines"],
): Promise<{ readonly machinesOff: readonly string[]; readonly machinesDied: readonly string[] | undefined }> {
  const machinesOff: string[] = [];
  const machinesDied: string[] = [];
  let told = true;
  for (const { name, machineId } of machines) {
    try {
      const { power, wentOff } = await hypervisor.inspect(machineId);
      if (power !== "off") continue;
      machinesOff.push(name);
      if (wentOff === "died") machinesDied.push(name);
      else if (wentOff === undefined) told = false;
    } catch (error) {
      if (!isFault(error, "NOT_FOUND")) throw error;
      machinesOff.push(name);
      told = false;
    }
  }
  return { machinesOff, machinesDied: told ? machinesDied : undefined };
}

/** The answer, or TIMED_OUT; or the cancellation of this activity. */
async function answered<T>(answer: Promise<T>, clock: Clock): Promise<T> {
  const done = new AbortController();
  const late = clock.sleep(ANSWER_MS, done.signal).then(
    () => {
      throw new Fault("TIMED_OUT", `The master target did not answer within ${ANSWER_MS / 1_000} s`, {
        hint: "Look at the master target's log",
      });
    },
    () => new Promise<never>(() => {}), // Aborted: the answer came first.
  );
  try {
    return await Promise.race([answer, late, Context.current().cancelled]);
  } finally {
    done.abort();
  }
}
