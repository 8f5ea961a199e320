/**
 * Keeps a tap running and connected.
 *
 * The tap stands in the machine's own way to its disk, so it does not die with the agent: it is found again over its socket. When nothing answers
 * there it is started, at once and with all known disks, before any process server has been heard of: the machine must be able to boot.
 */
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { Log } from "#ports/log.ts";
import type { TapClient } from "../capture/tap/tap-client.ts";

export interface TapProcess {
  /** Undefined when it could not even be started. */
  readonly pid: number | undefined;
  /** Settles when the process has ended, with what is known of why. */
  readonly ended: Promise<string>;
}

export interface TapHostOptions {
  /** Throws PEER_UNREACHABLE when nothing listens. */
  readonly connect: () => Promise<TapClient>;
  readonly spawn: () => TapProcess;
  readonly clock: Clock;
  readonly log: Log;
  /** Told of each new connection before anyone else gets it: adds the disks that the tap does not know. */
  readonly onConnected: (tap: TapClient) => Promise<void>;
}

export interface TapHost {
  /** The connected tap, now. */
  readonly current: TapClient | undefined;
  /** The connected tap, or the next one. Throws INTERRUPTED after `close`. */
  connected(): Promise<TapClient>;
  /** Lets go of the tap; it goes on serving the machine. */
  close(): Promise<void>;
}

const RETRY_MS = 15;
const RETRY_MS_MAX = 1_000;
/** A process that starts and does not listen within this time is looked at again. */
const START_MS = 10_000;

export function runTapHost(options: TapHostOptions): TapHost {
  const { connect, spawn, clock, log, onConnected } = options;
  const stop = new AbortController();
  let current: TapClient | undefined;
  let next = Promise.withResolvers<TapClient>();
  next.promise.catch(() => undefined); // Nobody need wait when `close` rejects it.
  const running = run();

  return {
    get current() {
      return current;
    },
    connected: async () => current ?? next.promise,
    async close() {
      stop.abort();
      current?.close();
      await running;
    },
  };

  async function run(): Promise<void> {
    while (!stop.signal.aborted) {
      const tap = await reach();
      if (tap === undefined) break;
      try {
        await onConnected(tap);
      } catch (error) {
        if (!isFault(error)) throw error;
        log.error("The tap does not take its disks", { fault: error });
        tap.close();
        await pause(START_MS / 10);
        continue;
      }
      current = tap;
      next.resolve(tap);
      next = Promise.withResolvers<TapClient>();
      next.promise.catch(() => undefined);
      if (stop.signal.aborted) tap.close();
      await tap.closed;
      current = undefined;
    }
    next.reject(new Fault("INTERRUPTED", "The agent is being closed"));
  }

  /** Connects; starts a tap when there is none. Undefined once closed. */
  async function reach(): Promise<TapClient | undefined> {
    let child: TapProcess | undefined;
    let startedAt = 0;
    let waitMs = RETRY_MS;
    while (!stop.signal.aborted) {
      try {
        return await connect();
      } catch (error) {
        if (!isFault(error, "PEER_UNREACHABLE")) throw error;
      }
      if (child === undefined || clock.monotonic() - startedAt > START_MS) {
        startedAt = clock.monotonic();
        const started = spawn();
        child = started;
        void started.ended.then((why) => {
          log.warn("The tap ended", { why });
          if (child !== started) return;
          child = undefined;
          waitMs = Math.min(waitMs * 2, RETRY_MS_MAX); // It ended before we could connect: do not start it a hundred times a second.
        });
      }
      await pause(waitMs);
    }
    return undefined;
  }

  async function pause(ms: number): Promise<void> {
    try {
      await clock.sleep(ms, stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    }
  }
}
