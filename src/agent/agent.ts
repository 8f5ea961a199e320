/**
 * The agent: taps this machine's disks, and does what its process server says about them.
 *
 * ```
 *  start ─► disk book ─► tap host (taps serve the machine from here on) ─► session with a process server ─► lost ─► the next one …
 * ```
 *
 * The machine's own writes never wait for anything here but a hold, which the tap bounds by itself.
 */
import { join } from "node:path";
import { Fault, isFault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Clock } from "#ports/clock.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { Address, Link } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { TapClient } from "../capture/tap/tap-client.ts";
import type { TapConfig } from "../capture/tap/tap-protocol.ts";
import { openAgentSession, type AgentSession } from "./agent-session.ts";
import { openDiskBook } from "./disk-book.ts";
import { createFrameTools } from "./frame-tools.ts";
import { createGroupMember } from "./group-member.ts";
import type { LaneTarget } from "./lane-threads.ts";
import type { SweepLane } from "./sweep-lane.ts";
import { runTapHost, type TapHost, type TapProcess } from "./tap-host.ts";
import { createTappedDisks, shortPath } from "./tapped-disks.ts";

export interface AgentOptions {
  readonly link: Link;
  /** The machine's name: the one in our certificate. */
  readonly machine: string;
  readonly stateDir: string;
  readonly processServers: readonly Address[];
  readonly bootId: string;
  readonly version: string;
  readonly connectTap: (socketPath: string) => Promise<TapClient>;
  readonly spawnTap: (config: TapConfig) => TapProcess;
  readonly startLane: (target: LaneTarget) => Promise<SweepLane>;
  readonly laneCount: number;
  readonly reportMs?: number;
  readonly files: DurableFiles;
  readonly clock: Clock;
  readonly log: Log;
}

export interface Agent {
  /** Asks the process server that it is connected to. Throws PEER_UNREACHABLE when there is none. */
  ask(method: string, params: JsonObject): Promise<JsonValue>;
  /** Ends the agent; its tap goes on serving the machine. */
  close(): Promise<void>;
}

const REPORT_MS = 1_000;
const REDIAL_MS_MIN = 100;
const REDIAL_MS_MAX = 3_000;

/** Throws CONFIG_INVALID when the list of tapped disks cannot be read. */
export function startAgent(options: AgentOptions): Agent {
  const { link, machine, stateDir, processServers, clock, log } = options;
  const stop = new AbortController();
  const disks = createTappedDisks({ book: openDiskBook(join(stateDir, "disks.json"), options.files), stateDir, log });
  const controlSocket = shortPath(join(stateDir, "taps"), "control.sock");
  let host: TapHost | undefined;
  if (disks.tapConfigs().length > 0) tapHost();
  const member = createGroupMember({ disks, tap: connectedTap, tools: createFrameTools(), clock });
  const sessionOptions = {
    link,
    machine,
    bootId: options.bootId,
    version: options.version,
    member,
    obey: async (tasks: Parameters<typeof disks.ensure>[1]) => disks.ensure(() => tapHost().connected(), tasks),
    inspect: (source: string, groupId: string) => ({ ...disks.inspect(source, groupId) }),
    groups: () => disks.groups,
    startLane: options.startLane,
    laneCount: options.laneCount,
    reportMs: options.reportMs ?? REPORT_MS,
    clock,
    log,
  };
  let connected: AgentSession | undefined;
  const running = run();

  return {
    async ask(method, params) {
      if (connected === undefined)
        throw new Fault("PEER_UNREACHABLE", "No process server is connected", { details: { machine } });
      return connected.ask(method, params);
    },
    async close() {
      stop.abort();
      await running;
      await host?.close();
    },
  };

  /** A machine without disks to protect runs no tap. */
  function tapHost(): TapHost {
    host ??= runTapHost({
      connect: () => options.connectTap(controlSocket),
      spawn: () => options.spawnTap({ controlSocket, disks: disks.tapConfigs() }),
      clock,
      log,
      onConnected: (tap) => disks.addAll(tap),
    });
    return host;
  }

  function connectedTap(): TapClient {
    if (host?.current === undefined)
      throw new Fault("PROCESS_DIED", "The tap is being started again", { details: { machine } });
    return host.current;
  }

  async function run(): Promise<void> {
    let waitMs = REDIAL_MS_MIN;
    let lastCode = "";
    for (let turn = 0; !stop.signal.aborted; turn += 1) {
      const address = processServers[turn % processServers.length]!;
      try {
        const session = await openAgentSession(sessionOptions, address, stop.signal);
        log.info("Connected to a process server", { address });
        const onStop = (): void => session.close();
        stop.signal.addEventListener("abort", onStop, { once: true });
        if (stop.signal.aborted) session.close();
        lastCode = "";
        waitMs = REDIAL_MS_MIN;
        connected = session;
        const fault = await session.closed;
        connected = undefined;
        stop.signal.removeEventListener("abort", onStop);
        if (!stop.signal.aborted) log.warn("The process server is gone", { address, fault });
      } catch (error) {
        if (!isFault(error)) throw error;
        if (!stop.signal.aborted && error.code !== lastCode)
          log.warn("No process server yet", { address, fault: error });
        lastCode = error.code;
      }
      await pause(waitMs);
      waitMs = Math.min(waitMs * 2, REDIAL_MS_MAX);
    }
  }

  async function pause(ms: number): Promise<void> {
    try {
      await clock.sleep(ms, stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    }
  }
}
