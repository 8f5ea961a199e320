/**
 * The index of a map shard: what every block of 16 GiB of a disk reads as after one commit, and all that is needed to read it.
 *
 * Sections, in the same framing as those of a commit's index:
 *
 * ```
 *   4  extents      as in a commit; the first gap counts from the shard's first block, frames count those of section 8
 *   5  shard        its number
 *   6  branches     names of the branches whose commits are containers here
 *   7  containers   the set of containers that the shard names, each with what opens it and where it lies
 *   8  frames       of each container those that some block refers to: number, place in the object, blocks
 * ```
 *
 * Source: docs/format.md, "A map shard".
 */
import { CODEC_RAW, CODEC_ZSTD, MAX_FRAME_BLOCKS } from "../frame-record.ts";
import { newFrames, SHARD_BLOCKS, type ShardContent, type ShardFrames, SHARDS_MAX, viewFrames } from "../shard-map.ts";
import { BLOCK_SIZE, blockCount } from "../units.ts";
import { byteReader, type ByteReader, byteWriter, type ByteWriter } from "./byte-cursor.ts";
import { type FrameRanges, readExtents, writeExtents } from "./extent-codec.ts";
import { corrupt, fromHex, isName, toHex } from "./fields.ts";
import {
  HEADER_BYTES,
  MAX_BRANCH_ID_LENGTH,
  MAX_CONTAINER_BYTES,
  MAX_INDEX_BYTES,
  parseContainerId,
  SALT_BYTES,
} from "./header.ts";
import { readSections, readWhole, section } from "./index-sections.ts";

/** What a shard says of a container. */
export interface ShardContainer {
  /** 24 hex digits. */
  readonly containerId: string;
  /** 32 bytes: SHA-256 over its header and index. */
  readonly headSha256: Uint8Array;
  readonly salt: Uint8Array;
  readonly dataKeyId: string;
  readonly indexBytes: number;
  /** Bytes of the digests in its index. */
  readonly digestBytes: number;
  /** The commit that it is; undefined for a segment, whose object is named by its id. */
  readonly commit?: { readonly branch: string; readonly seq: number };
}

export interface MapShard extends ShardContent<ShardContainer> {
  readonly shard: number;
}

const EXTENTS = 4;
const SHARD = 5;
const BRANCHES = 6;
const CONTAINERS = 7;
const FRAMES = 8;
const KNOWN: readonly number[] = [EXTENTS, SHARD, BRANCHES, CONTAINERS, FRAMES];

const HEAD_SHA_BYTES = 32;
/** Container id, SHA-256 of its head, salt, data key id. */
const FIXED_BYTES = 12 + HEAD_SHA_BYTES + SALT_BYTES + 8;

/** `tagBytes`: of the frames' seals. `map` is compact (`compactShard`). */
export function encodeMapShard(map: MapShard, tagBytes: number): Uint8Array {
  const writer = byteWriter(1 << 16);
  const containers = Array.from({ length: map.containerCount }, (_, source) => map.container(source));
  const branches = [...new Set(containers.flatMap(({ commit }) => (commit === undefined ? [] : [commit.branch])))];
  section(writer, EXTENTS, (payload) => writeExtents(payload, map.extents, map.shard * SHARD_BLOCKS));
  section(writer, SHARD, (payload) => payload.varint(map.shard));
  section(writer, BRANCHES, (payload) => {
    payload.varint(branches.length);
    for (const branch of branches) payload.text(branch);
  });
  section(writer, CONTAINERS, (payload) => {
    payload.varint(containers.length);
    for (const container of containers) {
      payload.bytes(fromHex(container.containerId, 12, "containerId"));
      payload.bytes(container.headSha256);
      payload.bytes(container.salt);
      payload.bytes(fromHex(container.dataKeyId, 8, "dataKeyId"));
    }
    for (const { indexBytes, digestBytes, commit } of containers) {
      payload.varint(indexBytes);
      payload.varint(digestBytes);
      payload.varint(commit === undefined ? 0 : branches.indexOf(commit.branch) + 1);
      if (commit !== undefined) payload.varint(commit.seq);
    }
  });
  section(writer, FRAMES, (payload) => {
    payload.varint(containers.reduce((sum, _, source) => sum + map.frames(source).count, 0));
    containers.forEach(({ indexBytes }, source) =>
      writeFrames(payload, map.frames(source), { firstOffset: HEADER_BYTES + indexBytes, tagBytes }),
    );
  });
  return writer.view();
}

/**
 * Inverse of `encodeMapShard`. `containers` and `frames` are made when they are asked for: a shard may name thousands.
 * Throws OBJECT_CORRUPT, or FORMAT_UNSUPPORTED for an unknown critical section.
 */
export function decodeMapShard(
  plain: Uint8Array,
  disk: { readonly sizeBytes: number; readonly tagBytes: number },
): MapShard {
  const sections = readSections(byteReader(plain, "Map"), KNOWN);
  const shard = readWhole(sections, SHARD, (reader) => reader.varint());
  if (shard >= SHARDS_MAX) throw corrupt("Map", `shard ${shard} is impossible`);
  const diskBlocks = blockCount(disk.sizeBytes);
  const bounds = { start: shard * SHARD_BLOCKS, end: Math.min((shard + 1) * SHARD_BLOCKS, diskBlocks) };
  const branches = readWhole(sections, BRANCHES, (reader) =>
    Array.from({ length: reader.count(2) }, () => readBranchName(reader)),
  );
  const containers = readWhole(sections, CONTAINERS, (reader) => readContainers(reader, branches));
  const { frames, first } = readWhole(sections, FRAMES, (reader) =>
    readFrames(reader, containers.indexBytes, { ...disk, diskBlocks }),
  );
  const ranges: FrameRanges[] = Array.from({ length: containers.count }, (_, source) =>
    viewFrames(frames, first[source]!, first[source + 1]!),
  );
  const extents = readWhole(sections, EXTENTS, (reader) => readExtents(reader, ranges, bounds));
  return {
    shard,
    extents,
    containerCount: containers.count,
    container: containers.at,
    frames: (source) => viewFrames(frames, first[source]!, first[source + 1]!),
  };
}

function readBranchName(reader: ByteReader): string {
  const name = reader.text();
  if (!isName(name, MAX_BRANCH_ID_LENGTH)) throw corrupt("Map", "a branch has an impossible name");
  return name;
}

function readContainers(reader: ByteReader, branches: readonly string[]) {
  const count = reader.count(FIXED_BYTES + 3);
  const fixed = reader.bytes(count * FIXED_BYTES).slice(); // A view would keep the whole index in memory.
  const indexBytes = new Uint32Array(count);
  const digestBytes = new Uint32Array(count);
  const branch = new Uint16Array(count);
  const seq = new Float64Array(count);
  for (let source = 0; source < count; source++) {
    const id = toHex(fixed.subarray(source * FIXED_BYTES, source * FIXED_BYTES + 12));
    if (parseContainerId(id) === undefined) throw corrupt("Map", `container id "${id}" is impossible`);
    indexBytes[source] = bounded(reader, MAX_INDEX_BYTES);
    digestBytes[source] = bounded(reader, MAX_CONTAINER_BYTES);
    branch[source] = bounded(reader, branches.length);
    if (branch[source]! > 0) seq[source] = reader.varint();
  }
  return {
    count,
    indexBytes,
    at(source: number): ShardContainer {
      const entry = byteReader(fixed.subarray(source * FIXED_BYTES, (source + 1) * FIXED_BYTES), "Map");
      const place = branch[source]!;
      return {
        containerId: toHex(entry.bytes(12)),
        headSha256: entry.bytes(HEAD_SHA_BYTES).slice(),
        salt: entry.bytes(SALT_BYTES).slice(),
        dataKeyId: toHex(entry.bytes(8)),
        indexBytes: indexBytes[source]!,
        digestBytes: digestBytes[source]!,
        ...(place > 0 && { commit: { branch: branches[place - 1]!, seq: seq[source]! } }),
      };
    },
  };
}

/**
 * count, then for each frame: number minus the number behind the frame before, offset minus the end of that frame, first block minus the block
 * behind it (signed), blocks × 2 + codec, and for a compressed one its stored length.
 */
function writeFrames(
  writer: ByteWriter,
  frames: ShardFrames,
  { firstOffset, tagBytes }: { readonly firstOffset: number; readonly tagBytes: number },
): void {
  writer.varint(frames.count);
  let [number, offset, end] = [0, firstOffset, 0];
  for (let frame = 0; frame < frames.count; frame++) {
    const blocks = frames.blocks[frame]!;
    writer.varint(frames.number[frame]! - number);
    writer.varint(frames.offset[frame]! - offset);
    writer.signed(frames.block[frame]! - end);
    writer.varint(blocks * 2 + frames.codec[frame]!);
    if (frames.codec[frame] === CODEC_ZSTD) writer.varint(frames.storedBytes[frame]!);
    number = frames.number[frame]! + 1;
    offset = frames.offset[frame]! + frames.storedBytes[frame]! + tagBytes;
    end = frames.block[frame]! + blocks;
  }
}

/** Frames of all containers in one table; those of container i are `first[i]` … `first[i + 1]` − 1. */
function readFrames(
  reader: ByteReader,
  indexBytes: Uint32Array,
  disk: { readonly diskBlocks: number; readonly tagBytes: number },
): { readonly frames: ShardFrames; readonly first: Uint32Array } {
  const total = reader.count(4);
  const frames = newFrames(total);
  const first = new Uint32Array(indexBytes.length + 1);
  let at = 0;
  indexBytes.forEach((bytes, source) => {
    const count = reader.varint();
    if (count > total - at) throw corrupt("Map", "its frames do not add up");
    let [number, offset, end] = [0, HEADER_BYTES + bytes, 0];
    for (const last = at + count; at < last; at++) {
      number += reader.varint();
      offset += reader.varint();
      const block = end + reader.signed();
      const shape = reader.varint();
      const codec = shape % 2 === 0 ? CODEC_RAW : CODEC_ZSTD;
      const blocks = (shape - codec) / 2;
      const stored = codec === CODEC_RAW ? blocks * BLOCK_SIZE : reader.varint();
      if (blocks < 1 || blocks > MAX_FRAME_BLOCKS || block < 0 || block + blocks > disk.diskBlocks)
        throw corrupt("Map", `frame ${number} of container ${source} lies outside the disk`);
      if (stored < 1 || stored > blocks * BLOCK_SIZE || number > 0xffffffff || offset + stored > MAX_CONTAINER_BYTES)
        throw corrupt("Map", `frame ${number} of container ${source} lies outside its object`);
      frames.number[at] = number;
      frames.offset[at] = offset;
      frames.block[at] = block;
      frames.blocks[at] = blocks;
      frames.storedBytes[at] = stored;
      frames.codec[at] = codec;
      number++;
      offset += stored + disk.tagBytes;
      end = block + blocks;
    }
    first[source + 1] = at;
  });
  if (at !== total) throw corrupt("Map", "its frames do not add up");
  return { frames, first };
}

function bounded(reader: ByteReader, most: number): number {
  const value = reader.varint();
  if (value > most) throw corrupt("Map", `${value} is beyond the limits of the format`);
  return value;
}
