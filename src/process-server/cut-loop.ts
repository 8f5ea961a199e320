/**
 * The cutting loop of a group: settle, prepare, sweep, cut, ship, again. It goes on while the WAN is down, as long as the spool has room.
 *
 * Invariants:
 * - no cut before every member is settled and every resync that is called for has been taken note of, as of the moment in which the cycle begins: an
 *   open cycle at a tap that we do not keep is discarded first;
 * - a number is durable here before a cycle begins, and is given to one cycle only;
 * - lanes have stopped and all their frames were counted before the cut of their cycle;
 * - whatever fails, the cycle is given up and its block sets return to the taps: nothing is lost, points are missing.
 */
import { isPoint } from "#model/cycle-rules.ts";
import { Fault, isFault } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import type { AgentDisk, Settlement } from "#ports/source-link.ts";
import { readAgentDisks, readSweptDisks } from "./agent-registry.ts";
import { beginCompares, comparable, noteSwept, noteSynced } from "./compare.ts";
import { isSwept, newCycle, type Cycle } from "./cycle.ts";
import {
  connectedMembers,
  diskIdsOf,
  fencedFault,
  giveUp,
  isFenced,
  ofOrder,
  rejectCuts,
  type GroupContext,
} from "./group-context.ts";
import { cutGroup, type CutMember } from "./group-cut.ts";

/** Sweeps of one cycle: long enough that cuts cost little, short enough that a crash repeats little. */
const SWEEP_MS_MIN = 2_000;
const SWEEP_MS_MAX = 10_000;
const CUT_ATTEMPTS = 4;
const CUT_RETRY_MS = 150;
const FAILED_PAUSE_MS = 500;
const DETACHED_PAUSE_MS = 500;
const BLOCKED_PAUSE_MS = 1_000;
/** Cutting begins again when the spool is at least this empty. */
const SPOOL_SHARE_TO_BEGIN = 0.8;
const SHIP_MS = 30 * 60_000;

export async function runCutLoop(group: GroupContext): Promise<void> {
  while (!group.stop.signal.aborted) {
    try {
      await group.cutWake.wait(await oneStep(group), group.stop.signal);
    } catch (error) {
      if (!isFault(error)) throw error;
      if (group.stop.signal.aborted) break;
      noteFault(group, error);
      await group.cutWake.wait(FAILED_PAUSE_MS, group.stop.signal);
    }
  }
}

/** One look at the group; how long to wait until the next, unless woken. */
async function oneStep(group: GroupContext): Promise<number> {
  const { order } = group;
  if (isFenced(group)) return rest(group, "fenced", fencedFault(group));
  if (order.state === "paused") return rest(group, "paused", refused(group, "paused"));
  if (order.state === "stopped") {
    giveUp(group, 0, refused(group, "stopped"));
    await settleAll(
      group,
      group.order.members
        .flatMap(({ machine }) => group.agents.get(machine) ?? [])
        .map((agent) => ({ machine: agent.hello.machine, agent })),
    );
    return rest(group, "stopped", refused(group, "stopped"));
  }
  const members = connectedMembers(group);
  await settleAll(group, members);
  if (await resyncDisks(group)) return 0;
  const before = await prepare(group, members);
  if (isOvertaken(group, order, members)) return 0;
  const remaining = sum(before, (disk) => disk.remainingBytes);
  noteSynced(group, before);
  if (group.syncTotalBytes === 0 && remaining > 0) {
    group.syncBeganMs = group.clock.monotonic();
    group.syncComparedBytes = 0;
    group.syncSameBytes = 0;
  }
  group.syncTotalBytes = remaining === 0 && !group.cycles.some(isSwept) ? 0 : Math.max(group.syncTotalBytes, remaining);

  // The target is asked once before the first cut of our life: it may know more than we do, numbers above all.
  const blind = group.stream === undefined && (group.file.memory.cycle === 0 || !group.targetTried);
  if (blind) return show(group, "connecting", undefined, BLOCKED_PAUSE_MS);
  if (remaining > 0) {
    rejectCuts(
      group,
      new Fault("NO_POINT", `Group "${order.groupName}" is being synchronised, ${remaining} bytes are left`, {
        hint: "Ask again when the sync has ended",
      }),
    );
    if (group.stream === undefined) return show(group, "connecting", undefined, BLOCKED_PAUSE_MS);
    show(group, "seeding");
    // The mover takes the frames of two cycles at a time; comparing, only what is committed is there to compare with.
    if (group.cycles.length > (comparable(group, before).length > 0 ? 0 : 1)) return BLOCKED_PAUSE_MS;
  } else {
    const full = spoolFault(
      group,
      sum(before, (disk) => disk.dirtyBytes),
    );
    if (full !== undefined) return show(group, "bitmap", full, BLOCKED_PAUSE_MS);
    show(group, group.stream === undefined ? "connecting" : "live");
    const waitMs = dueInMs(group);
    if (waitMs > 0) return waitMs;
  }
  await runCycle(group, members, before, remaining > 0);
  return 0;
}

/**
 * While the members answered, the order may have changed, a new stream may have called for a resync, or cycles may have been given up. What they said is
 * about the time before: a cycle that began now would be a point without what is to be compared, or without what the cycles given up held. From here
 * until the new cycle stands in the group's list nothing is awaited; from then on whatever overtakes it gives it up.
 */
function isOvertaken(group: GroupContext, order: ReplicationOrder, members: readonly CutMember[]): boolean {
  return (
    group.order !== order ||
    Object.keys(group.file.memory.resyncs).length > 0 ||
    members.some(({ agent }) => !group.settled.has(agent.hello.sessionId))
  );
}

async function runCycle(
  group: GroupContext,
  members: readonly CutMember[],
  before: readonly AgentDisk[],
  sweep: boolean,
): Promise<void> {
  const { order } = group;
  const groupId = order.groupId;
  const number = Math.max(group.file.memory.cycle, ...before.flatMap((disk) => disk.openCycles)) + 1;
  group.file.save({ cycle: number, branch: order.branch });
  const drained = (): boolean => group.stream !== undefined;
  const cycle = newCycle(number, group.spool.open(groupId, number, drained), diskIdsOf(order));
  group.cycles.push(cycle);
  group.current = cycle;
  try {
    if (sweep) {
      const boundMs = Math.min(SWEEP_MS_MAX, Math.max(SWEEP_MS_MIN, order.intervalMs));
      const compare = await beginCompares(group, cycle, before);
      stillGood(cycle);
      const request = {
        groupId,
        cycle: number,
        life: group.life,
        boundMs,
        compare: compare.map((disk) => ({ ...disk })),
      };
      const answers = await each(members, "agent.sweep", request, boundMs + SHIP_MS);
      noteSwept(group, answers.flatMap(readSweptDisks));
      stillGood(cycle);
    }
    const cut = await cutWithRetries(group, members, cycle);
    cycle.cutAtMs = Math.max(cut.cutAtMs, group.file.memory.cutAtMs + 1); // Monotone, whatever the clock does.
    group.file.note({ cutAtMs: cycle.cutAtMs });
    cycle.disks = order.members.flatMap((member) => ofOrder(member, cut.disks));
    cycle.point = isPoint(before, cycle.disks, isSwept(cycle));
    for (const { machine } of members)
      group.agents.note(
        machine,
        cut.disks.filter((disk) => specMachine(group, disk.diskId) === machine),
      );
    group.sendWake.wake(); // What is shipped from now on may be sent at once.
    await each(members, "agent.ship", { groupId, cycle: number }, SHIP_MS);
    stillGood(cycle);
    cycle.complete = true;
    cycle.spool.complete();
    group.cleanCutDue = isSwept(cycle);
    group.cutFault = undefined;
    group.log.debug("Cycle cut", { cycle: number, point: cycle.point, holdMs: cut.holdMs });
  } catch (error) {
    if (!isFault(error)) throw error;
    giveUp(group, number, error);
    throw error;
  } finally {
    group.current = undefined;
    group.sendWake.wake();
  }

  /** Calls every member at once; the first fault, after all have answered. */
  async function each(
    all: readonly CutMember[],
    method: string,
    params: Parameters<CutMember["agent"]["call"]>[1],
    timeoutMs: number,
  ): Promise<readonly JsonValue[]> {
    const answers = await Promise.allSettled(all.map(({ agent }) => agent.call(method, params, timeoutMs)));
    return answers.map((answer) => {
      if (answer.status === "rejected") throw answer.reason;
      return answer.value;
    });
  }

  function stillGood(one: Cycle): void {
    if (one.fault !== undefined) throw one.fault;
    if (group.stop.signal.aborted) throw new Fault("INTERRUPTED", "The process server is being stopped");
  }
}

/** Retried within the cycle: what was swept stays good, for the cycle only ends with the cut that counts. */
async function cutWithRetries(group: GroupContext, members: readonly CutMember[], cycle: Cycle) {
  const groupId = group.order.groupId;
  for (let attempt = 1; ; attempt += 1) {
    const outcome = await cutGroup(members, { groupId, cycle: cycle.number, life: group.life }, group.clock);
    if (outcome.cut) return outcome;
    group.log.warn("A cut is void", { cycle: cycle.number, attempt, fault: outcome.fault });
    if (attempt >= CUT_ATTEMPTS || outcome.fault.code === "PEER_UNREACHABLE" || cycle.fault !== undefined)
      throw outcome.fault;
    await Promise.all(members.map(({ agent }) => agent.call("agent.unmark", { groupId, cycle: cycle.number })));
    await group.clock.sleep(CUT_RETRY_MS * attempt, group.stop.signal);
  }
}

/** Every member's open cycles agree with ours afterwards. A member that fails is disconnected; it comes back unsettled. */
async function settleAll(group: GroupContext, members: readonly CutMember[]): Promise<void> {
  const { order } = group;
  const keep = group.cycles.filter((cycle) => cycle.complete).map((cycle) => cycle.number);
  for (const { agent } of members) {
    if (group.settled.has(agent.hello.sessionId)) continue;
    const settlement: Settlement = {
      groupId: order.groupId,
      life: group.life,
      keep,
      committed: [...group.committed],
    };
    try {
      await agent.call("agent.settle", { ...settlement });
    } catch (error) {
      if (isFault(error, "TIMED_OUT")) agent.close(error);
      throw error;
    }
    // A cycle given up meanwhile has cleared the set: then it must be settled once more.
    if (keep.every((number) => group.committed.has(number) || group.cycles.some((cycle) => cycle.number === number)))
      group.settled.add(agent.hello.sessionId);
  }
}

async function resyncDisks(group: GroupContext): Promise<boolean> {
  let done = false;
  for (const [diskId, reason] of Object.entries(group.file.memory.resyncs)) {
    const machine = specMachine(group, diskId);
    if (machine === undefined) forget(diskId); // Not of the group any more.
    const agent = machine === undefined ? undefined : group.agents.get(machine);
    if (agent === undefined) continue; // Or it comes back; without it nothing is cut.
    group.log.warn("A disk is compared as a whole", { diskId, reason });
    await agent.call("agent.resync", { groupId: group.order.groupId, diskId, reason });
    forget(diskId); // The tap has it on disk now.
    done = true;
  }
  return done;

  function forget(diskId: string): void {
    const { [diskId]: _done, ...resyncs } = group.file.memory.resyncs;
    group.file.save({ resyncs });
  }
}

/** The disks of all members, now. Throws the fault of the first that cannot be cut. */
async function prepare(group: GroupContext, members: readonly CutMember[]): Promise<readonly AgentDisk[]> {
  const answers = await Promise.all(
    members.map(({ agent }) => agent.call("agent.prepare", { groupId: group.order.groupId })),
  );
  return group.order.members.flatMap((member, index) => {
    const all = readAgentDisks(answers[index] as Record<string, unknown>); // An object: `readAgentDisks` says so otherwise.
    group.agents.note(member.machine, all);
    return member.disks.map((spec) => {
      const disk = all.find((one) => one.diskId === spec.diskId);
      if (disk === undefined)
        throw new Fault("AGENT_UNREACHABLE", `Machine "${member.machine}" does not tap disk "${spec.diskId}" yet`);
      if (disk.fault === undefined) return disk;
      const { message, hint } = disk.fault;
      throw new Fault(isKnown(disk.fault.code), message, {
        details: { machine: member.machine, diskId: spec.diskId },
        ...(hint === undefined ? {} : { hint }),
      });
    });
  });
}

function isKnown(code: string): Fault["code"] {
  // The codes of an older or newer agent may be unknown here.
  return new Set<string>([
    "IMAGE_MISSING",
    "IMAGE_INVALID",
    "IMAGE_IN_USE",
    "DISK_ALREADY_PROTECTED",
    "SOURCE_READ_FAILED",
    "REFUSED",
    "USAGE",
  ]).has(code)
    ? (code as Fault["code"])
    : "PROCESS_DIED";
}

/** Ms until the next cut is due. The first point is made as soon as it can be. */
function dueInMs(group: GroupContext): number {
  if (group.cleanCutDue) return 0;
  // One that waits for the machines to be off is tried again and again, not without a pause.
  const soon = [...group.cutRequests].map((request) =>
    request.detached && group.file.memory.cutAtMs >= request.askedAtMs ? DETACHED_PAUSE_MS : 0,
  );
  const pauseMs = Math.min(group.order.intervalMs, ...soon);
  // Never longer than the pause itself: a clock that was set back must not stop the cuts until it has caught up.
  return Math.min(pauseMs, Math.max(0, group.file.memory.cutAtMs + pauseMs - group.clock.now()));
}

/** While nobody drains the spool, what is to be cut must fit. */
function spoolFault(group: GroupContext, dirtyBytes: number): Fault | undefined {
  const { usedBytes, bytesMax } = group.spool;
  if (group.stream !== undefined || usedBytes + dirtyBytes <= bytesMax * SPOOL_SHARE_TO_BEGIN) return undefined;
  return new Fault(
    "SPOOL_FULL",
    `The spool holds ${usedBytes} of ${bytesMax} bytes, ${dirtyBytes} bytes are dirty, and the target takes none`,
    {
      details: { usedBytes, bytesMax, dirtyBytes },
      hint: "No points are made until the target answers; the taps go on tracking, nothing is lost, no machine is slowed down",
    },
  );
}

function rest(group: GroupContext, state: GroupContext["state"], fault: Fault): number {
  rejectCuts(group, fault);
  return show(group, state, state === "fenced" ? fault : undefined, BLOCKED_PAUSE_MS);
}

function refused(group: GroupContext, state: string): Fault {
  return new Fault("REFUSED", `Replication of group "${group.order.groupName}" is ${state}`, {
    hint: "Resume it first",
  });
}

function show(group: GroupContext, state: GroupContext["state"], fault?: Fault, waitMs = 0): number {
  if (group.state !== state) {
    group.log.info("The group's state changed", { from: group.state, to: state, fault });
    group.cutFault = fault;
  }
  group.state = state;
  if (state !== "live" && state !== "seeding") group.cutFault = fault;
  return waitMs;
}

/** What is not there yet: an agent, or a disk that its tap does not serve yet; and a cut that an order of the moment before overtook. */
const COMING: ReadonlySet<Fault["code"]> = new Set([
  "AGENT_UNREACHABLE",
  "PEER_UNREACHABLE",
  "NOT_FOUND",
  "INTERRUPTED",
]);

/** What a fault means for the state that is shown. */
function noteFault(group: GroupContext, fault: Fault): void {
  if (group.cutFault?.code !== fault.code) group.log.warn("No cut", { fault });
  group.cutFault = fault;
  if (fault.code === "SPOOL_FULL") group.state = "bitmap";
  else if (COMING.has(fault.code)) group.state = "connecting";
  else if (!fault.retryable) group.state = "failed";
}

function specMachine(group: GroupContext, diskId: string): string | undefined {
  return group.order.members.find((member) => member.disks.some((disk) => disk.diskId === diskId))?.machine;
}

function sum(disks: readonly AgentDisk[], of: (disk: AgentDisk) => number): number {
  return disks.reduce((total, disk) => total + of(disk), 0);
}
