/**
 * The sending loop of a group: keeps the stream to the mover open, sends the cycles in order, has them committed, and tells the agents.
 *
 * Invariants:
 * - cycles are committed one after the other, and a cycle's commit is asked for only when its last frame was handed over;
 * - agents hear `committed` only after the mover said so, or the store's own tail did;
 * - after a loss of the stream the store is asked before anything is sent: what it has is committed, what can be sent again is, and the rest
 *   goes back to the taps.
 */
import { reconcile } from "#model/cycle-rules.ts";
import { Fault, isFault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import { noteStored } from "./compare.ts";
import { asOpenCycle, recordsOf, type Cycle } from "./cycle.ts";
import { diskIdsOf, fence, giveUp, isFenced, reportedDisks, type GroupContext } from "./group-context.ts";
import { openMoverStream, type CommitAnswer, type MoverStream } from "./mover-stream.ts";

const REOPEN_MS_MIN = 200;
const REOPEN_MS_MAX = 5_000;
const IDLE_MS = 5_000;
/** A store that fails is asked again on the same stream: the mover has the frames. */
const COMMIT_ATTEMPTS = 5;
const COMMIT_RETRY_MS = 1_000;
const FIRST_BRANCH = "root";
/** Numbers of committed cycles that are remembered for members that were away. */
const COMMITTED_MAX = 1_000;

export async function runSendLoop(group: GroupContext): Promise<void> {
  const { signal } = group.stop;
  let reopenMs = REOPEN_MS_MIN;
  while (!signal.aborted) {
    try {
      if (group.stream?.open === false) loseStream(group);
      if (!shouldStream(group)) {
        loseStream(group);
        await group.sendWake.wait(IDLE_MS, signal);
        continue;
      }
      group.stream ??= await openStream(group);
      group.targetTried = true;
      const cycle = group.cycles[0];
      if (cycle === undefined || cycle.cutAtMs === 0) await group.sendWake.wait(IDLE_MS, signal);
      else {
        await sendCycle(group, group.stream, cycle);
        reopenMs = REOPEN_MS_MIN;
      }
    } catch (error) {
      if (!isFault(error)) throw error;
      if (signal.aborted) break;
      if (error.code === "FENCED") {
        fence(group, error);
        continue;
      }
      // A cycle that was given up under our hands: the mover still holds parts of it, and a new stream begins without them.
      loseStream(group);
      if (error.code === "INTERRUPTED") continue;
      if (group.streamFault?.code !== error.code)
        group.log.warn("The target does not take the group's stream", { fault: error });
      group.streamFault = error;
      group.targetTried = true;
      await pause(group, reopenMs);
      reopenMs = Math.min(reopenMs * 2, REOPEN_MS_MAX);
    }
  }
  loseStream(group);
}

function shouldStream(group: GroupContext): boolean {
  return group.order.state === "active" && !isFenced(group) && sizedDisks(group) !== undefined;
}

/** The disks with the sizes that their agents reported; undefined until all are known. */
function sizedDisks(group: GroupContext): { readonly diskId: string; readonly sizeBytes: number }[] | undefined {
  const reported = reportedDisks(group).filter((disk) => disk.fault === undefined && disk.sizeBytes > 0);
  const disks = diskIdsOf(group.order).map((diskId) => reported.find((disk) => disk.diskId === diskId));
  return disks.every((disk) => disk !== undefined)
    ? disks.map(({ diskId, sizeBytes }) => ({ diskId, sizeBytes }))
    : undefined;
}

function loseStream(group: GroupContext): void {
  if (group.stream === undefined) return;
  group.stream.close();
  group.stream = undefined;
  // What is being swept or cut right now went over the lost stream, if anything of it did.
  const swept = group.cycles.find(
    (cycle) => !cycle.complete && asOpenCycle(cycle).disks.some((disk) => !disk.resendable),
  );
  if (swept !== undefined)
    giveUp(
      group,
      swept.number,
      new Fault("PEER_UNREACHABLE", "The target was lost while the group was being synchronised"),
    );
  group.spool.recheck();
  group.cutWake.wake();
}

async function openStream(group: GroupContext): Promise<MoverStream> {
  const { order, file } = group;
  const stream = await openMoverStream(group.link, order, group.life, sizedDisks(group) ?? [], group.stop.signal);
  if (group.order !== order) {
    stream.close();
    throw new Fault("INTERRUPTED", "The order changed while its stream was opened");
  }
  const tails = new Map([...stream.tails].map(([diskId, tail]) => [diskId, tail.cycle]));
  const storedTails = new Map(
    [...stream.tails].map(([diskId, { cycle, sourceLife }]) => [diskId, { cycle, ours: sourceLife === group.life }]),
  );
  const unrelated = unrelatedTo(group, stream);
  const known = new Map(
    unrelated === undefined ? Object.entries(file.memory.tails).filter(([diskId]) => tails.has(diskId)) : [],
  );
  const found = reconcile(
    group.cycles.map(asOpenCycle),
    { highest: stream.barrier, tails: storedTails },
    { lastNumber: file.memory.cycle, known },
  );
  const resyncs = new Map<string, string>();
  for (const diskId of found.behind) resyncs.set(diskId, "the target lacks commits that it had acknowledged");
  for (const disk of reportedDisks(group)) {
    // The tap believes that something of this disk is stored.
    if (disk.unsyncedBytes === disk.sizeBytes) continue;
    // A branch that begins from another one has data before its first commit; found the same, a disk may never get one.
    const inherited = file.memory.branch === order.branch && stream.tails.get(disk.diskId)?.stored === true;
    if (tails.get(disk.diskId) === 0 && !inherited) resyncs.set(disk.diskId, "the target has nothing of this disk");
    else if (unrelated !== undefined) resyncs.set(disk.diskId, unrelated);
  }
  // One save: tails that say "behind" no more, without the resync that they call for, would be a loss after a crash.
  file.save({
    cycle: Math.max(file.memory.cycle, stream.barrier),
    branch: order.branch,
    storeId: stream.storeId,
    // A target that is behind is taken at its word: what is compared as a whole does not rest on what it once said.
    tails: { ...(unrelated === undefined ? file.memory.tails : {}), ...Object.fromEntries(tails) },
    resyncs: { ...file.memory.resyncs, ...Object.fromEntries(resyncs) },
  });
  const giveUpFrom = resyncs.size > 0 ? group.cycles[0]?.number : found.giveUpFrom;
  if (found.foreign || resyncs.size > 0) group.reducer.forget();
  if (giveUpFrom !== undefined) {
    giveUp(
      group,
      giveUpFrom,
      new Fault(
        "PEER_UNREACHABLE",
        found.foreign
          ? "Another process server has gone on with the group"
          : "Parts of these cycles were lost with the stream, or at the target",
      ),
    );
  }
  noteStored(group, stream);
  await rememberRepeats(group, stream.tails);
  group.log.info("The target takes the group's stream", {
    cycle: file.memory.cycle,
    resyncs: Object.keys(file.memory.resyncs),
  });
  group.streamFault = undefined;
  const lost = (): void => {
    if (group.stream === stream) loseStream(group);
    group.sendWake.wake();
  };
  void stream.closed.then(lost);
  group.cutWake.wake();
  return stream;
}

/**
 * Why what our taps track says nothing about this target; undefined when it does. The order alone does not tell: two stores may have a
 * branch of the same name. And a process server that lost its files knows only of `root` that nobody replicated to it from elsewhere.
 */
function unrelatedTo({ file: { memory }, order }: GroupContext, { storeId }: MoverStream): string | undefined {
  if (memory.storeId !== "" && storeId !== "" && memory.storeId !== storeId)
    return "the target has another store than the one before";
  if (memory.branch === "" && order.branch !== FIRST_BRANCH)
    return `it is not known here what was tracked before branch "${order.branch}"`;
  return undefined;
}

/** What a former life of ours, or another process server of the site, said last: only if it is exactly what the store has, and nothing is on its way. */
async function rememberRepeats(group: GroupContext, tails: MoverStream["tails"]): Promise<void> {
  const { groupId, branch } = group.order;
  for (const [diskId, { cycle, commitHash }] of tails) {
    const said = cycle === 0 ? undefined : await group.cache.said({ groupId, diskId, branch }, commitHash);
    if (said !== undefined && group.cycles.length === 0) group.reducer.restore(diskId, said);
  }
}

/** Throws INTERRUPTED when the cycle is given up meanwhile. */
async function sendCycle(group: GroupContext, stream: MoverStream, cycle: Cycle): Promise<void> {
  const inStore = (diskId: string): boolean => (group.file.memory.tails[diskId] ?? 0) >= cycle.number;
  // Not even read when the store has all of it: under pressure, parts that were sent are gone from the spool.
  const whole =
    cycle.commitSent && cycle.disks.every(({ diskId }) => recordsOf(cycle, diskId) === 0 || inStore(diskId));
  if (!whole) {
    for await (const { diskId, payload } of cycle.spool.read()) {
      if (inStore(diskId)) continue;
      await group.throttle(payload.length, group.stop.signal);
      await stream.send(diskId, cycle.number, payload);
    }
  }
  if (cycle.fault !== undefined) throw new Fault("INTERRUPTED", "The cycle was given up");
  cycle.commitSent = true;
  const answer = await commit(group, stream, commitRequest(group, cycle));
  await committed(group, cycle, answer);
}

function commitRequest(group: GroupContext, cycle: Cycle): JsonObject {
  return {
    cycle: cycle.number,
    cutAtMs: cycle.cutAtMs,
    consistent: true, // A cut that is void never gets here.
    point: cycle.point,
    syncTotalBytes: group.syncTotalBytes,
    disks: cycle.disks.map(({ diskId, remainingBytes, tracker }) => ({
      diskId,
      records: recordsOf(cycle, diskId),
      syncRemainingBytes: remainingBytes,
      tracker,
    })),
    stats: {
      backlogBytes:
        group.cycles.reduce((sum, open) => sum + open.spool.usedBytes, 0) +
        reportedDisks(group).reduce((sum, disk) => sum + disk.dirtyBytes, 0),
      writtenBytes: cycle.disks.reduce((sum, disk) => sum + disk.writtenBytes, 0),
    },
  };
}

async function commit(group: GroupContext, stream: MoverStream, request: JsonObject): Promise<CommitAnswer> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await stream.commit(request);
    } catch (error) {
      if (
        !isFault(error) ||
        !error.code.startsWith("STORE_") ||
        !error.retryable ||
        attempt === COMMIT_ATTEMPTS ||
        !stream.open
      )
        throw error;
      group.log.warn("The store does not take a commit; asking again", { cycle: request["cycle"], fault: error });
      group.streamFault = error;
      await pause(group, COMMIT_RETRY_MS);
    }
  }
}

async function committed(group: GroupContext, cycle: Cycle, answer: CommitAnswer): Promise<void> {
  const { file, order } = group;
  const tails = Object.fromEntries(answer.committed.map(({ diskId }) => [diskId, cycle.number]));
  rememberCommitted(group, cycle.number);
  // Durable, or a restart would take our own last commit for another's, and give up what was cut meanwhile.
  file.save({ tails: { ...file.memory.tails, ...tails } });
  group.streamFault = undefined;
  group.cycles = group.cycles.filter((other) => other !== cycle);
  cycle.spool.drop();
  group.log.debug("Cycle committed", { cycle: cycle.number, barrier: answer.barrierNumber });
  if (answer.barrier) {
    for (const request of [...group.cutRequests]) {
      // As they were right after the cut: nobody there, and nothing written since.
      const rested = cycle.disks.every((disk) => disk.clients === 0 && disk.dirtyBytes === 0);
      if (cycle.cutAtMs >= request.askedAtMs && (rested || !request.detached))
        request.resolve({ barrier: answer.barrierNumber, cutAtMs: cycle.cutAtMs });
    }
  }
  const { groupId, branch } = order;
  await Promise.all([
    ...order.members.map(({ machine }) => tellCommitted(group, machine, cycle.number)),
    ...answer.committed.map(({ diskId, commitHash }) =>
      group.cache.committed(
        { groupId, diskId, branch },
        { cycle: cycle.number, commitHash },
        cycle.counts.get(diskId)?.said,
      ),
    ),
  ]);
  group.cutWake.wake();
}

/** An older one that a member never heard of is discarded there: its blocks are shipped once more, which is always right. */
function rememberCommitted({ committed }: GroupContext, cycle: number): void {
  committed.add(cycle);
  for (const oldest of committed) {
    if (committed.size <= COMMITTED_MAX) break;
    committed.delete(oldest);
  }
}

/** A member that cannot be told hears it when it is settled. */
async function tellCommitted(group: GroupContext, machine: string, cycle: number): Promise<void> {
  const agent = group.agents.get(machine);
  if (agent === undefined || !group.settled.has(agent.hello.sessionId)) return;
  try {
    await agent.call("agent.committed", { groupId: group.order.groupId, cycle });
  } catch (error) {
    if (!isFault(error)) throw error;
    group.log.warn("A member did not hear of a commit; it will be settled again", { machine, cycle, fault: error });
    group.settled.delete(agent.hello.sessionId);
  }
}

async function pause(group: GroupContext, ms: number): Promise<void> {
  await group.sendWake.wait(0);
  await group.sendWake.wait(ms, group.stop.signal);
}
