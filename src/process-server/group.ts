/**
 * One protection group at its source site: obeys its order, cuts by itself, and is asked how it goes.
 *
 * The two loops do the work (cut-loop.ts, send-loop.ts); this is their door.
 */
import { Fault, isFault } from "#model/fault.ts";
import { KIND_SWEEP, readFrameRecords } from "#model/frame-record.ts";
import type { Peer } from "#ports/link.ts";
import type { SourceState } from "#ports/process-server.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import type { JsonValue } from "#model/json.ts";
import type { ArrivedFrames, ArrivedQuestion } from "./agent-registry.ts";
import { passQuestion } from "./compare.ts";
import { runCutLoop } from "./cut-loop.ts";
import { addStatements, type Cycle } from "./cycle.ts";
import {
  createGroupContext,
  diskIdsOf,
  fencedFault,
  giveUp,
  isFenced,
  reportedDisks,
  type CutRequest,
  type GroupContext,
  type GroupDeps,
} from "./group-context.ts";
import type { GroupFile } from "./group-file.ts";
import { liftsFence } from "./order.ts";
import { runSendLoop } from "./send-loop.ts";
import type { StreamReducer } from "./stream-reducer.ts";

export interface Group {
  readonly order: ReplicationOrder;
  obey(order: ReplicationOrder): void;
  /** An agent came or went. */
  agentChanged(machine: string): void;
  laneClosed(lane: Peer): void;
  /** Slows the lane down. A fault gives the cycle up, it does not end the lane. Throws PROTOCOL_INVALID for what no agent of ours sends. */
  takeFrames(frames: ArrivedFrames): Promise<void>;
  /** A lane asks how its blocks differ from the replica's. Throws what the lane is to hear instead. */
  compare(asked: ArrivedQuestion): Promise<JsonValue>;
  cutNow(request: {
    readonly operationId: string;
    readonly timeoutMs: number;
    readonly detached?: boolean;
  }): Promise<{ readonly barrier: number; readonly cutAtMs: number }>;
  state(): SourceState;
  /** Ends the loops; settles when they have. */
  close(): Promise<void>;
}

/** Answers of `cutNow` that are remembered for repeats. */
const OPERATIONS_MAX = 100;

export function startGroup(
  deps: GroupDeps,
  order: ReplicationOrder,
  parts: { readonly file: GroupFile; readonly reducer: StreamReducer },
): Group {
  const group = createGroupContext(deps, order, parts.file, parts.reducer);
  const operations = new Map<string, Promise<{ readonly barrier: number; readonly cutAtMs: number }>>();
  checkBranch(group);
  const running = Promise.all([runCutLoop(group), runSendLoop(group)]);

  return {
    get order() {
      return group.order;
    },
    obey(next) {
      const former = group.order;
      group.order = next;
      const fencedEpoch = group.file.memory.fencedEpoch;
      if (fencedEpoch > 0 && liftsFence(next, fencedEpoch)) {
        group.file.save({ fencedEpoch: 0 });
        group.streamFault = undefined;
      }
      checkBranch(group);
      if (streamOf(former) !== streamOf(next)) {
        giveUp(group, 0, new Fault("INTERRUPTED", "The order changed where the group's stream goes"));
        group.stream?.close();
        group.stream = undefined;
      }
      group.settled.clear(); // Members may have come.
      group.cutWake.wake();
      group.sendWake.wake();
    },
    agentChanged(machine) {
      if (!group.order.members.some((member) => member.machine === machine)) return;
      group.cutWake.wake();
      group.sendWake.wake();
    },
    laneClosed: (lane) => group.stream?.closeLane(lane),
    async compare(asked) {
      checkOwner(group, asked.machine, asked.question.diskId);
      return passQuestion(group, asked);
    },
    async takeFrames(frames) {
      checkOwner(group, frames.machine, frames.diskId);
      const cycle = group.current;
      if (cycle === undefined || cycle.number !== frames.cycle || cycle.fault !== undefined) return; // Given up: nobody counts them.
      try {
        await takePayload(group, cycle, frames);
      } catch (error) {
        if (!isFault(error)) throw error;
        if (cycle.fault === undefined) giveUp(group, cycle.number, error);
      }
    },
    cutNow({ operationId, timeoutMs, detached = false }) {
      const known = operations.get(operationId);
      if (known !== undefined) return known;
      const cut = requestCut(group, timeoutMs, detached);
      operations.set(operationId, cut);
      // Only answers are repeated; what failed may be asked for again.
      cut.catch(() => operations.delete(operationId));
      for (const oldest of operations.keys()) {
        if (operations.size <= OPERATIONS_MAX) break;
        operations.delete(oldest);
      }
      return cut;
    },
    state() {
      const fenced = isFenced(group);
      const fault = fenced ? fencedFault(group) : (group.cutFault ?? group.streamFault);
      return {
        groupId: group.order.groupId,
        orderVersion: group.order.version,
        state: fenced ? "fenced" : group.state,
        ...(fault === undefined
          ? {}
          : {
              fault: {
                code: fault.code,
                message: fault.message,
                ...(fault.hint === undefined ? {} : { hint: fault.hint }),
              },
            }),
        disks: reportedDisks(group),
        spoolBytes: group.cycles.reduce((sum, cycle) => sum + cycle.spool.usedBytes, 0),
        lastCutAtMs: group.file.memory.cutAtMs,
        ...(group.syncTotalBytes === 0 ? {} : { sync: syncProgress(group) }),
        ...(group.syncComparedBytes === 0
          ? {}
          : { compared: { comparedBytes: group.syncComparedBytes, sameBytes: group.syncSameBytes } }),
      };
    },
    async close() {
      const fault = new Fault("INTERRUPTED", "The process server is being stopped");
      group.stop.abort(fault);
      giveUp(group, 0, fault);
      for (const request of [...group.cutRequests]) request.reject(fault);
      await running;
    },
  };
}

function syncProgress(group: GroupContext): NonNullable<SourceState["sync"]> {
  const totalBytes = group.syncTotalBytes;
  const remainingBytes = Math.min(
    totalBytes,
    reportedDisks(group).reduce((sum, disk) => sum + disk.remainingBytes, 0),
  );
  const seconds = (group.clock.monotonic() - group.syncBeganMs) / 1_000;
  const bytesPerSecond = seconds > 0 ? Math.round((totalBytes - remainingBytes) / seconds) : 0;
  const etaMs = bytesPerSecond > 0 ? Math.round((remainingBytes / bytesPerSecond) * 1_000) : 0;
  return { totalBytes, remainingBytes, bytesPerSecond, etaMs };
}

/** What we track is relative to one branch: on another, everything is compared. */
function checkBranch(group: GroupContext): void {
  const { branch } = group.file.memory;
  if (branch === "" || branch === group.order.branch) return;
  const reason = `the group goes on on branch "${group.order.branch}", not "${branch}"`;
  const resyncs = Object.fromEntries(diskIdsOf(group.order).map((diskId) => [diskId, reason]));
  group.file.save({ branch: group.order.branch, tails: {}, resyncs });
}

function checkOwner({ order }: GroupContext, machine: string, diskId: string): void {
  const member = order.members.find((one) => one.machine === machine);
  if (member?.disks.some((disk) => disk.diskId === diskId) === true) return;
  throw new Fault("PROTOCOL_INVALID", `Disk "${diskId}" is not one of "${machine}" in group "${order.groupId}"`);
}

function streamOf(order: ReplicationOrder): string {
  const { branch, groupEpoch, target, members, state } = order;
  return JSON.stringify([branch, groupEpoch, target, members, state === "stopped"]);
}

async function takePayload(group: GroupContext, cycle: Cycle, { diskId, payload, lane }: ArrivedFrames): Promise<void> {
  const count = cycle.counts.get(diskId);
  if (count === undefined) throw new Fault("INTERRUPTED", "The disk joined the group after this cycle began");
  const compress = group.order.compressAt === "process-server";
  let records = 0;
  let sweeps = 0;
  for (const record of readFrameRecords(payload)) {
    records += 1;
    if (record.kind !== KIND_SWEEP) continue;
    sweeps += 1;
    group.reducer.forgetSwept(diskId, record);
  }
  if (sweeps > 0 && sweeps < records) throw new Fault("PROTOCOL_INVALID", "Expected one kind of frames in a payload");
  if (sweeps > 0) {
    const { stream } = group;
    if (stream === undefined)
      throw new Fault("PEER_UNREACHABLE", "The target was lost while the group was being synchronised");
    const sent = compress ? await group.reducer.compressOnly(payload) : payload;
    await group.throttle(sent.length, group.stop.signal);
    count.sweepRecords += records;
    count.said = undefined;
    await stream.relay(lane, diskId, cycle.number, sent);
  } else if (records > 0) {
    const reduced = await group.reducer.reduce(diskId, payload, compress);
    if (reduced.said.length === 0) return;
    count.deltaRecords += reduced.said.length;
    addStatements(count, reduced.said);
    await cycle.spool.append(diskId, reduced.payload);
  }
}

/** Why a cut of resting disks is not made. */
function attachedFault(group: GroupContext): Fault | undefined {
  const attached = reportedDisks(group).filter((disk) => disk.clients !== 0);
  if (attached.length === 0) return undefined;
  return new Fault(
    "REFUSED",
    `Disk ${attached.map((disk) => `"${disk.source}"`).join(", ")} is still attached to a running machine, expected none`,
    { hint: "Shut that machine down, then repeat" },
  );
}

function requestCut(
  group: GroupContext,
  timeoutMs: number,
  detached: boolean,
): Promise<{ readonly barrier: number; readonly cutAtMs: number }> {
  if (isFenced(group)) return Promise.reject(fencedFault(group));
  const { promise, resolve, reject } = Promise.withResolvers<{ readonly barrier: number; readonly cutAtMs: number }>();
  const end = (): void => {
    clearTimeout(timer);
    group.cutRequests.delete(request);
  };
  const request: CutRequest = {
    askedAtMs: group.clock.now(),
    detached,
    resolve: (cut) => {
      end();
      resolve(cut);
    },
    reject: (fault) => {
      end();
      reject(fault);
    },
  };
  const timer = setTimeout(() => {
    const why = group.cutFault ?? group.streamFault ?? (detached ? attachedFault(group) : undefined);
    request.reject(
      new Fault(
        "TIMED_OUT",
        `No point of group "${group.order.groupName}" was committed within ${timeoutMs} ms${why === undefined ? "" : `: ${why.message}`}`,
        {
          ...(why?.hint === undefined ? {} : { hint: why.hint }),
          ...(why === undefined ? {} : { cause: why }),
        },
      ),
    );
  }, timeoutMs);
  group.cutRequests.add(request);
  group.cutWake.wake();
  return promise;
}
