import { setTimeout as wait } from "node:timers/promises";
import { Fault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";

/** The machine's clock. An aborted `sleep` throws the signal's reason if that is a Fault, INTERRUPTED otherwise. */
export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  async sleep(ms, signal) {
    try {
      await wait(ms, undefined, signal === undefined ? {} : { signal });
    } catch (error) {
      if (signal?.reason instanceof Fault) throw signal.reason;
      throw new Fault("INTERRUPTED", "The wait was interrupted", { cause: error });
    }
  },
};
