/**
 * The agents that are connected, and what they reported last. A machine's newest connection counts: an older one of the same machine is
 * closed, for its end may just not have been noticed yet.
 */
import { Fault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import {
  readBase64,
  readList,
  readName,
  readObject,
  readText,
  readWhole,
  readWholes,
  readNumber,
  type Fields,
} from "#model/json-reader.ts";
import type { Handlers, Peer } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { AgentDisk, AgentHello, CompareQuestion, GroupTask, SweptDisk } from "#ports/source-link.ts";

export interface ConnectedAgent {
  readonly hello: AgentHello;
  /** Throws the agent's Fault, PEER_UNREACHABLE, TIMED_OUT. */
  call(method: string, params: JsonObject, timeoutMs?: number): Promise<JsonValue>;
  close(fault: Fault): void;
}

export interface KnownAgent {
  readonly machine: string;
  readonly connected: boolean;
  readonly bootId: string;
  readonly disks: readonly AgentDisk[];
}

/** A payload of frames from an agent's lane. `lane` is the same object for the same lane. */
export interface ArrivedFrames {
  readonly machine: string;
  readonly groupId: string;
  readonly diskId: string;
  readonly cycle: number;
  readonly lane: Peer;
  /** Valid until the promise that handles it settles. */
  readonly payload: Uint8Array;
}

/** A lane asks how blocks differ from the replica's. */
export interface ArrivedQuestion {
  readonly machine: string;
  readonly groupId: string;
  readonly lane: Peer;
  readonly question: CompareQuestion;
}

export interface AgentRegistry {
  get(machine: string): ConnectedAgent | undefined;
  /** What was reported last of the group's disks, connected or not. */
  reported(machine: string, groupId: string): readonly AgentDisk[];
  /** Newer than the last report. */
  note(machine: string, disks: readonly AgentDisk[]): void;
  readonly known: readonly KnownAgent[];
  /** Handlers for a connection that an agent dialled. */
  accept(peer: Peer): Handlers;
}

export interface AgentRegistryOptions {
  readonly log: Log;
  readonly tasksOf: (machine: string) => readonly GroupTask[];
  /** Slows the lane down until it settles. A Fault it throws ends the lane. */
  readonly takeFrames: (frames: ArrivedFrames) => Promise<void>;
  /** Throws what the lane is to hear instead of an answer. */
  readonly compare: (asked: ArrivedQuestion) => Promise<JsonValue>;
  /** Brings its request for the next certificate to control. */
  readonly renew: (request: JsonObject) => Promise<JsonValue>;
  /** An agent came or went, or has other disks. */
  readonly onChange: (machine: string) => void;
  /** A lane is gone. */
  readonly onLaneClosed: (lane: Peer) => void;
}

const CALL_MS = 10_000;

export function createAgentRegistry(options: AgentRegistryOptions): AgentRegistry {
  const { log, tasksOf, takeFrames, onChange, onLaneClosed } = options;
  const agents = new Map<string, ConnectedAgent & { readonly peer: Peer }>();
  const reports = new Map<string, { bootId: string; disks: readonly AgentDisk[] }>();

  return {
    get: (machine) => agents.get(machine),
    reported: (machine, groupId) => reports.get(machine)?.disks.filter((disk) => disk.groupId === groupId) ?? [],
    note(machine, disks) {
      const known = reports.get(machine)?.disks ?? [];
      keep(machine, [...known.filter((old) => !disks.some((disk) => disk.diskId === old.diskId)), ...disks]);
    },
    get known() {
      return [...reports].map(([machine, { bootId, disks }]) => ({
        machine,
        connected: agents.has(machine),
        bootId,
        disks,
      }));
    },
    accept(peer) {
      const { role, name: machine } = peer.identity;
      if (role !== "agent") throw new Fault("PEER_REJECTED", `Expected an agent, got a ${role}`);
      let session: ConnectedAgent | undefined;
      let isLane = false;
      return {
        "agent.hello": async (params) => {
          session = welcome(peer, machine, readHello(params, machine));
          return { tasks: tasksOf(machine) as unknown as JsonValue }; // Interfaces have no index signature.
        },
        "credentials.renew": (params) => options.renew(params),
        "agent.report": async (params) => {
          if (session === undefined) throw new Fault("PROTOCOL_INVALID", "Expected agent.hello before a report");
          const disks = readAgentDisks(params);
          if (agents.get(machine) === session) keep(machine, disks);
        },
        "lane.join": async (params) => {
          if (agents.get(machine)?.hello.sessionId !== readText(params, "sessionId")) {
            throw new Fault("PEER_REJECTED", `The session of "${machine}" that this lane belongs to is over`);
          }
          isLane = true;
          void peer.closed.then(() => onLaneClosed(peer));
        },
        // Every frame before it was handled: notices and calls are delivered in order.
        "lane.flush": async () => undefined,
        "lane.compare": async (params) => {
          if (!isLane) throw new Fault("PROTOCOL_INVALID", "Expected lane.join before a question");
          const question = {
            diskId: readName(params, "diskId"),
            cycle: readWhole(params, "cycle"),
            first: readWhole(params, "first"),
            count: readWhole(params, "count"),
            digests: readBase64(params, "digests"),
          };
          return options.compare({ machine, groupId: readName(params, "groupId"), lane: peer, question });
        },
        frames: async (params, { payload }) => {
          if (!isLane || payload === undefined)
            throw new Fault("PROTOCOL_INVALID", "Expected frames with a payload, on a lane");
          const head = {
            groupId: readName(params, "groupId"),
            diskId: readName(params, "diskId"),
            cycle: readWhole(params, "cycle"),
          };
          await takeFrames({ machine, lane: peer, payload, ...head });
        },
      };
    },
  };

  function keep(machine: string, disks: readonly AgentDisk[]): void {
    const report = reports.get(machine);
    if (report === undefined) return; // It never said hello.
    const before = report.disks;
    report.disks = disks;
    const usable = (all: readonly AgentDisk[]): number =>
      all.filter((disk) => disk.fault === undefined && disk.sizeBytes > 0).length;
    if (usable(before) !== usable(disks)) onChange(machine);
  }

  function welcome(peer: Peer, machine: string, hello: AgentHello): ConnectedAgent {
    agents.get(machine)?.close(new Fault("PEER_UNREACHABLE", `A newer connection of "${machine}" took over`));
    const agent = {
      hello,
      peer,
      call: (method: string, params: JsonObject, timeoutMs = CALL_MS) => peer.call(method, params, { timeoutMs }),
      close: (fault: Fault) => peer.close(fault),
    };
    agents.set(machine, agent);
    reports.set(machine, { bootId: hello.bootId, disks: reports.get(machine)?.disks ?? [] });
    log.info("Agent connected", { machine, version: hello.version });
    onChange(machine);
    void peer.closed.then((fault) => {
      log.info("Agent gone", { machine, fault });
      if (agents.get(machine) !== agent) return;
      agents.delete(machine);
      onChange(machine);
    });
    return agent;
  }
}

function readHello(params: Fields, machine: string): AgentHello {
  const hello = {
    machine: readName(params, "machine"),
    sessionId: readText(params, "sessionId"),
    bootId: readText(params, "bootId"),
    version: readText(params, "version"),
  };
  if (hello.machine !== machine) {
    throw new Fault("PEER_REJECTED", `The certificate is for "${machine}", expected one for "${hello.machine}"`, {
      hint: "The agent's name must be the one it was enrolled with",
    });
  }
  return hello;
}

/** Of an answer to `agent.sweep`; an older agent compares nothing. */
export function readSweptDisks(answer: JsonValue): SweptDisk[] {
  return readList(readObject(answer, "answer"), "disks", (disk) => ({
    diskId: readName(disk, "diskId"),
    sweptBytes: readWhole(disk, "sweptBytes"),
    comparedBytes: disk["comparedBytes"] === undefined ? 0 : readWhole(disk, "comparedBytes"),
    sameBytes: disk["sameBytes"] === undefined ? 0 : readWhole(disk, "sameBytes"),
  }));
}

export function readAgentDisks(fields: Fields): AgentDisk[] {
  return readList(fields, "disks", (disk) => {
    const tracker = readObject(disk["tracker"], "tracker");
    const fault = disk["fault"] === undefined ? undefined : readObject(disk["fault"], "fault");
    return {
      groupId: readName(disk, "groupId"),
      diskId: readName(disk, "diskId"),
      source: readText(disk, "source"),
      sizeBytes: readWhole(disk, "sizeBytes"),
      sectorBytes: readWhole(disk, "sectorBytes"),
      ...(disk["tapUrl"] === undefined ? {} : { tapUrl: readText(disk, "tapUrl") }),
      ...(disk["clients"] === undefined ? {} : { clients: readWhole(disk, "clients") }),
      unsyncedBytes: readWhole(disk, "unsyncedBytes"),
      remainingBytes: readWhole(disk, "remainingBytes"),
      dirtyBytes: readWhole(disk, "dirtyBytes"),
      writtenBytes: readWhole(disk, "writtenBytes"),
      holdMsMax: readNumber(disk, "holdMsMax"),
      sweepReason: String(disk["sweepReason"] ?? ""),
      tracker: { bootId: String(tracker["bootId"] ?? ""), generation: readWhole(tracker, "generation") },
      openCycles: readWholes(disk, "openCycles"),
      ...(fault === undefined
        ? {}
        : {
            fault: {
              code: readText(fault, "code"),
              message: readText(fault, "message"),
              ...(typeof fault["hint"] === "string" ? { hint: fault["hint"] } : {}),
            },
          }),
    };
  });
}
