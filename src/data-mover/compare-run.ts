/**
 * Answers which pieces of a run differ from an image. Source: src/model/comparison.ts.
 *
 * Where a piece is exactly one of a frame, the index has its digest and no data is read. Else (several commits meet in it, or frames lie askew)
 * it is read and hashed. What cannot be read is unknown, so that the source ships it and the damage is overwritten: a piece whose object is gone or whose
 * head is damaged, and one that had to be read and did not open. Damage to a frame that nobody had to read is not noticed here.
 */
import { hash } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import { splitRuns } from "#model/block-runs.ts";
import type { BlockRun } from "#model/block-set.ts";
import {
  type Comparison,
  type Digest,
  markBlocks,
  PIECE_BLOCKS,
  PIECE_OTHER,
  PIECE_SAME,
  PIECE_UNKNOWN,
  PIECE_ZERO,
  sameBytes,
  setStripes,
  stripeBits,
} from "#model/comparison.ts";
import { isFault } from "#model/fault.ts";
import { DIGEST_BYTES, PIECE_BYTES } from "#model/frame-record.ts";
import { BLOCK_SIZE, blockCount } from "#model/units.ts";
import type { DiskImage, FrameRun } from "./image.ts";

export interface CompareRequest {
  readonly run: BlockRun;
  /** DIGEST_BYTES for each piece of the run. */
  readonly digests: Uint8Array;
  readonly salt: Uint8Array;
}

/** Pieces that are read at a time. */
const READ_AT_ONCE = 16;
/** Blocks whose map is looked at between two turns of the event loop: 1 GiB. */
const MAP_STEP_BLOCKS = 1 << 18;

/** Throws what is no damage: STORE_…, KEY_MISSING. */
export async function compareRun(image: DiskImage, request: CompareRequest): Promise<Comparison> {
  const pieces = [...splitRuns([request.run], PIECE_BLOCKS)];
  const states = new Uint8Array(pieces.length);
  const marks: (Uint8Array | undefined)[] = [];
  for (let from = 0; from < pieces.length; from += READ_AT_ONCE) {
    const some = pieces.slice(from, from + READ_AT_ONCE);
    const judged = await Promise.all(
      some.map((piece, index) =>
        judge(image, piece, {
          digest: request.digests.subarray((from + index) * DIGEST_BYTES, (from + index + 1) * DIGEST_BYTES),
          salt: request.salt,
        }),
      ),
    );
    judged.forEach((one, index) => {
      states[from + index] = one.state;
      marks.push(one.marks);
    });
  }
  return { pieces: states, salt: request.salt, marks: Buffer.concat(marks.filter((some) => some !== undefined)) };
}

/** The stripes in which the image has data. Throws what `DiskImage.dataRuns` throws. */
export async function storedStripes(image: DiskImage): Promise<Uint8Array> {
  const blocks = blockCount(image.sizeBytes);
  const bits = stripeBits(blocks);
  for (let from = 0; from < blocks; from += MAP_STEP_BLOCKS) {
    if (from > 0) await nextTurn();
    for (const run of await image.dataRuns(from, Math.min(MAP_STEP_BLOCKS, blocks - from)))
      setStripes(bits, run.start, run.length);
  }
  return bits;
}

async function judge(
  image: DiskImage,
  piece: BlockRun,
  source: { readonly digest: Uint8Array; readonly salt: Uint8Array },
): Promise<{ readonly state: number; readonly marks?: Uint8Array }> {
  const same = (digest: Uint8Array): boolean => sameBytes(digest, 0, source.digest, 0, DIGEST_BYTES);
  try {
    const runs = await image.dataRuns(piece.start, piece.count);
    if (runs.length === 0) return { state: same(zeroDigest(piece.count)) ? PIECE_SAME : PIECE_ZERO };
    const known = await knownDigest(image, piece, runs);
    if (known !== undefined && same(known)) return { state: PIECE_SAME };
    const plain = await readPiece(image, piece);
    if (known === undefined && same(digestOf(plain))) return { state: PIECE_SAME };
    return { state: PIECE_OTHER, marks: markBlocks(plain, source.salt, sha256Cut) };
  } catch (error) {
    if (!isFault(error, "OBJECT_CORRUPT") && !isFault(error, "OBJECT_MISSING")) throw error;
    return { state: PIECE_UNKNOWN };
  }
}

/** What the index says of a piece that is exactly one of a frame; undefined: only reading it tells. */
async function knownDigest(
  image: DiskImage,
  piece: BlockRun,
  runs: readonly FrameRun[],
): Promise<Uint8Array | undefined> {
  const run = runs[0]!; // There is data.
  if (runs.length > 1 || run.length < piece.count) return undefined;
  const { block, blocks } = run.container.place.directory;
  const at = piece.start - block[run.frame]!;
  const pieceBlocks = Math.min(PIECE_BLOCKS, blocks[run.frame]! - at);
  return at % PIECE_BLOCKS === 0 && piece.count === pieceBlocks ? image.pieceDigest(run, at / PIECE_BLOCKS) : undefined;
}

/** Whole blocks; what lies behind the end of the disk is zero, as it was when the source hashed it. */
async function readPiece(image: DiskImage, piece: BlockRun): Promise<Uint8Array> {
  const plain = new Uint8Array(piece.count * BLOCK_SIZE);
  const offset = piece.start * BLOCK_SIZE;
  await image.read(plain.subarray(0, Math.min(plain.length, image.sizeBytes - offset)), offset);
  return plain;
}

const sha256Cut: Digest = (target, bytes) => target.set(hash("sha256", bytes, "buffer").subarray(0, DIGEST_BYTES));

function digestOf(plain: Uint8Array): Uint8Array {
  const digest = new Uint8Array(DIGEST_BYTES);
  sha256Cut(digest, plain);
  return digest;
}

const zeroDigests: (Uint8Array | undefined)[] = [];

function zeroDigest(blocks: number): Uint8Array {
  return (zeroDigests[blocks] ??= digestOf(new Uint8Array(PIECE_BYTES).subarray(0, blocks * BLOCK_SIZE)));
}
