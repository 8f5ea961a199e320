/** Sorted runs of blocks as plain data: what is cut, swept, shipped. None is empty, none overlaps another. */
import { BlockSet, type BlockRun } from "./block-set.ts";

/** What is in `from` and in none of `without`, on a disk of `size` blocks. */
export function subtractRuns(
  from: readonly BlockRun[],
  without: Iterable<readonly BlockRun[]>,
  size: number,
): BlockRun[] {
  const set = new BlockSet(size);
  for (const run of from) set.add(run.start, run.count);
  for (const runs of without) for (const run of runs) set.delete(run.start, run.count);
  return [...set.runs()];
}

export function countBlocks(runs: readonly BlockRun[]): number {
  return runs.reduce((sum, run) => sum + run.count, 0);
}

/** Pieces of at most `count` blocks, cut at multiples of `count`. */
export function* splitRuns(runs: Iterable<BlockRun>, count: number): Generator<BlockRun> {
  for (const run of runs) {
    const end = run.start + run.count;
    for (let start = run.start; start < end;) {
      const stop = Math.min(end, (Math.floor(start / count) + 1) * count);
      yield { start, count: stop - start };
      start = stop;
    }
  }
}

/** Groups of consecutive runs with at most `blocks` blocks each; a longer run is divided. */
export function* batchRuns(runs: Iterable<BlockRun>, blocks: number): Generator<BlockRun[]> {
  let batch: BlockRun[] = [];
  let room = blocks;
  for (const run of runs) {
    for (let start = run.start, end = run.start + run.count; start < end;) {
      const count = Math.min(room, end - start);
      batch.push({ start, count });
      start += count;
      room -= count;
      if (room > 0) continue;
      yield batch;
      batch = [];
      room = blocks;
    }
  }
  if (batch.length > 0) yield batch;
}
