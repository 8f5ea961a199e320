/**
 * Extent map: for each block of a disk, where its content is. A sorted set of runs in typed arrays, 20 bytes a run.
 *
 * Invariants:
 * - `start` ascends and runs never overlap; what lies between two runs was never written (reads as zeroes);
 * - `source` is the number of a container, or ZERO or TRIM; `frame` counts within that container. The block inside the frame
 *   follows from the frame's own first block, so splitting a run never changes these;
 * - maps are values: `overlay` makes a new one.
 *
 * Many maps are laid over each other like a merge sort (`overlayAll`), so a history of n runs costs n log n, not n².
 *
 * Source: docs/format.md, "Extents".
 */

/** Reads as zeroes because zeroes were written. */
export const SOURCE_ZERO = 0xffffffff;
/** Reads as zeroes because it was trimmed. */
export const SOURCE_TRIM = 0xfffffffe;
/** Sources below this are containers. */
export const SOURCE_LIMIT = 0xfffffff0;

/** Longest run in blocks. */
export const MAX_RUN_BLOCKS = 0xffffffff;

export interface ExtentMap {
  readonly count: number;
  readonly start: Float64Array;
  readonly length: Uint32Array;
  readonly source: Uint32Array;
  readonly frame: Uint32Array;
}

/** Appends in ascending order; `finish` yields the map and ends the builder. */
export interface ExtentMapBuilder {
  readonly count: number;
  push(start: number, length: number, source: number, frame: number): void;
  finish(): ExtentMap;
}

export function extentMapBuilder(capacity = 16): ExtentMapBuilder {
  let start = new Float64Array(capacity);
  let length = new Uint32Array(capacity);
  let source = new Uint32Array(capacity);
  let frame = new Uint32Array(capacity);
  let count = 0;
  let end = 0;
  const resize = (size: number): void => {
    const keep = Math.min(size, count);
    const old = { start, length, source, frame };
    start = new Float64Array(size);
    length = new Uint32Array(size);
    source = new Uint32Array(size);
    frame = new Uint32Array(size);
    start.set(old.start.subarray(0, keep));
    length.set(old.length.subarray(0, keep));
    source.set(old.source.subarray(0, keep));
    frame.set(old.frame.subarray(0, keep));
  };
  return {
    get count() {
      return count;
    },
    push(from, blocks, where, number) {
      if (from < end || blocks < 1 || blocks > MAX_RUN_BLOCKS)
        throw new RangeError(`Run of ${blocks} blocks at ${from}, behind ${end}`);
      if (count === start.length) resize(Math.max(16, count * 2));
      start[count] = from;
      length[count] = blocks;
      source[count] = where;
      frame[count] = number;
      count++;
      end = from + blocks;
    },
    finish() {
      // Long-lived maps do not carry unused room; short ones are not worth a copy.
      if (start.length > 1024 && count < start.length * 0.9) resize(count);
      return { count, start, length, source, frame };
    },
  };
}

export const EMPTY_MAP: ExtentMap = extentMapBuilder(0).finish();

/** `newer` over `older`: a new map, in which blocks of `newer` win. */
export function overlay(older: ExtentMap, newer: ExtentMap): ExtentMap {
  if (older.count === 0) return newer;
  if (newer.count === 0) return older;
  const out = extentMapBuilder(older.count + newer.count + 16);
  let index = 0;
  let from = 0; // Blocks of `older` before this are dealt with.
  const copyOlder = (limit: number): void => {
    while (index < older.count) {
      const start = Math.max(older.start[index]!, from);
      const end = older.start[index]! + older.length[index]!;
      if (start >= limit) return;
      const stop = Math.min(end, limit);
      if (stop > start) out.push(start, stop - start, older.source[index]!, older.frame[index]!);
      if (end > limit) return;
      index++;
    }
  };
  for (let next = 0; next < newer.count; next++) {
    const start = newer.start[next]!;
    copyOlder(start);
    out.push(start, newer.length[next]!, newer.source[next]!, newer.frame[next]!);
    from = start + newer.length[next]!;
    while (index < older.count && older.start[index]! + older.length[index]! <= from) index++;
  }
  copyOlder(Infinity);
  return out.finish();
}

/** All of `maps`, oldest first, laid over each other. */
export function overlayAll(maps: readonly ExtentMap[]): ExtentMap {
  let level = maps;
  while (level.length > 1) {
    const above: ExtentMap[] = [];
    for (let index = 0; index < level.length; index += 2) {
      const newer = level[index + 1];
      above.push(newer === undefined ? level[index]! : overlay(level[index]!, newer));
    }
    level = above;
  }
  return level[0] ?? EMPTY_MAP;
}

/**
 * Overlays maps as they come, oldest first, and keeps few of them: each is laid over those before it once it has grown as large,
 * so that memory stays near that of the result.
 */
export function overlayStack(): { add(map: ExtentMap): void; finish(): ExtentMap } {
  const stack: ExtentMap[] = [];
  return {
    add(map) {
      stack.push(map);
      while (stack.length > 1 && stack.at(-1)!.count * 2 >= stack.at(-2)!.count) {
        const newer = stack.pop()!;
        stack.push(overlay(stack.pop()!, newer));
      }
    },
    finish() {
      // Newest first, so the large old maps are copied once.
      let map = EMPTY_MAP;
      for (let older = stack.pop(); older !== undefined; older = stack.pop()) map = overlay(older, map);
      return map;
    },
  };
}

export interface Run {
  readonly start: number;
  readonly length: number;
  /** Undefined: never written. */
  readonly source: number | undefined;
  readonly frame: number;
}

/** Runs that cover [start, start + length) in order and without gaps. */
export function* runsOf(map: ExtentMap, start: number, length: number): Generator<Run> {
  const end = start + length;
  let at = start;
  for (let index = firstEndingAfter(map, start); at < end; index++) {
    const next = index < map.count ? map.start[index]! : Infinity;
    if (next > at) {
      const stop = Math.min(next, end);
      yield { start: at, length: stop - at, source: undefined, frame: 0 };
      at = stop;
      if (at >= end) return;
    }
    const stop = Math.min(next + map.length[index]!, end);
    yield { start: at, length: stop - at, source: map.source[index]!, frame: map.frame[index]! };
    at = stop;
  }
}

/** The part of a map in [start, end), clipped. The rest of the map is not copied. */
export function sliceMap(map: ExtentMap, start: number, end: number): ExtentMap {
  const first = firstEndingAfter(map, start);
  const behind = firstEndingAfter(map, end - 1);
  // The run at `behind`, if there is one, reaches to `end` or beyond it; it may also begin there.
  const count = behind - first + (behind < map.count && map.start[behind]! < end ? 1 : 0);
  if (count === 0) return EMPTY_MAP;
  const out = extentMapBuilder(count);
  for (let index = first; index < first + count; index++) {
    const from = Math.max(map.start[index]!, start);
    const to = Math.min(map.start[index]! + map.length[index]!, end);
    out.push(from, to - from, map.source[index]!, map.frame[index]!);
  }
  return out.finish();
}

/** Index of the first run that ends after `block`; `count` when there is none. */
export function firstEndingAfter(map: ExtentMap, block: number): number {
  let low = 0;
  let high = map.count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (map.start[middle]! + map.length[middle]! > block) high = middle;
    else low = middle + 1;
  }
  return low;
}
