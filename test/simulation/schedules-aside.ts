/**
 * Schedules in threads of their own. Node's test runner follows every promise of the thread that a test file runs in, and a simulation is made of
 * promises: there each schedule costs three times as much. A thread has its own share of the seeds, and a seed is the same schedule wherever it runs.
 */
import { once } from "node:events";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { loadProtocol } from "./protocol.ts";
import { runSchedules, type Outcome } from "./schedule.ts";
import type { WorldOptions } from "./world.ts";

interface Share {
  readonly seeds: readonly number[];
  readonly options: WorldOptions;
  /** The protocol's sources; left out: those of the data mover. */
  readonly folder: string | undefined;
}

/** Runs the seeds in `threads` threads; `see` hears of each outcome, in the order in which they end, and answers whether that is enough. */
export async function runSchedulesAside(
  seeds: readonly number[],
  see: (outcome: Outcome) => "more" | "enough",
  { threads = 1, options = {}, folder }: { threads?: number; options?: WorldOptions; folder?: URL } = {},
): Promise<void> {
  const stopping = new AbortController();
  const workers = Array.from({ length: threads }, (_, thread): Promise<void> => {
    const share: Share = {
      seeds: seeds.filter((_, index) => index % threads === thread),
      options,
      folder: folder?.href,
    };
    return follow(new Worker(new URL(import.meta.url), { workerData: share }), see, stopping);
  });
  try {
    await Promise.all(workers);
  } finally {
    stopping.abort();
    await Promise.allSettled(workers);
  }
}

async function follow(
  worker: Worker,
  see: (outcome: Outcome) => "more" | "enough",
  stopping: AbortController,
): Promise<void> {
  const end = (): void => void worker.terminate();
  stopping.signal.addEventListener("abort", end);
  let failure: { readonly error: unknown } | undefined;
  worker.on("message", (outcome: Outcome) => {
    if (stopping.signal.aborted) return;
    try {
      if (see(outcome) === "more") return;
    } catch (error) {
      failure = { error };
    }
    stopping.abort();
  });
  const [code] = (await once(worker, "exit")) as [number]; // Rejects with what the thread died of.
  if (failure !== undefined) throw failure.error;
  if (code !== 0 && !stopping.signal.aborted) throw new Error(`A thread of the simulation exited with ${code}`);
}

if (!isMainThread) {
  Error.stackTraceLimit = 0; // Faults are frequent here, and nobody reads where they came from.
  const { seeds, options, folder } = workerData as Share;
  const protocol = await loadProtocol(folder === undefined ? undefined : new URL(folder));
  for await (const outcome of runSchedules(protocol, seeds, options)) parentPort!.postMessage(outcome);
}
