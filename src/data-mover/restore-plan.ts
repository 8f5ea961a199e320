/**
 * In which order an image is copied: container by container, as they lie in the store, not block by block as they lie on the disk.
 *
 * A container is then fetched once and in large pieces, whatever the history did to its blocks, and the image file is written at random
 * offsets instead: a file system takes those better than an S3 server takes small reads. That order holds within a window of the disk, so that
 * memory does not grow with the disk.
 *
 * The jobs of a window are the same whenever the image is opened, so a restore that was killed can say which of them are done.
 */
import { BLOCK_SIZE } from "#model/units.ts";
import type { FrameRun } from "./image.ts";
import type { ContainerPlace } from "./image-container.ts";

/** A part of one container: what of it goes where. Plain data: it may be handed to another thread. */
export interface RestoreJob {
  readonly place: ContainerPlace;
  /** Runs in the order of the frames: number of the frame, first block on the disk, blocks. */
  readonly frame: Uint32Array;
  readonly start: Float64Array;
  readonly length: Uint32Array;
  /** What it adds to the image. */
  readonly plainBytes: number;
}

/** 4 GiB: some ten thousand frames. */
export const WINDOW_BLOCKS = (4 * 2 ** 30) / BLOCK_SIZE;
/** Stored bytes of a job at most: what a lane holds in memory, and about as much as a container has. */
const JOB_BYTES = 16 << 20;

/** `runs` in any order. */
export function planRestore(runs: readonly FrameRun[]): RestoreJob[] {
  const ordered = runs.toSorted(
    (a, b) => compareText(a.container.place.key, b.container.place.key) || a.frame - b.frame || a.start - b.start,
  );
  const jobs: RestoreJob[] = [];
  for (let at = 0; at < ordered.length;) {
    const first = ordered[at]!;
    let end = at + 1;
    for (; end < ordered.length; end++) {
      const { container, frame } = ordered[end]!;
      if (container !== first.container) break;
      if (frame !== ordered[end - 1]!.frame && container.rangeOf(first.frame, frame).length > JOB_BYTES) break;
    }
    jobs.push(jobOf(ordered.slice(at, end)));
    at = end;
  }
  return jobs;
}

/** By name: it says nothing of where the image was opened from, or of what was read of it before. */
function compareText(one: string, other: string): number {
  return one < other ? -1 : one > other ? 1 : 0;
}

function jobOf(runs: readonly FrameRun[]): RestoreJob {
  return {
    place: runs[0]!.container.place,
    frame: Uint32Array.from(runs, (run) => run.frame),
    start: Float64Array.from(runs, (run) => run.start),
    length: Uint32Array.from(runs, (run) => run.length),
    plainBytes: runs.reduce((sum, run) => sum + run.length, 0) * BLOCK_SIZE,
  };
}
