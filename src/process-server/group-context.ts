/**
 * What the two loops of a group share: the cutting loop (agents → spool) and the sending loop (spool → mover). Both run on one thread, and each
 * looks at the state again after every wait.
 *
 * ```
 *            cut loop                                 send loop
 *  agents ─► current cycle ─complete─► cycles[] ─────► mover ─committed─► agents
 *                 └───────────── giveUp: back to the taps ◄────┘
 * ```
 */
import { randomBytes } from "node:crypto";
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { Link } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { SourceState } from "#ports/process-server.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import type { AgentDisk } from "#ports/source-link.ts";
import type { AgentRegistry } from "./agent-registry.ts";
import { hasRecords, type Cycle } from "./cycle.ts";
import type { CutMember } from "./group-cut.ts";
import type { GroupFile } from "./group-file.ts";
import type { MoverStream } from "./mover-stream.ts";
import type { SiteCache } from "./site-cache.ts";
import type { Spool } from "./spool.ts";
import type { StreamReducer } from "./stream-reducer.ts";
import { createWake, type Wake } from "./wake.ts";

export interface GroupDeps {
  readonly link: Link;
  readonly agents: AgentRegistry;
  readonly spool: Spool;
  readonly cache: SiteCache;
  /** Tokens for `bytes` on the WAN; settles when they may be sent. */
  readonly throttle: (bytes: number, signal: AbortSignal) => Promise<void>;
  readonly clock: Clock;
  readonly log: Log;
}

export interface GroupContext extends GroupDeps {
  /** 8 hex digits, random. What taps and store say of a cycle is about ours only if it was made in this life; a number alone may be another's. */
  readonly life: string;
  order: ReplicationOrder;
  readonly file: GroupFile;
  readonly reducer: StreamReducer;
  /** Not committed, not given up; ascending. The last may be the current one. */
  cycles: Cycle[];
  /** Being swept, cut or shipped. */
  current: Cycle | undefined;
  stream: MoverStream | undefined;
  /** A stream was opened, or could not be, since we started. */
  targetTried: boolean;
  state: SourceState["state"];
  cutFault: Fault | undefined;
  streamFault: Fault | undefined;
  /** Sessions whose open cycles agree with ours. */
  readonly settled: Set<string>;
  /** Newest numbers that were committed in this life; a member that was away may not have heard. */
  readonly committed: Set<number>;
  /** What the running sync had to read when it began. */
  syncTotalBytes: number;
  /** When it began, monotonic. */
  syncBeganMs: number;
  /** Of what it read, what was compared with the replica, and what the replica had already. */
  syncComparedBytes: number;
  syncSameBytes: number;
  /** Disks of which the target has something that a sweep can be compared with, as far as the stream at hand knows. */
  readonly comparable: Set<string>;
  /** The last cycle could be no point, so the next one does not wait for its time. */
  cleanCutDue: boolean;
  readonly cutRequests: Set<CutRequest>;
  readonly cutWake: Wake;
  readonly sendWake: Wake;
  readonly stop: AbortController;
}

export interface CutRequest {
  readonly askedAtMs: number;
  /** Only a cut at which no client had a disk attached. */
  readonly detached: boolean;
  readonly resolve: (cut: { readonly barrier: number; readonly cutAtMs: number }) => void;
  readonly reject: (fault: Fault) => void;
}

export function createGroupContext(
  deps: GroupDeps,
  order: ReplicationOrder,
  file: GroupFile,
  reducer: StreamReducer,
): GroupContext {
  return {
    ...deps,
    life: randomBytes(4).toString("hex"),
    order,
    file,
    reducer,
    cycles: [],
    current: undefined,
    stream: undefined,
    targetTried: false,
    state: "idle",
    cutFault: undefined,
    streamFault: undefined,
    settled: new Set(),
    committed: new Set(),
    syncTotalBytes: 0,
    syncBeganMs: 0,
    syncComparedBytes: 0,
    syncSameBytes: 0,
    comparable: new Set(),
    cleanCutDue: true,
    cutRequests: new Set(),
    cutWake: createWake(),
    sendWake: createWake(),
    stop: new AbortController(),
  };
}

export function diskIdsOf(order: ReplicationOrder): string[] {
  return order.members.flatMap((member) => member.disks.map((disk) => disk.diskId));
}

/** What was last reported of the disks that the order names. */
export function reportedDisks(group: GroupContext): AgentDisk[] {
  return group.order.members.flatMap((member) =>
    ofOrder(member, group.agents.reported(member.machine, group.order.groupId)),
  );
}

export function ofOrder(member: ReplicationOrder["members"][number], disks: readonly AgentDisk[]): AgentDisk[] {
  return disks.filter((disk) => member.disks.some((spec) => spec.diskId === disk.diskId));
}

/** All members. Throws AGENT_UNREACHABLE, naming who is missing. */
export function connectedMembers(group: GroupContext): CutMember[] {
  return group.order.members.map(({ machine }) => {
    const agent = group.agents.get(machine);
    if (agent !== undefined) return { machine, agent };
    throw new Fault(
      "AGENT_UNREACHABLE",
      `Machine "${machine}" is not connected, expected every member of group "${group.order.groupName}"`,
      {
        details: { machine, groupId: group.order.groupId },
        hint: "Start the agent on that machine; its tap goes on tracking what is written meanwhile",
      },
    );
  });
}

/**
 * Cycle `from` and all later ones will not be committed. Their frames are dropped, what the stream said is forgotten, and every member is
 * settled anew before the next cut: their block sets return to the taps.
 */
export function giveUp(group: GroupContext, from: number, fault: Fault): void {
  const lost = group.cycles.filter((cycle) => cycle.number >= from);
  if (lost.length === 0) return;
  group.log.warn("Cycles are given up; their blocks are cut again", {
    from,
    cycles: lost.map((cycle) => cycle.number),
    fault,
  });
  for (const cycle of lost) {
    cycle.fault = fault;
    cycle.spool.drop();
  }
  group.cycles = group.cycles.filter((cycle) => cycle.number < from);
  group.reducer.forget();
  group.settled.clear();
  if (lost.some(hasRecords)) {
    // The mover holds parts of them. A new stream begins without.
    group.stream?.close();
    group.stream = undefined;
    group.spool.recheck();
  }
  if (group.current?.fault !== undefined) for (const { machine } of group.order.members) void stopSweep(group, machine);
  group.cutWake.wake();
  group.sendWake.wake();
}

async function stopSweep(group: GroupContext, machine: string): Promise<void> {
  try {
    await group.agents.get(machine)?.call("agent.stopSweep", { groupId: group.order.groupId });
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    group.log.debug("A sweep could not be stopped", { machine, fault: error }); // It is bounded in time anyway.
  }
}

/** We are not the active site any more: cut and ship nothing until control decides anew. */
export function fence(group: GroupContext, fault: Fault): void {
  group.log.error("The group is fenced: another site is active", { fault });
  try {
    group.file.save({ fencedEpoch: group.order.groupEpoch });
  } catch (error) {
    if (!isFault(error)) throw error;
    group.log.error("The fence is known in memory only; after a restart the store says it again", { fault: error });
  }
  group.streamFault = fault;
  group.stream?.close();
  group.stream = undefined;
  giveUp(group, 0, fault);
  rejectCuts(group, fault);
  group.cutWake.wake();
}

export function isFenced(group: GroupContext): boolean {
  const { fencedEpoch } = group.file.memory;
  return fencedEpoch > 0 && group.order.groupEpoch <= fencedEpoch;
}

export function fencedFault(group: GroupContext): Fault {
  const known = group.streamFault;
  if (known?.code === "FENCED") return known;
  return new Fault(
    "FENCED",
    `The group failed over to site "${group.order.target.site}", expected to be the active site`,
    {
      details: { groupId: group.order.groupId },
      hint: "This site only tracks changes now. Reprotect the group, or undo the failover",
    },
  );
}

export function rejectCuts(group: GroupContext, fault: Fault): void {
  for (const request of [...group.cutRequests]) request.reject(fault);
}
