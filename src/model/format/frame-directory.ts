/**
 * The frames of one container, by number: which blocks each holds, and how many bytes it takes. Where a frame lies follows by
 * summing up the lengths before it, so a container can be moved without changing anything about its frames.
 *
 * Source: docs/format.md, "Frame directories".
 */
import { CODEC_RAW, CODEC_ZSTD, DIGEST_BYTES, digestCount, MAX_FRAME_BLOCKS } from "../frame-record.ts";
import { BLOCK_SIZE } from "../units.ts";
import type { ByteReader, ByteWriter } from "./byte-cursor.ts";
import { corrupt } from "./fields.ts";

export interface FrameDirectory {
  readonly count: number;
  /** First block on the disk. */
  readonly block: Float64Array;
  /** Plain length in blocks, 1 … 64. */
  readonly blocks: Uint8Array;
  /** Stored length, without the tag. */
  readonly storedBytes: Uint32Array;
  /** CODEC_RAW or CODEC_ZSTD. */
  readonly codec: Uint8Array;
}

export interface FrameDirectoryBuilder {
  readonly count: number;
  /** Returns the frame's number. */
  push(frame: { readonly block: number; readonly blocks: number; readonly codec: number }, storedBytes: number): number;
  /** A view of what was pushed; later pushes may or may not appear in it. */
  view(): FrameDirectory;
}

export function frameDirectoryBuilder(capacity = 256): FrameDirectoryBuilder {
  let block = new Float64Array(capacity);
  let blocks = new Uint8Array(capacity);
  let stored = new Uint32Array(capacity);
  let codec = new Uint8Array(capacity);
  let count = 0;
  const grow = (): void => {
    const old = { block, blocks, stored, codec };
    const size = count * 2;
    block = new Float64Array(size);
    blocks = new Uint8Array(size);
    stored = new Uint32Array(size);
    codec = new Uint8Array(size);
    block.set(old.block);
    blocks.set(old.blocks);
    stored.set(old.stored);
    codec.set(old.codec);
  };
  return {
    get count() {
      return count;
    },
    push(frame, storedBytes) {
      if (count === block.length) grow();
      block[count] = frame.block;
      blocks[count] = frame.blocks;
      stored[count] = storedBytes;
      codec[count] = frame.codec;
      return count++;
    },
    view: () => ({
      count,
      block: block.subarray(0, count),
      blocks: blocks.subarray(0, count),
      storedBytes: stored.subarray(0, count),
      codec: codec.subarray(0, count),
    }),
  };
}

/** Digests that the frames of `directory` have together. */
export function digestBytesOf(directory: FrameDirectory): number {
  let pieces = 0;
  for (const blocks of directory.blocks) pieces += digestCount(blocks);
  return pieces * DIGEST_BYTES;
}

/** Bytes of all frames as stored, tags included. */
export function bodyBytesOf(directory: FrameDirectory, tagBytes: number): number {
  let sum = directory.count * tagBytes;
  for (const storedBytes of directory.storedBytes) sum += storedBytes;
  return sum;
}

/**
 * count, then for each frame: first block relative to the end of the frame before (signed), blocks × 2 + codec, and for
 * a compressed one its stored length.
 */
export function writeFrameDirectory(writer: ByteWriter, directory: FrameDirectory): void {
  writer.varint(directory.count);
  let end = 0;
  for (let frame = 0; frame < directory.count; frame++) {
    const blocks = directory.blocks[frame]!;
    writer.signed(directory.block[frame]! - end);
    writer.varint(blocks * 2 + directory.codec[frame]!);
    if (directory.codec[frame] === CODEC_ZSTD) writer.varint(directory.storedBytes[frame]!);
    end = directory.block[frame]! + blocks;
  }
}

/** `diskBlocks`: no frame may reach beyond. Throws OBJECT_CORRUPT. */
export function readFrameDirectory(reader: ByteReader, diskBlocks: number): FrameDirectory {
  const count = reader.count(2);
  const directory = {
    count,
    block: new Float64Array(count),
    blocks: new Uint8Array(count),
    storedBytes: new Uint32Array(count),
    codec: new Uint8Array(count),
  };
  let end = 0;
  for (let frame = 0; frame < count; frame++) {
    const block = end + reader.signed();
    const shape = reader.varint();
    const codec = shape % 2 === 0 ? CODEC_RAW : CODEC_ZSTD;
    const blocks = (shape - codec) / 2;
    if (blocks < 1 || blocks > MAX_FRAME_BLOCKS) throw corrupt("Index", `frame ${frame} has ${blocks} blocks`);
    if (block < 0 || block + blocks > diskBlocks) throw corrupt("Index", `frame ${frame} lies outside the disk`);
    const storedBytes = codec === CODEC_RAW ? blocks * BLOCK_SIZE : reader.varint();
    if (storedBytes < 1 || storedBytes > blocks * BLOCK_SIZE)
      throw corrupt("Index", `frame ${frame} has ${storedBytes} bytes`);
    directory.block[frame] = block;
    directory.blocks[frame] = blocks;
    directory.storedBytes[frame] = storedBytes;
    directory.codec[frame] = codec;
    end = block + blocks;
  }
  return directory;
}
