/** The demo's one way to wait. */
import { setTimeout as sleep } from "node:timers/promises";
import { Fault, isFault } from "#model/fault.ts";

/** Ask until there is an answer. Throws TIMED_OUT; a retryable fault while asking counts as no answer. */
export async function eventually<T>(what: string, timeoutMs: number, ask: () => Promise<T | undefined>): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  let last: unknown;
  for (;;) {
    try {
      const answer = await ask();
      if (answer !== undefined) return answer;
    } catch (error) {
      if (!isFault(error) || !error.retryable) throw error;
      last = error;
    }
    if (performance.now() > deadline) {
      throw new Fault("TIMED_OUT", `Waited ${Math.round(timeoutMs / 1000)} s for ${what}`, {
        cause: last,
        hint: "Look into the logs below the state folder, and at the Temporal Web UI",
      });
    }
    await sleep(150);
  }
}
