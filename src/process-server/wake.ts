import { setImmediate } from "node:timers/promises";

/** Wakes a loop that waits for "something changed". Lossy on purpose: who wakes looks at the whole state again. */
export interface Wake {
  wake(): void;
  /** Settles at the next `wake`, after `ms`, or when `signal` aborts. A `wake` since the last `wait` counts. */
  wait(ms: number, signal?: AbortSignal): Promise<void>;
}

export function createWake(): Wake {
  let pending = false;
  let ring: (() => void) | undefined;
  return {
    wake() {
      pending = true;
      ring?.();
    },
    async wait(ms, signal) {
      if (!pending && signal?.aborted !== true && ms > 0) {
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, ms);
          ring = () => {
            clearTimeout(timer);
            signal?.removeEventListener("abort", ring!);
            resolve();
          };
          signal?.addEventListener("abort", ring, { once: true });
        });
        ring = undefined;
      } else await setImmediate(); // A loop that finds work each time must not keep timers and sockets from their turn.
      pending = false;
    },
  };
}
