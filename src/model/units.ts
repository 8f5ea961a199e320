/**
 * Units, as types. A number that counts blocks cannot be passed where bytes are meant.
 *
 * All of them are whole numbers in 0 … 2^53 − 1; that is 8 PiB for bytes. What crosses a boundary as text is 16 hex digits, which
 * sort like the numbers (object keys).
 */
declare const brand: unique symbol;
type Branded<Name extends string> = number & { readonly [brand]: Name };

export type Bytes = Branded<"Bytes">;
/** Count of blocks. */
export type Blocks = Branded<"Blocks">;
/** Index of a block on a disk: byte offset / BLOCK_SIZE, from the start of the disk (never of a partition). */
export type BlockIndex = Branded<"BlockIndex">;
/** Number of a commit on one branch of one disk; the first is 1. */
export type Seq = Branded<"Seq">;
/** A writer's term on a disk, or the term of a group; the first is 1. */
export type Epoch = Branded<"Epoch">;
/** Number of a barrier in a group; the first is 1. */
export type BarrierNumber = Branded<"BarrierNumber">;
/** Milliseconds since 1970 (UTC). */
export type TimeMs = Branded<"TimeMs">;

/** Bytes in a block: the unit of tracking, of extents and of elision. */
export const BLOCK_SIZE = 4096;

function whole(value: number, name: string): number {
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${name} must be a whole number, got ${value}`);
  return value;
}

export const bytes = (value: number): Bytes => whole(value, "Bytes") as Bytes;
export const blocks = (value: number): Blocks => whole(value, "Blocks") as Blocks;
export const blockIndex = (value: number): BlockIndex => whole(value, "BlockIndex") as BlockIndex;
export const seq = (value: number): Seq => whole(value, "Seq") as Seq;
export const epoch = (value: number): Epoch => whole(value, "Epoch") as Epoch;
export const barrierNumber = (value: number): BarrierNumber => whole(value, "BarrierNumber") as BarrierNumber;
export const timeMs = (value: number): TimeMs => whole(value, "TimeMs") as TimeMs;

/** 16 lower-case hex digits: sorts as text the way the numbers sort. */
export function hex16(value: number): string {
  return whole(value, "hex16").toString(16).padStart(16, "0");
}

/** Inverse of `hex16`; undefined for anything else. */
export function parseHex16(text: string): number | undefined {
  if (!/^[0-9a-f]{16}$/.test(text)) return undefined;
  const value = Number.parseInt(text, 16);
  return Number.isSafeInteger(value) ? value : undefined;
}

/** Blocks that a disk of `size` bytes has; the last one may be partial. */
export function blockCount(size: number): Blocks {
  return blocks(Math.ceil(whole(size, "size") / BLOCK_SIZE));
}
