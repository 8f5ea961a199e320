/**
 * Comparing a swept disk with what its replica has already, so that only blocks that differ are shipped.
 *
 * ```
 *  agent                                   process server                    mover
 *    read a stripe, hash its pieces ── digests of the pieces ──────────────► the sealed index has the same digests, or it reads and hashes
 *    read what differs once more  ◄── per piece: same, other + marks of its blocks, zero, unknown ──┘
 *    ship the blocks that differ
 * ```
 *
 * A *piece* is 64 KiB at a multiple of 64 KiB (less at the ends of a run); a *mark* tells the blocks of a piece that differs apart. One round trip for
 * a stripe, and each lane has several under way.
 *
 * What is judged "same" is not in the commit of the cycle; it stands because the commits before it say it. So the order is all:
 *
 * Invariant: a block is the same only against the state of the branch *on which the cycle's commit is put*, with no commit between.
 *   Proof that the image after the commit is right. Let S be that state, and R what the sweep read of a block in cycle k. R = S, and nothing of it
 *   was shipped by the sweep. If the block was written after R was read, it is in cut k, and the delta says it. If it was not, the source at cut k has R,
 *   which is S, which is what the block reads as after the commit. A delta that the repeat filter leaves out says what S says.
 *   With a cycle j < k between, S is not what the commit is put on: j may hold another version of the block, read from a life of the tap that has ended
 *   since, so that no cut of ours overrides it. "Same" would then bring j's version back. (test/simulation/comparison.test.ts)
 * Invariant: whoever judged holds the commit to it: the mover refuses the commit when the branch went on meanwhile, and the process server
 *   gives a compared cycle up with the stream on which it was compared (it cannot be sent again).
 * Invariant: not knowing means shipping. An older mover, a fault, a damaged object: the piece or the stripe is shipped as if nothing were there.
 *
 * Pieces are compared by the digests of the format: SHA-256 cut to 16 bytes. Marks have 8 bytes, under a salt that the mover draws for each
 * answer after the data was written: nobody can have written two blocks with one mark, and by chance it happens once in 2^64 comparisons.
 */
import { type BlockRun } from "./block-set.ts";
import { DIGEST_BYTES, PIECE_BYTES } from "./frame-record.ts";
import { BLOCK_SIZE } from "./units.ts";

/** Blocks of a piece. */
export const PIECE_BLOCKS = PIECE_BYTES / BLOCK_SIZE;
/** Blocks of a stripe, the unit of work of a lane: 16 MiB. */
export const STRIPE_BLOCKS = 4096;
export const MARK_BYTES = 8;
/** How long an answer may take: the question waits behind all frames of its lane that the WAN has still to take. */
export const COMPARE_MS = 600_000;
export const SALT_BYTES = 16;

/** What the mover says of a piece. */
export const PIECE_SAME = 0;
/** Its blocks are told apart by their marks. */
export const PIECE_OTHER = 1;
/** The replica has zeroes there. */
export const PIECE_ZERO = 2;
/** The replica's copy is damaged, or out of reach. */
export const PIECE_UNKNOWN = 3;

export interface Comparison {
  /** One byte for each piece of the run, in order. */
  readonly pieces: Uint8Array;
  readonly salt: Uint8Array;
  /** Of each PIECE_OTHER, in order: MARK_BYTES for each of its blocks. */
  readonly marks: Uint8Array;
}

/** Writes the first DIGEST_BYTES of the SHA-256 of `bytes` to `target`. */
export type Digest = (target: Uint8Array, bytes: Uint8Array) => void;

/** MARK_BYTES for each block of `plain`. */
export function markBlocks(plain: Uint8Array, salt: Uint8Array, digest: Digest): Uint8Array {
  const count = plain.length / BLOCK_SIZE;
  const salted = new Uint8Array(salt.length + BLOCK_SIZE);
  const whole = new Uint8Array(DIGEST_BYTES);
  const marks = new Uint8Array(count * MARK_BYTES);
  salted.set(salt);
  for (let block = 0; block < count; block += 1) {
    salted.set(plain.subarray(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE), salt.length);
    digest(whole, salted);
    marks.set(whole.subarray(0, MARK_BYTES), block * MARK_BYTES);
  }
  return marks;
}

/** The runs of blocks, counted from `start`, for which `differs` holds. */
export function* runsWhere(
  start: number,
  count: number,
  differs: (index: number) => boolean,
): Generator<BlockRun, void, void> {
  for (let from = 0; from < count; from += 1) {
    if (!differs(from)) continue;
    let end = from + 1;
    while (end < count && differs(end)) end += 1;
    yield { start: start + from, count: end - from };
    from = end;
  }
}

export function sameBytes(one: Uint8Array, oneAt: number, other: Uint8Array, otherAt: number, count: number): boolean {
  for (let at = 0; at < count; at += 1) if (one[oneAt + at] !== other[otherAt + at]) return false;
  return true;
}

/** One bit for each stripe of a disk, the lowest first. */
export function stripeBits(diskBlocks: number): Uint8Array {
  return new Uint8Array(Math.ceil(Math.ceil(diskBlocks / STRIPE_BLOCKS) / 8));
}

export function setStripes(bits: Uint8Array, start: number, count: number): void {
  const last = Math.floor((start + count - 1) / STRIPE_BLOCKS);
  for (let stripe = Math.floor(start / STRIPE_BLOCKS); stripe <= last; stripe += 1)
    bits[stripe >> 3] = bits[stripe >> 3]! | (1 << (stripe & 7));
}

/** Whether the stripe of `block` is set. */
export function hasStripe(bits: Uint8Array, block: number): boolean {
  const stripe = Math.floor(block / STRIPE_BLOCKS);
  return (((bits[stripe >> 3] ?? 0) >> (stripe & 7)) & 1) === 1;
}
