/**
 * Plain blocks in, frame records out: zero elimination, digests, compression, batches.
 *
 * - Zero blocks at either end of a frame and zero runs of 64 KiB and more inside it become zero runs; shorter ones inside stay (they compress
 *   to nothing, and a frame more costs more than they do). Neighbouring zero runs become one record.
 * - Each started 64 KiB of a frame is hashed once, here, before compression: the digest travels with the frame and is never made again.
 * - A frame that compression does not bring below 95 % is stored raw: decompressing it later would cost more than it saves.
 * - Batches are recycled: `emit` settles when the batch may be overwritten. Nothing is allocated per frame.
 *
 * Compression, hashing and comparing arrive as arguments (`FrameTools`), because they are native and this module is not.
 */
import {
  CODEC_RAW,
  CODEC_ZERO,
  CODEC_ZSTD,
  DIGEST_BYTES,
  FRAME_HEADER_BYTES,
  frameRecordBytes,
  MAX_FRAME_BLOCKS,
  MAX_FRAMES_PAYLOAD_BYTES,
  PIECE_BYTES,
  readFrameRecords,
  writeFrameHeader,
  type FrameCodec,
  type FrameKind,
} from "./frame-record.ts";
import { BLOCK_SIZE } from "./units.ts";

export interface FrameTools {
  /** Compress `plain` to the start of `target`; the compressed length. `target` is large enough for anything (plain + 1/128 + 512). */
  compress(target: Uint8Array, plain: Uint8Array): number;
  /** SHA-256 of `piece` cut to 16 bytes, written to the start of `target`. */
  digest(target: Uint8Array, piece: Uint8Array): void;
  isZero(plain: Uint8Array): boolean;
}

/**
 * How we compress. Names as zstd has them. Level 3 has two tables; a short one for the short matches stays in the processor's first cache. On
 * frames of 256 KiB of a file system: 2.6 % smaller than level 1 for 40 % more time (level 3 as it is: 2.8 % for 55 %).
 */
export const ZSTD_PARAMETERS = { compressionLevel: 3, hashLog: 16, chainLog: 14, minMatch: 4 } as const;

export interface FramePackerOptions {
  readonly tools: FrameTools;
  readonly kind: FrameKind;
  /** Plain blocks of the longest frame; at most MAX_FRAME_BLOCKS. */
  readonly frameBlocks: number;
  /** `false`: frames stay raw, someone on the way compresses them. */
  readonly compress: boolean;
  /** Sends a payload of whole records; settles when `payload` may be overwritten. */
  readonly emit: (payload: Uint8Array, records: number) => Promise<void>;
}

export interface FramePacker {
  /** Whole blocks from `block` on, in any length. `plain` may be overwritten once this settles. */
  add(plain: Uint8Array, block: number): Promise<void>;
  /** Everything that was added has been emitted, and every `emit` has settled. */
  flush(): Promise<void>;
}

const BATCH_BYTES = 1 << 20;
const BATCHES = 3;
const STORED_SHARE_MAX = 0.95;
/** Zero blocks in a row that are worth ending a frame. */
const ZERO_RUN_BLOCKS_MIN = PIECE_BYTES / BLOCK_SIZE;
const ZERO_RUN_BLOCKS_MAX = 2 ** 32 - 1;

export function createFramePacker(options: FramePackerOptions): FramePacker {
  const { tools, kind, frameBlocks, compress, emit } = options;
  if (frameBlocks < 1 || frameBlocks > MAX_FRAME_BLOCKS) throw new RangeError(`Frames of ${frameBlocks} blocks`);
  const recordBytesMax = frameRecordBytes(frameBlocks, compressedBytesMax(frameBlocks * BLOCK_SIZE), CODEC_RAW);
  const free: Batch[] = Array.from({ length: BATCHES }, () => createBatch(BATCH_BYTES + recordBytesMax));
  const sending = new Set<Promise<Batch>>();
  let batch: Batch | undefined;
  let zeroStart = 0;
  let zeroBlocks = 0;

  return {
    async add(plain, block) {
      if (plain.length % BLOCK_SIZE !== 0) throw new RangeError(`Expected whole blocks, got ${plain.length} bytes`);
      const blocks = plain.length / BLOCK_SIZE;
      for (let at = 0; at < blocks;) {
        const zeroes = leadingZeroBlocks(plain, at, blocks);
        if (zeroes > 0) await addZeroes(block + at, zeroes);
        at += zeroes;
        const length = dataBlocks(plain, at, Math.min(blocks, at + frameBlocks));
        if (length > 0) await addData(plain.subarray(at * BLOCK_SIZE, (at + length) * BLOCK_SIZE), block + at);
        at += length;
      }
    },
    async flush() {
      if (zeroBlocks > 0) await putZeroes();
      send();
      await Promise.all(sending);
    },
  };

  function leadingZeroBlocks(plain: Uint8Array, from: number, to: number): number {
    let at = from;
    while (at < to && isZeroBlock(plain, at)) at += 1;
    return at - from;
  }

  /** Blocks from `from` (not zero) up to the next zero run that is worth it, or to `to`; without the zero blocks at the end. */
  function dataBlocks(plain: Uint8Array, from: number, to: number): number {
    let end = from;
    for (let at = from; at < to; at += 1) {
      if (!isZeroBlock(plain, at)) end = at + 1;
      else if (at - end + 1 >= ZERO_RUN_BLOCKS_MIN) break;
    }
    return end - from;
  }

  function isZeroBlock(plain: Uint8Array, index: number): boolean {
    const at = index * BLOCK_SIZE;
    return plain[at] === 0 && tools.isZero(plain.subarray(at, at + BLOCK_SIZE));
  }

  async function addZeroes(block: number, count: number): Promise<void> {
    if (zeroBlocks > 0 && (zeroStart + zeroBlocks !== block || zeroBlocks + count > ZERO_RUN_BLOCKS_MAX))
      await putZeroes();
    if (zeroBlocks === 0) zeroStart = block;
    zeroBlocks += count;
  }

  async function putZeroes(): Promise<void> {
    const current = await room();
    writeFrameHeader(current.view, current.used, {
      block: zeroStart,
      blocks: zeroBlocks,
      codec: CODEC_ZERO,
      kind,
      storedBytes: 0,
    });
    advance(current, FRAME_HEADER_BYTES);
    zeroBlocks = 0;
  }

  async function addData(plain: Uint8Array, block: number): Promise<void> {
    if (zeroBlocks > 0) await putZeroes();
    const current = await room();
    advance(current, writeRecord(current, plain, { block, kind, compress, tools }));
  }

  /** A batch with room for any record. */
  async function room(): Promise<Batch> {
    if (batch !== undefined) return batch;
    if (free.length === 0) await Promise.race(sending);
    batch = free.pop()!; // The race above ended with one of them coming back.
    return batch;
  }

  function advance(current: Batch, bytes: number): void {
    current.used += bytes;
    current.records += 1;
    if (current.used >= BATCH_BYTES) send();
  }

  function send(): void {
    const current = batch;
    if (current === undefined) return;
    batch = undefined;
    const sent = emit(current.bytes.subarray(0, current.used), current.records).then(() => {
      sending.delete(sent);
      current.used = 0;
      current.records = 0;
      free.push(current);
      return current;
    });
    sent.catch(() => undefined); // `room` and `flush` see it: it stays in `sending`.
    sending.add(sent);
  }
}

/**
 * The same records with raw frames compressed where that pays. Digests are copied, not made again. Returns the bytes written to `target`,
 * which must hold `recompressedBytesMax(payload)`.
 * Throws PROTOCOL_INVALID for a payload that is not whole records.
 */
export function compressRecords(payload: Uint8Array, target: Uint8Array, compress: FrameTools["compress"]): number {
  const view = new DataView(target.buffer, target.byteOffset, target.byteLength);
  let used = 0;
  for (const record of readFrameRecords(payload)) {
    const header = { block: record.block, blocks: record.blocks, kind: record.kind };
    const digestsAt = used + FRAME_HEADER_BYTES;
    const dataAt = digestsAt + record.digests.length;
    target.set(record.digests, digestsAt);
    let codec: FrameCodec = record.codec;
    let storedBytes = record.stored.length;
    if (codec === CODEC_RAW) {
      storedBytes = compress(target.subarray(dataAt), record.stored);
      codec = storedBytes < record.stored.length * STORED_SHARE_MAX ? CODEC_ZSTD : CODEC_RAW;
    }
    if (codec !== CODEC_ZSTD || record.codec === CODEC_ZSTD) {
      storedBytes = record.stored.length;
      target.set(record.stored, dataAt);
    }
    writeFrameHeader(view, used, { ...header, codec, storedBytes });
    used = dataAt + storedBytes;
  }
  return used;
}

/** Room that `compressRecords` needs at most, the compressor's own slack included. */
export function recompressedBytesMax(payload: Uint8Array): number {
  return payload.length + compressedBytesMax(MAX_FRAME_BLOCKS * BLOCK_SIZE);
}

/** zstd's own bound, rounded up. */
function compressedBytesMax(plainBytes: number): number {
  return plainBytes + (plainBytes >> 7) + 512;
}

interface Batch {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  used: number;
  records: number;
}

function createBatch(size: number): Batch {
  if (size > MAX_FRAMES_PAYLOAD_BYTES) throw new RangeError(`Batch of ${size} bytes`);
  const bytes = new Uint8Array(size);
  return { bytes, view: new DataView(bytes.buffer), used: 0, records: 0 };
}

/** Digests, data and header of one data record at `batch.used`; its length. */
function writeRecord(
  batch: Batch,
  plain: Uint8Array,
  options: { readonly block: number; readonly kind: FrameKind; readonly compress: boolean; readonly tools: FrameTools },
): number {
  const { block, kind, compress, tools } = options;
  let at = batch.used + FRAME_HEADER_BYTES;
  for (let piece = 0; piece < plain.length; piece += PIECE_BYTES, at += DIGEST_BYTES) {
    tools.digest(batch.bytes.subarray(at, at + DIGEST_BYTES), plain.subarray(piece, piece + PIECE_BYTES));
  }
  let codec: FrameCodec = CODEC_ZSTD;
  let storedBytes = compress ? tools.compress(batch.bytes.subarray(at), plain) : plain.length;
  if (storedBytes >= plain.length * STORED_SHARE_MAX) {
    batch.bytes.set(plain, at);
    storedBytes = plain.length;
    codec = CODEC_RAW;
  }
  writeFrameHeader(batch.view, batch.used, { block, blocks: plain.length / BLOCK_SIZE, codec, kind, storedBytes });
  return at + storedBytes - batch.used;
}
