/**
 * Frame records: how runs of blocks travel from the agent to the master target.
 *
 * A payload of a `frames` notice is a sequence of records, little-endian:
 *
 * ```
 *  0  u32  stored length   bytes that follow the digests; 0 for a zero run
 *  4  u32  plain blocks    length of the run in blocks (the last block of a disk may be partial: then `last bytes` says how much)
 *  8  u48  block index     first block, from the start of the disk
 * 14  u8   codec           0 raw, 1 zstd, 2 zero (no digests, no data)
 * 15  u8   kind            0 delta (as of the cut), 1 sweep (read live during the cycle; a delta block of the same cycle overrides it)
 * 16  …    digests         16 bytes for each started 64 KiB of plain data: SHA-256 cut to 128 bits, of that piece
 *  …  …    stored data
 * ```
 *
 * A partial last block of a disk is padded with zero bytes to a whole block before it is hashed or compressed.
 * Limits: a run with data has at most MAX_FRAME_BLOCKS blocks; a zero run at most 2^32 − 1.
 * Source: docs/protocol.md, "Frame records".
 */
import { Fault } from "./fault.ts";
import { BLOCK_SIZE } from "./units.ts";

export const FRAME_HEADER_BYTES = 16;
export const DIGEST_BYTES = 16;
/** Plain bytes covered by one digest. */
export const PIECE_BYTES = 65536;
/** 256 KiB: the largest frame. */
export const MAX_FRAME_BLOCKS = 64;
/** Largest `frames` payload a receiver accepts. */
export const MAX_FRAMES_PAYLOAD_BYTES = 2 << 20;

export const CODEC_RAW = 0;
export const CODEC_ZSTD = 1;
export const CODEC_ZERO = 2;
export type FrameCodec = typeof CODEC_RAW | typeof CODEC_ZSTD | typeof CODEC_ZERO;

export const KIND_DELTA = 0;
export const KIND_SWEEP = 1;
export type FrameKind = typeof KIND_DELTA | typeof KIND_SWEEP;

export interface FrameRecord {
  readonly block: number;
  readonly blocks: number;
  readonly codec: FrameCodec;
  readonly kind: FrameKind;
  /** Concatenated digests, 16 bytes per piece; empty for a zero run. A view into the payload. */
  readonly digests: Uint8Array;
  /** A view into the payload. */
  readonly stored: Uint8Array;
}

export function digestCount(plainBlocks: number): number {
  return Math.ceil((plainBlocks * BLOCK_SIZE) / PIECE_BYTES);
}

/** Bytes of a record with `plainBlocks` and `storedBytes`. */
export function frameRecordBytes(plainBlocks: number, storedBytes: number, codec: FrameCodec): number {
  return FRAME_HEADER_BYTES + (codec === CODEC_ZERO ? 0 : digestCount(plainBlocks) * DIGEST_BYTES) + storedBytes;
}

/**
 * Write the header of a record at `at`; digests and data are the caller's to place behind it.
 * Throws RangeError for a run or a length out of bounds: a bug in the caller.
 */
export function writeFrameHeader(
  view: DataView,
  at: number,
  frame: {
    readonly block: number;
    readonly blocks: number;
    readonly codec: FrameCodec;
    readonly kind: FrameKind;
    readonly storedBytes: number;
  },
): void {
  if (frame.blocks < 1 || (frame.codec !== CODEC_ZERO && frame.blocks > MAX_FRAME_BLOCKS))
    throw new RangeError(`Frame of ${frame.blocks} blocks`);
  view.setUint32(at, frame.storedBytes, true);
  view.setUint32(at + 4, frame.blocks, true);
  view.setUint32(at + 8, frame.block % 2 ** 32, true);
  view.setUint16(at + 12, Math.floor(frame.block / 2 ** 32), true);
  view.setUint8(at + 14, frame.codec);
  view.setUint8(at + 15, frame.kind);
}

/** Inverse of writing. Throws PROTOCOL_INVALID for anything that does not fit exactly. Views into `payload`, nothing is copied. */
export function* readFrameRecords(payload: Uint8Array): Generator<FrameRecord> {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  let at = 0;
  while (at < payload.length) {
    if (payload.length - at < FRAME_HEADER_BYTES) throw invalid("header is cut off", at);
    const storedBytes = view.getUint32(at, true);
    const blocks = view.getUint32(at + 4, true);
    const block = view.getUint32(at + 8, true) + view.getUint16(at + 12, true) * 2 ** 32;
    const codec = view.getUint8(at + 14);
    const kind = view.getUint8(at + 15);
    if (codec !== CODEC_RAW && codec !== CODEC_ZSTD && codec !== CODEC_ZERO) throw invalid(`codec ${codec}`, at);
    if (kind !== KIND_DELTA && kind !== KIND_SWEEP) throw invalid(`kind ${kind}`, at);
    if (blocks < 1 || (codec !== CODEC_ZERO && blocks > MAX_FRAME_BLOCKS)) throw invalid(`run of ${blocks} blocks`, at);
    if (codec === CODEC_ZERO && storedBytes !== 0) throw invalid("zero run with data", at);
    if (codec === CODEC_RAW && storedBytes !== blocks * BLOCK_SIZE) throw invalid("raw run of another length", at);
    if (codec === CODEC_ZSTD && (storedBytes < 1 || storedBytes >= blocks * BLOCK_SIZE))
      throw invalid("compressed run of no use", at);
    const digestsAt = at + FRAME_HEADER_BYTES;
    const dataAt = digestsAt + (codec === CODEC_ZERO ? 0 : digestCount(blocks) * DIGEST_BYTES);
    const end = dataAt + storedBytes;
    if (end > payload.length) throw invalid("record is cut off", at);
    yield {
      block,
      blocks,
      codec,
      kind,
      digests: payload.subarray(digestsAt, dataAt),
      stored: payload.subarray(dataAt, end),
    };
    at = end;
  }
}

function invalid(what: string, at: number): Fault {
  return new Fault("PROTOCOL_INVALID", `Frame record at ${at}: ${what}`, { details: { at } });
}
