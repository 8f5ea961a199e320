/**
 * Shards: the extent map of a disk in parts of 16 GiB, each with the containers and frames that its extents name, and nothing else.
 *
 * A disk of any size is opened, read and flattened one shard at a time, and a shard in which nothing changed is used again as it is.
 *
 * Invariants:
 * - extents lie inside the shard; a frame that crosses the border is named by both shards, each for its own part;
 * - `source` counts the containers of this shard, `frame` the frames that the shard keeps of that container;
 * - `compactShard` keeps every answer of the map, and names no container or frame that no block refers to.
 *
 * Source: docs/format.md, "A map shard".
 */
import { type ExtentMap, extentMapBuilder, SOURCE_LIMIT } from "./extent-map.ts";
import type { FrameDirectory } from "./format/frame-directory.ts";
import { BLOCK_SIZE } from "./units.ts";

/** 16 GiB. */
export const SHARD_BLOCKS: number = 2 ** 34 / BLOCK_SIZE;
/** A shard's number has four hex digits in names. */
export const SHARDS_MAX = 0x10000;

/** Frames of one container that a shard keeps, ascending by number. */
export interface ShardFrames extends FrameDirectory {
  /** Number in the container, under which the frame is sealed. */
  readonly number: Uint32Array;
  /** Where it begins in the object. */
  readonly offset: Uint32Array;
}

/** `Container`: what is known of one, by whoever asks. */
export interface ShardContent<Container> {
  readonly extents: ExtentMap;
  readonly containerCount: number;
  container(source: number): Container;
  frames(source: number): ShardFrames;
}

export function shardOf(block: number): number {
  return Math.floor(block / SHARD_BLOCKS);
}

/** Numbers of the shards in which `map` has extents, ascending. */
export function shardsIn(map: ExtentMap): number[] {
  const shards: number[] = [];
  for (let index = 0; index < map.count; index++) {
    const last = shardOf(map.start[index]! + map.length[index]! - 1);
    for (let shard = Math.max(shardOf(map.start[index]!), (shards.at(-1) ?? -1) + 1); shard <= last; shard++)
      shards.push(shard);
  }
  return shards;
}

/** The same map with what it refers to and nothing more; neighbours with one answer are joined. */
export function compactShard<Container>(content: ShardContent<Container>): ShardContent<Container> {
  const { extents } = content;
  const used: (Uint8Array | undefined)[] = [];
  for (let index = 0; index < extents.count; index++) {
    const source = extents.source[index]!;
    if (source < SOURCE_LIMIT)
      (used[source] ??= new Uint8Array(content.frames(source).count))[extents.frame[index]!] = 1;
  }

  const sources: number[] = [];
  const kept: ShardFrames[] = [];
  const ordinals = new Map<number, { readonly ordinal: number; readonly renumbered: Uint32Array }>();
  used.forEach((flags, source) => {
    if (flags === undefined) return;
    const renumbered = new Uint32Array(flags.length);
    let count = 0;
    flags.forEach((flag, frame) => void (renumbered[frame] = flag === 1 ? count++ : 0));
    ordinals.set(source, { ordinal: sources.push(source) - 1, renumbered });
    kept.push(pickFrames(content.frames(source), flags, count));
  });

  const joined = extentMapBuilder(extents.count);
  let open: { start: number; length: number; source: number; frame: number } | undefined;
  const close = (): void => void (open && joined.push(open.start, open.length, open.source, open.frame));
  for (let index = 0; index < extents.count; index++) {
    const start = extents.start[index]!;
    const length = extents.length[index]!;
    const named = ordinals.get(extents.source[index]!);
    const source = named?.ordinal ?? extents.source[index]!;
    const frame = named === undefined ? 0 : named.renumbered[extents.frame[index]!]!;
    if (open?.source === source && open.frame === frame && open.start + open.length === start) open.length += length;
    else {
      close();
      open = { start, length, source, frame };
    }
  }
  close();
  return {
    extents: joined.finish(),
    containerCount: sources.length,
    container: (ordinal) => content.container(sources[ordinal]!),
    frames: (ordinal) => kept[ordinal]!,
  };
}

function pickFrames(frames: ShardFrames, flags: Uint8Array, count: number): ShardFrames {
  if (count === frames.count) return frames;
  const picked = newFrames(count);
  let to = 0;
  flags.forEach((flag, from) => {
    if (flag !== 1) return;
    for (const field of FRAME_FIELDS) picked[field][to] = frames[field][from]!;
    to++;
  });
  return picked;
}

const FRAME_FIELDS = ["number", "offset", "block", "blocks", "storedBytes", "codec"] as const;

export function newFrames(count: number): ShardFrames {
  return {
    count,
    number: new Uint32Array(count),
    offset: new Uint32Array(count),
    block: new Float64Array(count),
    blocks: new Uint8Array(count),
    storedBytes: new Uint32Array(count),
    codec: new Uint8Array(count),
  };
}

/** Frames `first` … `end` − 1 as a view. */
export function viewFrames(frames: ShardFrames, first: number, end: number): ShardFrames {
  return {
    count: end - first,
    number: frames.number.subarray(first, end),
    offset: frames.offset.subarray(first, end),
    block: frames.block.subarray(first, end),
    blocks: frames.blocks.subarray(first, end),
    storedBytes: frames.storedBytes.subarray(first, end),
    codec: frames.codec.subarray(first, end),
  };
}

/** The same frames in arrays of their own: a view keeps all of its buffer in memory, and takes it along to another thread. */
export function copyFrames(frames: ShardFrames): ShardFrames {
  const copy = newFrames(frames.count);
  for (const field of FRAME_FIELDS) copy[field].set(frames[field]);
  return copy;
}

/** All frames of a container; the first begins at `firstOffset`, and each has `tagBytes` behind it. */
export function allFrames(directory: FrameDirectory, firstOffset: number, tagBytes: number): ShardFrames {
  const number = new Uint32Array(directory.count);
  const offset = new Uint32Array(directory.count);
  let at = firstOffset;
  for (let frame = 0; frame < directory.count; frame++) {
    number[frame] = frame;
    offset[frame] = at;
    at += directory.storedBytes[frame]! + tagBytes;
  }
  return { ...directory, number, offset };
}
