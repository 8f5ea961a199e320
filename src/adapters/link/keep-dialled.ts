/**
 * A link that comes back: dial, use until it ends, wait, dial again. The wait doubles from `backoffMsMin` to `backoffMsMax`, each time a
 * random part of it is taken off, so that a hundred agents do not return in the same millisecond. It starts over once a link has held for
 * `STEADY_MS`. Nothing ends this but `close`: credentials may be renewed, a listener may be repaired, while we wait.
 */
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { Address, Handlers, Link, Peer, Role } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { Random } from "#ports/random.ts";

const STEADY_MS = 10_000;

export interface KeepDialledOptions {
  readonly expect: Role;
  /** One set for all links, or made for each. */
  readonly handlers: Handlers | (() => Handlers);
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Default 200. */
  readonly backoffMsMin?: number;
  /** Default 5 000. */
  readonly backoffMsMax?: number;
  /** Told of each failed dial and of each loss; for health. */
  readonly onFault?: (fault: Fault) => void;
}

export interface KeptLink {
  /** The current peer, while there is one. */
  readonly peer: Peer | undefined;
  /** The current peer, or the next one. Throws the signal's Fault, or INTERRUPTED, also after `close`. */
  connected(signal?: AbortSignal): Promise<Peer>;
  close(): Promise<void>;
}

/**
 * Starts at once; several addresses are tried in turn. `onPeer` runs for each new link; it may go on as long as the link, and when it throws a Fault
 * the link is closed with it (and dialled again).
 */
export function keepDialled(
  link: Link,
  addresses: Address | readonly Address[],
  options: KeepDialledOptions,
  onPeer: (peer: Peer) => void | Promise<void> = () => undefined,
): KeptLink {
  const { expect, handlers, clock, random, log, backoffMsMin = 200, backoffMsMax = 5_000, onFault } = options;
  const targets = Array.isArray(addresses) ? (addresses as readonly Address[]) : [addresses as Address]; // isArray does not narrow readonly.
  if (targets.length === 0) throw new RangeError("keepDialled needs an address");
  const stop = new AbortController();
  let peer: Peer | undefined;
  let next = Promise.withResolvers<Peer>();
  next.promise.catch(() => undefined); // Nobody need be waiting when `close` rejects it.
  let lastReported = "";

  const running = run();

  return {
    get peer() {
      return peer;
    },
    async connected(signal) {
      if (peer !== undefined) return peer;
      if (signal === undefined) return next.promise;
      if (signal.aborted) throw interrupted(signal);
      const aborted = Promise.withResolvers<never>();
      const onAbort = (): void => aborted.reject(interrupted(signal));
      signal.addEventListener("abort", onAbort, { once: true });
      try {
        return await Promise.race([next.promise, aborted.promise]);
      } finally {
        signal.removeEventListener("abort", onAbort);
      }
    },
    async close() {
      stop.abort(new Fault("INTERRUPTED", "The link is being closed"));
      peer?.close();
      await running;
    },
  };

  async function run(): Promise<void> {
    let backoffMs = backoffMsMin;
    for (let turn = 0; !stop.signal.aborted; turn += 1) {
      const startedMs = clock.monotonic();
      const fault = await dialOnce(targets[turn % targets.length]!);
      if (stop.signal.aborted) break;
      if (fault !== undefined) report(fault);
      if (clock.monotonic() - startedMs > STEADY_MS) backoffMs = backoffMsMin;
      await pause(backoffMs * (0.5 + random.bytes(1)[0]! / 512));
      backoffMs = Math.min(backoffMs * 2, backoffMsMax);
    }
    next.reject(new Fault("INTERRUPTED", "The link was closed"));
  }

  /** One link from dial to end; what ended it. */
  async function dialOnce(address: Address): Promise<Fault | undefined> {
    let current: Peer;
    try {
      const made = typeof handlers === "function" ? handlers() : handlers;
      current = await link.dial(address, { expect, handlers: made, signal: stop.signal });
    } catch (error) {
      if (isFault(error)) return error;
      throw error;
    }
    lastReported = "";
    log.info("Connected", { peer: current.identity });
    peer = current;
    next.resolve(current);
    next = Promise.withResolvers<Peer>();
    next.promise.catch(() => undefined);
    void use(current);
    if (stop.signal.aborted) current.close();
    const fault = await current.closed;
    peer = undefined;
    return fault;
  }

  async function use(current: Peer): Promise<void> {
    try {
      await onPeer(current);
    } catch (error) {
      if (!isFault(error)) throw error;
      log.warn("A new link could not be used", { peer: current.identity, fault: error });
      current.close(error);
    }
  }

  /** The same failure every few seconds is one line in the log, not thousands. */
  function report(fault: Fault): void {
    onFault?.(fault);
    if (fault.code === lastReported) return;
    lastReported = fault.code;
    log.warn("Not connected; trying again", { fault });
  }

  async function pause(ms: number): Promise<void> {
    try {
      await clock.sleep(ms, stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    }
  }
}

function interrupted(signal: AbortSignal): Fault {
  return signal.reason instanceof Fault
    ? signal.reason
    : new Fault("INTERRUPTED", "The wait was interrupted", { cause: signal.reason });
}
