/**
 * Which frame answers for which block when a cycle holds a block more than once.
 *
 * A sweep (initial sync, resync) reads blocks while the machine writes; what the machine wrote until the cut arrives as a delta
 * of the same cycle and is right. So: a delta wins over a sweep, whatever came first; of one kind the later record wins.
 * Shape: the answer is sorted by block, its extents never overlap, and neighbours of one frame are one extent.
 */
import { KIND_DELTA, type FrameKind } from "#model/frame-record.ts";

/** One record of a cycle, and where its data went. */
export interface PlacedFrame {
  readonly block: number;
  readonly blocks: number;
  readonly kind: FrameKind;
  /** Undefined: a run of zeroes. */
  readonly place: FramePlace | undefined;
}

export interface FramePlace {
  /** Which container of the commit, in the order in which they were begun. */
  readonly container: number;
  /** Which frame of that container. */
  readonly frame: number;
}

export interface CycleExtent {
  readonly block: number;
  readonly blocks: number;
  readonly place: FramePlace | undefined;
  /** How many blocks of the frame lie before the extent. */
  readonly blockInFrame: number;
}

/** `frames` in order of arrival. O(n log n): frames are visited by position, the strongest that covers it comes from a heap. */
export function resolveExtents(frames: readonly PlacedFrame[]): CycleExtent[] {
  const strength = frames.map((frame, arrival) => (frame.kind === KIND_DELTA ? frames.length : 0) + arrival);
  const byStart = frames.map((_, index) => index).sort((a, b) => frames[a]!.block - frames[b]!.block);
  const covering = strongestFirst(strength);
  const extents: { block: number; blocks: number; frame: number }[] = [];
  const endOf = (index: number): number => frames[index]!.block + frames[index]!.blocks;

  let at = 0;
  for (let next = 0; next < byStart.length || covering.top() !== undefined; ) {
    let top = covering.top();
    while (top !== undefined && endOf(top) <= at) {
      covering.pop();
      top = covering.top();
    }
    if (top === undefined) {
      if (next >= byStart.length) break;
      at = frames[byStart[next]!]!.block;
    } else {
      const nextStart = next < byStart.length ? frames[byStart[next]!]!.block : Infinity;
      const end = Math.min(endOf(top), nextStart);
      if (end > at) {
        const last = extents.at(-1);
        if (last && last.frame === top && last.block + last.blocks === at) last.blocks += end - at;
        else extents.push({ block: at, blocks: end - at, frame: top });
        at = end;
      }
    }
    while (next < byStart.length && frames[byStart[next]!]!.block === at) covering.push(byStart[next++]!);
  }
  return extents.map(({ block, blocks, frame }) => ({ block, blocks, place: frames[frame]!.place, blockInFrame: block - frames[frame]!.block }));
}

/** A binary heap of indexes, the strongest on top. */
function strongestFirst(strength: readonly number[]) {
  const heap: number[] = [];
  const stronger = (a: number, b: number): boolean => strength[heap[a]!]! > strength[heap[b]!]!;
  const swap = (a: number, b: number): void => {
    [heap[a], heap[b]] = [heap[b]!, heap[a]!];
  };
  return {
    top: (): number | undefined => heap[0],
    push(index: number): void {
      let at = heap.push(index) - 1;
      for (let parent = (at - 1) >> 1; at > 0 && stronger(at, parent); parent = (at - 1) >> 1) {
        swap(at, parent);
        at = parent;
      }
    },
    pop(): void {
      const last = heap.pop();
      if (last === undefined || heap.length === 0) return;
      heap[0] = last;
      for (let at = 0; ; ) {
        const left = at * 2 + 1;
        let best = at;
        if (left < heap.length && stronger(left, best)) best = left;
        if (left + 1 < heap.length && stronger(left + 1, best)) best = left + 1;
        if (best === at) return;
        swap(at, best);
        at = best;
      }
    },
  };
}
