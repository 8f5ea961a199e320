/**
 * Uploads of segments: few at a time, the same bytes until they are stored.
 *
 * Invariants:
 * - at most `SEGMENT_PUTS_MAX` are in flight; who wants one more waits before it fills another buffer, and that is the
 *   back-pressure of the whole way from the source;
 * - an ambiguous PUT is looked at first, then repeated with identical bytes. The name belongs to this writer alone (epoch and
 *   counter), so what is there is ours exactly when its header is;
 * - a store that fails keeps the upload trying until it is given up by its signal. What went wrong last can be asked for.
 */
import { Buffer } from "node:buffer";
import { Fault, isFault } from "#model/fault.ts";
import { HEADER_BYTES } from "#model/format/header.ts";
import { createOnce } from "./create-once.ts";
import type { StoreContext } from "./disk-context.ts";

export const SEGMENT_PUTS_MAX = 3;
const PAUSE_MS = 1_000;

/** A count of places, handed out in order of asking. */
export interface Slots {
  /** Resolves with what gives the place back. Rejects with the signal's reason. */
  acquire(signal: AbortSignal): Promise<() => void>;
}

export function slots(count: number): Slots {
  let free = count;
  const waiting: (() => void)[] = [];
  const release = (): void => {
    free++;
    waiting.shift()?.();
  };
  return {
    async acquire(signal) {
      while (free === 0) {
        signal.throwIfAborted();
        await new Promise<void>((resolve) => {
          const wake = (): void => (signal.removeEventListener("abort", wake), resolve());
          signal.addEventListener("abort", wake, { once: true });
          waiting.push(wake);
        });
      }
      if (signal.aborted) {
        waiting.shift()?.(); // The place that woke us is for the next one.
        throw signal.reason;
      }
      free--;
      let given = true;
      return () => {
        if (given) release();
        given = false;
      };
    },
  };
}

/** Resolves once `bytes` are stored under `key`. `onTrouble` hears of each failed attempt. Rejects with the signal's reason, or STORE_FOREIGN. */
export async function uploadSegment(
  context: StoreContext,
  request: {
    readonly key: string;
    readonly bytes: Uint8Array;
    readonly signal: AbortSignal;
    readonly onTrouble: (fault: Fault) => void;
  },
): Promise<void> {
  const { key, bytes, signal, onTrouble } = request;
  const mine = { ...context, signal };
  for (;;) {
    try {
      const other = await createOnce<Uint8Array>(mine, {
        key,
        body: bytes,
        look: async () => {
          const found = await context.store.head(key, { signal });
          return found && (await context.store.get(key, { signal, range: { offset: 0, length: HEADER_BYTES } }));
        },
        isMine: (header) => Buffer.compare(header, bytes.subarray(0, HEADER_BYTES)) === 0,
      });
      if (other === undefined) return;
      throw new Fault("STORE_FOREIGN", `Object "${key}" exists and is not of this writer`, {
        details: { key },
        hint: "Somebody else writes to this bucket: find out who.",
      });
    } catch (error) {
      signal.throwIfAborted();
      if (!isFault(error) || error.code === "STORE_FOREIGN") throw error;
      onTrouble(error);
    }
    await context.clock.sleep(PAUSE_MS, signal);
  }
}
