/**
 * Somebody who looks at the ledger all the time and writes down which record was the last, and when. After the disaster this is what
 * "nothing before the point is missing" is measured against.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { ledgerStatus } from "./ledger.ts";

export interface Sighting {
  /** Wall time before the question was sent: the record was durable at the latest when the answer came, so use `answeredAtMs` as upper bound. */
  readonly askedAtMs: number;
  readonly answeredAtMs: number;
  readonly record: number;
}

export interface Watch {
  readonly sightings: readonly Sighting[];
  stop(): Promise<void>;
}

export function watchLedger(port: number, everyMs = 100): Watch {
  const sightings: Sighting[] = [];
  let stopped = false;
  const done = (async () => {
    while (!stopped) {
      const askedAtMs = Date.now();
      const answer = await ledgerStatus(port, 1_000).catch(() => undefined); // No answer is an observation too: no sighting.
      if (answer !== undefined) sightings.push({ askedAtMs, answeredAtMs: Date.now(), record: answer.b });
      await sleep(everyMs);
    }
  })();
  return {
    sightings,
    stop: async () => {
      stopped = true;
      await done;
    },
  };
}

/** The last record that was surely durable on both disks at `timeMs`: one somebody had already seen by then. */
export function durableAt(sightings: readonly Sighting[], timeMs: number): number {
  return sightings.reduce((best, one) => (one.answeredAtMs <= timeMs ? Math.max(best, one.record) : best), 0);
}

/** No record after this one could be durable at `timeMs`. */
export function possibleAt(sightings: readonly Sighting[], timeMs: number): number {
  return sightings.reduce(
    (best, one) => (one.askedAtMs >= timeMs ? Math.min(best, one.record) : best),
    Number.MAX_SAFE_INTEGER,
  );
}
