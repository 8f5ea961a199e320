/**
 * Sweeps the unsynced blocks of a disk with several lanes, for a bounded time.
 *
 * Invariant: when `sweepDisk` returns, no lane reads any more, and all frames of what it returns have arrived at the process server. Only then is
 * the cut of the cycle taken, so that every block that changed after it was read is in the cut.
 */
import { splitRuns } from "#model/block-runs.ts";
import type { BlockRun } from "#model/block-set.ts";
import { STRIPE_BLOCKS } from "#model/comparison.ts";
import { COMPARED, NEXT_STRIPE, SAME, STOP, type SweepLane, type SweepTask } from "./sweep-lane.ts";

export interface SweepRequest {
  readonly groupId: string;
  readonly diskId: string;
  readonly cycle: number;
  readonly image: string;
  readonly sizeBytes: number;
  readonly compress: boolean;
  readonly runs: readonly BlockRun[];
  /** Stripes of the disk that the replica has; see `SweepTask`. */
  readonly stored: Uint8Array | undefined;
}

export interface Swept {
  readonly runs: readonly BlockRun[];
  /** Of them, what was compared with the replica, and what the replica had already. */
  readonly comparedBlocks: number;
  readonly sameBlocks: number;
}

/** What was swept: the first runs of the request. `stop` ends it after the stripes at hand. Throws the first fault of a lane, after all have ended. */
export async function sweepDisk(
  lanes: readonly Pick<SweepLane, "run">[],
  request: SweepRequest,
  stop: AbortSignal,
): Promise<Swept> {
  const { runs, ...rest } = request;
  const pieces = [...splitRuns(runs, STRIPE_BLOCKS)];
  const stripes = new Float64Array(new SharedArrayBuffer(pieces.length * 16));
  pieces.forEach((piece, index) => stripes.set([piece.start, piece.count], index * 2));
  const control = new Int32Array(new SharedArrayBuffer(16));
  const task: SweepTask = { ...rest, stripes, control };
  const halt = (): void => void Atomics.store(control, STOP, 1);
  if (stop.aborted) halt();
  stop.addEventListener("abort", halt, { once: true });
  try {
    const outcomes = await Promise.allSettled(
      lanes.map((lane) =>
        lane.run(task).catch((error: unknown) => {
          halt();
          throw error;
        }),
      ),
    );
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
    return {
      runs: pieces.slice(0, Math.min(Atomics.load(control, NEXT_STRIPE), pieces.length)),
      comparedBlocks: Atomics.load(control, COMPARED),
      sameBlocks: Atomics.load(control, SAME),
    };
  } finally {
    stop.removeEventListener("abort", halt);
  }
}
