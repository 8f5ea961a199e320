/**
 * The index of a container: what it holds and, for a commit, all that is needed to open the disk at it.
 *
 * A sequence of sections, each `id varint, length varint, payload`. Ids below 128 are critical: a reader that does not know one
 * refuses. From 128 on they may be skipped. The whole is compressed with zstd, then sealed as one unit (docs/format.md, "Sealing").
 *
 * ```
 *   1  segments     containers of this commit beside this object; ordinal i is the i-th, ordinal 0 this object
 *   2  directories  frame directory of ordinal 0, then of each segment
 *   3  digests      of the own frames: 16 bytes for each 64 KiB piece, in the order of the frames
 *   4  extents      what each block of the disk reads as after this commit
 * 128  tracker      how far the source's change tracking was
 * 129  barrier      the group's cut that this commit belongs to
 * 130  sync         how much of the disk has still to be read
 * ```
 */
import type { ExtentMap } from "../extent-map.ts";
import { blockCount } from "../units.ts";
import { byteReader, type ByteReader, byteWriter, type ByteWriter } from "./byte-cursor.ts";
import { readExtents, writeExtents } from "./extent-codec.ts";
import { corrupt, fromHex, toHex } from "./fields.ts";
import {
  bodyBytesOf,
  digestBytesOf,
  type FrameDirectory,
  readFrameDirectory,
  writeFrameDirectory,
} from "./frame-directory.ts";
import { type ContainerHeader, parseContainerId, SALT_BYTES } from "./header.ts";
import { readLeading, readSections, readWhole, section } from "./index-sections.ts";

/** A container that a commit refers to. Its object is named by its id (`segmentName`); its frames begin at 256 + `indexBytes`. */
export interface SegmentReference {
  readonly containerId: string;
  /** SHA-256 over its header and index. */
  readonly headSha256: Uint8Array;
  readonly salt: Uint8Array;
  readonly dataKeyId: string;
  readonly indexBytes: number;
  readonly bodyBytes: number;
}

export interface TrackerMark {
  readonly bootId: string;
  readonly generation: number;
  /** Writes that the tracker may have missed; 0 is what a point needs. */
  readonly lostEvents: number;
  /** How long acknowledgements were held for the cut. */
  readonly holdMs: number;
}

export interface BarrierMark {
  readonly groupId: string;
  readonly groupEpoch: number;
  readonly barrier: number;
  /** Where the source wants a point. Whether there is one, only the barrier object says. */
  readonly point: boolean;
}

export interface SyncMark {
  readonly remainingBytes: number;
  readonly totalBytes: number;
}

export interface CommitIndex {
  readonly segments: readonly SegmentReference[];
  /** [0] of this object, [i] of segments[i − 1]. */
  readonly directories: readonly FrameDirectory[];
  /** Of this object's frames. */
  readonly digests: Uint8Array;
  /** `source` is an ordinal, SOURCE_ZERO or SOURCE_TRIM. Empty in segments and packs. */
  readonly extents: ExtentMap;
  readonly tracker?: TrackerMark;
  readonly barrier?: BarrierMark;
  readonly sync?: SyncMark;
}

const SEGMENTS = 1;
const DIRECTORIES = 2;
const DIGESTS = 3;
const EXTENTS = 4;
/** The critical sections. */
const KNOWN: readonly number[] = [SEGMENTS, DIRECTORIES, DIGESTS, EXTENTS];
const TRACKER = 128;
const BARRIER = 129;
const SYNC = 130;

/** Largest plain index. A commit of 64 GiB in frames of 256 KiB has about 10 MiB. */
export const MAX_PLAIN_INDEX_BYTES = 256 << 20;
const SEGMENT_BYTES_LEAST = 12 + 32 + SALT_BYTES + 8 + 2;

export function encodeIndex(index: CommitIndex): Uint8Array {
  const writer = byteWriter(4096 + index.digests.length);
  section(writer, SEGMENTS, (payload) => {
    payload.varint(index.segments.length);
    for (const segment of index.segments) writeSegment(payload, segment);
  });
  section(writer, DIRECTORIES, (payload) => {
    if (index.directories.length !== index.segments.length + 1)
      throw new RangeError("One directory for each container");
    for (const directory of index.directories) writeFrameDirectory(payload, directory);
  });
  section(writer, DIGESTS, (payload) => payload.bytes(index.digests));
  section(writer, EXTENTS, (payload) => writeExtents(payload, index.extents));
  const { tracker, barrier, sync } = index;
  if (tracker) {
    section(writer, TRACKER, (payload) => {
      payload.text(tracker.bootId);
      payload.varint(tracker.generation);
      payload.varint(tracker.lostEvents);
      payload.varint(tracker.holdMs);
    });
  }
  if (barrier) {
    section(writer, BARRIER, (payload) => {
      payload.text(barrier.groupId);
      payload.varint(barrier.groupEpoch);
      payload.varint(barrier.barrier);
      payload.byte(barrier.point ? 1 : 0);
    });
  }
  if (sync) {
    section(writer, SYNC, (payload) => {
      payload.varint(sync.remainingBytes);
      payload.varint(sync.totalBytes);
    });
  }
  return writer.view();
}

/**
 * Inverse of `encodeIndex`, checked against the header it belongs to: no frame and no extent outside the disk or its container.
 * Throws OBJECT_CORRUPT, or FORMAT_UNSUPPORTED for an unknown critical section.
 */
export function decodeIndex(plain: Uint8Array, header: ContainerHeader): CommitIndex {
  const sections = readSections(byteReader(plain, "Index"), KNOWN);
  const diskBlocks = blockCount(header.diskSizeBytes);
  const segments = readWhole(sections, SEGMENTS, (reader) =>
    Array.from({ length: reader.count(SEGMENT_BYTES_LEAST) }, () => readSegment(reader)),
  );
  const directories = readWhole(sections, DIRECTORIES, (reader) =>
    Array.from({ length: segments.length + 1 }, () => readFrameDirectory(reader, diskBlocks)),
  );
  const own = directories[0]!;
  const tagBytes = tagBytesOf(header.cipher);
  if (own.count !== header.frameCount || bodyBytesOf(own, tagBytes) !== header.bodyBytes) {
    throw corrupt("Index", "its frames are not those of the header");
  }
  segments.forEach((segment, position) => {
    if (bodyBytesOf(directories[position + 1]!, tagBytes) !== segment.bodyBytes) {
      throw corrupt("Index", `the frames of segment ${segment.containerId} do not add up`);
    }
  });
  const digests = readWhole(sections, DIGESTS, (reader) => reader.bytes(reader.remaining));
  if (digests.length !== digestBytesOf(own)) throw corrupt("Index", "digests and frames do not match");
  const extents = readWhole(sections, EXTENTS, (reader) =>
    readExtents(reader, directories, { start: 0, end: diskBlocks }),
  );
  if (extents.count !== header.extentCount) throw corrupt("Index", "its extents are not those of the header");
  return {
    segments,
    directories,
    digests,
    extents,
    ...(sections.has(TRACKER) && {
      tracker: readLeading(sections, TRACKER, (reader) => ({
        bootId: reader.text(),
        generation: reader.varint(),
        lostEvents: reader.varint(),
        holdMs: reader.varint(),
      })),
    }),
    ...(sections.has(BARRIER) && {
      barrier: readLeading(sections, BARRIER, (reader) => ({
        groupId: reader.text(),
        groupEpoch: reader.varint(),
        barrier: reader.varint(),
        point: reader.byte() === 1,
      })),
    }),
    ...(sections.has(SYNC) && {
      sync: readLeading(sections, SYNC, (reader) => ({ remainingBytes: reader.varint(), totalBytes: reader.varint() })),
    }),
  };
}

/** Bytes of the tag behind each sealed unit. */
export function tagBytesOf(cipher: ContainerHeader["cipher"]): number {
  return cipher === "none" ? 0 : 16;
}

function writeSegment(writer: ByteWriter, segment: SegmentReference): void {
  writer.bytes(fromHex(segment.containerId, 12, "containerId"));
  writer.bytes(segment.headSha256);
  writer.bytes(segment.salt);
  writer.bytes(fromHex(segment.dataKeyId, 8, "dataKeyId"));
  writer.varint(segment.indexBytes);
  writer.varint(segment.bodyBytes);
}

function readSegment(reader: ByteReader): SegmentReference {
  const containerId = toHex(reader.bytes(12));
  if (parseContainerId(containerId) === undefined)
    throw corrupt("Index", `container id "${containerId}" is impossible`);
  return {
    containerId,
    headSha256: reader.bytes(32).slice(),
    salt: reader.bytes(SALT_BYTES).slice(),
    dataKeyId: toHex(reader.bytes(8)),
    indexBytes: reader.varint(),
    bodyBytes: reader.varint(),
  };
}
