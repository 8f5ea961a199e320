/**
 * The hold of one disk for one cut: who holds, since when, and the bound at which it ends by itself.
 *
 * ```
 *  free ──hold──► draining ──nothing in flight──► held ──release──► free
 *                    └───────── bound, expire ─────┴──► free, and the hold is known as broken until the next one
 * ```
 */
import { Fault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { WriteGate } from "./write-gate.ts";

export interface Holder {
  hold(cutId: number, boundMs: number): Promise<void>;
  /** Throws HOLD_EXPIRED unless `cutId` holds now. */
  check(cutId: number): void;
  release(cutId: number): { readonly heldThroughout: boolean; readonly heldMs: number };
  expire(cutId: number): void;
  longestMs(newPeriod: boolean): number;
}

interface Hold {
  readonly cutId: number;
  readonly since: number;
  readonly timer: NodeJS.Timeout;
  readonly broken: PromiseWithResolvers<never>;
  drained: boolean;
}

export function createHolder(gate: WriteGate, clock: Clock): Holder {
  let current: Hold | undefined;
  let brokenHold: { readonly cutId: number; readonly heldMs: number } | undefined;
  let longestMs = 0;

  function end(hold: Hold): number {
    clearTimeout(hold.timer);
    current = undefined;
    const heldMs = clock.monotonic() - hold.since;
    longestMs = Math.max(longestMs, heldMs);
    gate.release();
    return heldMs;
  }

  function expire(cutId: number): void {
    if (current?.cutId !== cutId) return;
    const hold = current;
    brokenHold = { cutId, heldMs: end(hold) };
    hold.broken.reject(expired(cutId));
  }

  return {
    async hold(cutId, boundMs) {
      if (current !== undefined) {
        throw new Fault("REFUSED", `The disk is held for cut "${current.cutId}"`, {
          details: { cut: current.cutId },
          hint: "Two process servers cut the same disk: stop one of them.",
        });
      }
      brokenHold = undefined;
      const broken = Promise.withResolvers<never>();
      broken.promise.catch(() => undefined); // Nobody waits for it once the hold has settled.
      const hold: Hold = {
        cutId,
        since: clock.monotonic(),
        timer: setTimeout(() => expire(cutId), boundMs),
        broken,
        drained: false,
      };
      current = hold;
      await Promise.race([gate.hold(), broken.promise]);
      hold.drained = true;
    },
    check(cutId) {
      if (current?.cutId !== cutId || !current.drained) throw expired(cutId);
    },
    release(cutId) {
      if (current?.cutId === cutId) return { heldThroughout: true, heldMs: end(current) };
      return { heldThroughout: false, heldMs: brokenHold?.cutId === cutId ? brokenHold.heldMs : 0 };
    },
    expire,
    longestMs(newPeriod) {
      const result = longestMs;
      if (newPeriod) longestMs = 0;
      return result;
    },
  };
}

function expired(cutId: number): Fault {
  return new Fault("HOLD_EXPIRED", `The hold for cut "${cutId}" has ended before the cut was complete`, {
    details: { cut: cutId },
    hint: "The next cut tries again. If it happens often, look for a slow or overloaded member of the group.",
  });
}
