/**
 * One connection to a process server, from hello to its end: the calls it may make, the lanes that go with it, the reports.
 *
 * Connections: this one carries words only. Frames of cuts go over a lane of their own, and each sweeping thread has one, so that a hold never waits
 * behind data that the WAN slows down. When any but a sweeping lane is lost, the session ends and a new one is made.
 */
import { randomUUID } from "node:crypto";
import { Fault, isFault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import {
  readBase64,
  readList,
  readName,
  readText,
  readTexts,
  readWhole,
  readWholes,
  readChoice,
  type Fields,
} from "#model/json-reader.ts";
import type { Clock } from "#ports/clock.ts";
import type { Address, Handlers, Link, Peer } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { GroupTask } from "#ports/source-link.ts";
import type { LaneTarget } from "./lane-threads.ts";
import { joinLane, type SweepLane } from "./sweep-lane.ts";
import type { CycleRequest, GroupMember } from "./group-member.ts";

export interface SessionOptions {
  readonly link: Link;
  readonly machine: string;
  readonly bootId: string;
  readonly version: string;
  readonly member: GroupMember;
  /** Taps what the tasks name; the fault of a single disk shows in its report. */
  readonly obey: (tasks: readonly GroupTask[]) => Promise<void>;
  readonly inspect: (source: string, groupId: string) => JsonObject;
  readonly groups: () => readonly string[];
  readonly startLane: (target: LaneTarget) => Promise<SweepLane>;
  readonly laneCount: number;
  readonly reportMs: number;
  readonly clock: Clock;
  readonly log: Log;
}

export interface AgentSession {
  ask(method: string, params: JsonObject): Promise<JsonValue>;
  readonly closed: Promise<Fault | undefined>;
  close(): void;
}

/** Throws what dialling throws, and PEER_REJECTED when the process server does not take this machine. */
export async function openAgentSession(
  options: SessionOptions,
  address: Address,
  signal: AbortSignal,
): Promise<AgentSession> {
  const { link, machine, bootId, version, member, log, clock } = options;
  const target: LaneTarget = { address, machine, sessionId: randomUUID() };
  const lanes = createLanePool(options, target);
  const ended = new AbortController();
  let deltaLane: Peer | undefined;
  const peer = await link.dial(address, { expect: "process-server", handlers: handlers(), signal });
  const closed = peer.closed.then(async (fault) => {
    ended.abort();
    deltaLane?.close();
    lanes.close();
    try {
      await member.releaseAll();
    } catch (error) {
      if (!isFault(error)) throw error;
      log.debug("The tap had released before", { fault: error }); // Its own bound, or its end, came first.
    }
    return fault;
  });
  try {
    const answer = (await peer.call("agent.hello", {
      machine,
      bootId,
      version,
      sessionId: target.sessionId,
    })) as JsonObject;
    deltaLane = await joinLane({ link, ...target, signal });
    void deltaLane.closed.then((fault) => peer.close(fault));
    await obey(readTasks(answer));
    await report(true);
  } catch (error) {
    peer.close();
    throw error;
  }
  void reportRegularly();
  return { closed, ask: (method, params) => peer.call(method, params), close: () => peer.close() };

  function handlers(): Handlers {
    return {
      "agent.obey": async (params) => {
        await obey(readTasks(params));
        return asJson({ disks: await allDisks() });
      },
      "agent.inspect": async (params) => {
        const groupId = readName(params, "groupId");
        return readTexts(params, "sources").map((source) => options.inspect(source, groupId));
      },
      "agent.prepare": async (params) => asJson({ disks: await member.disks(readName(params, "groupId")) }),
      "agent.sweep": async (params) =>
        asJson(
          await lanes.use(readName(params, "groupId"), (ready, stop) =>
            member.sweep(
              {
                ...readCycle(params),
                life: readText(params, "life"),
                boundMs: readWhole(params, "boundMs"),
                stored: readStored(params),
              },
              ready,
              stop,
            ),
          ),
        ),
      "agent.stopSweep": async (params) => lanes.stop(readName(params, "groupId")),
      "agent.hold": async (params) => member.hold({ ...readCycle(params), boundMs: readWhole(params, "boundMs") }),
      "agent.mark": async (params) => member.mark({ ...readCycle(params), life: readText(params, "life") }),
      "agent.release": async (params) => asJson(await member.release(readCycle(params))),
      "agent.ship": async (params) => {
        const request = readCycle(params);
        const lane = deltaLane;
        if (lane === undefined) throw new Fault("PEER_UNREACHABLE", "The delta lane is not connected yet");
        const result = await member.ship(request, (diskId, payload) =>
          lane.notify("frames", { ...request, diskId }, payload),
        );
        await lane.call("lane.flush", {}, { timeoutMs: FLUSH_MS });
        return asJson(result);
      },
      "agent.committed": async (params) => member.committed(readCycle(params)),
      "agent.discard": async (params) => member.discard(readCycle(params)),
      "agent.unmark": async (params) => member.unmark(readCycle(params)),
      "agent.settle": async (params) =>
        member.settle({
          groupId: readName(params, "groupId"),
          life: readText(params, "life"),
          keep: readWholes(params, "keep"),
          committed: readWholes(params, "committed"),
        }),
      "agent.resync": async (params) =>
        member.resync(readName(params, "groupId"), readName(params, "diskId"), readText(params, "reason")),
    };
  }

  async function obey(tasks: readonly GroupTask[]): Promise<void> {
    member.setTasks(tasks);
    await options.obey(tasks);
  }

  async function allDisks(fresh = false) {
    const perGroup = await Promise.all(options.groups().map((groupId) => member.disks(groupId, { fresh })));
    return perGroup.flat();
  }

  async function report(fresh: boolean): Promise<void> {
    await peer.notify("agent.report", asJson({ disks: await allDisks(fresh) }));
  }

  async function reportRegularly(): Promise<void> {
    try {
      for (;;) {
        await clock.sleep(options.reportMs, ended.signal);
        await report(true);
      }
    } catch (error) {
      if (!ended.signal.aborted && !isFault(error, "PEER_UNREACHABLE")) throw error;
    }
  }
}

/** A flush waits behind all that the process server has still to take. */
const FLUSH_MS = 600_000;
/** Threads without work are ended: each holds a compressor and buffers. */
const LANES_IDLE_MS = 20_000;

/** The sweeping threads of one session: started when first needed, used by one sweep at a time. */
function createLanePool(options: SessionOptions, target: LaneTarget) {
  let lanes: SweepLane[] = [];
  let closed = false;
  let turn: Promise<unknown> = Promise.resolve();
  let idle: NodeJS.Timeout | undefined;
  const stops = new Map<string, AbortController>();

  return {
    /** Waits for its turn, then works with all lanes. */
    use<T>(groupId: string, work: (lanes: readonly SweepLane[], stop: AbortSignal) => Promise<T>): Promise<T> {
      const stop = new AbortController();
      stops.set(groupId, stop);
      const mine = turn.then(async () => {
        clearTimeout(idle);
        try {
          await start();
          return await work(lanes, stop.signal);
        } finally {
          if (stops.get(groupId) === stop) stops.delete(groupId);
          idle = setTimeout(closeLanes, LANES_IDLE_MS);
          idle.unref();
        }
      });
      turn = mine.catch(() => undefined); // Whoever asked sees it.
      return mine;
    },
    stop: (groupId: string) => stops.get(groupId)?.abort(),
    close() {
      closed = true;
      clearTimeout(idle);
      for (const stop of stops.values()) stop.abort();
      closeLanes();
    },
  };

  function closeLanes(): void {
    for (const lane of lanes.splice(0)) lane.close();
  }

  async function start(): Promise<void> {
    const missing = options.laneCount - lanes.length;
    const started = await Promise.allSettled(Array.from({ length: missing }, () => options.startLane(target)));
    for (const outcome of started) {
      if (outcome.status === "rejected") continue;
      const lane = outcome.value;
      lanes.push(lane);
      void lane.closed.then(() => (lanes = lanes.filter((other) => other !== lane)));
    }
    if (closed) closeLanes();
    const failed = started.find((outcome) => outcome.status === "rejected");
    if (lanes.length === 0) throw failed?.reason ?? new Fault("PEER_UNREACHABLE", "The session ended");
  }
}

function readCycle(params: Fields): CycleRequest {
  return { groupId: readName(params, "groupId"), cycle: readWhole(params, "cycle") };
}

/** Which stripes of which disks are compared; an older process server compares nothing. */
function readStored(params: Fields): ReadonlyMap<string, Uint8Array> {
  const disks = params["compare"] === undefined ? [] : readList(params, "compare", (disk) => disk);
  return new Map(disks.map((disk) => [readName(disk, "diskId"), Buffer.from(readBase64(disk, "stripes"), "base64")]));
}

function readTasks(fields: Fields): GroupTask[] {
  return readList(fields, "tasks", (task) => ({
    groupId: readName(task, "groupId"),
    state: readChoice(task, "state", ["active", "paused", "stopped"]),
    compressAt: readChoice(task, "compressAt", ["agent", "process-server"]),
    disks: readList(task, "disks", (disk) => ({
      diskId: readName(disk, "diskId"),
      source: readText(disk, "source"),
      ...(disk["sizeBytes"] === undefined ? {} : { sizeBytes: readWhole(disk, "sizeBytes") }),
    })),
  }));
}

/** Interfaces have no index signature; what we send is plain data. */
function asJson(value: object): JsonObject {
  return value as { readonly [key: string]: JsonValue };
}
