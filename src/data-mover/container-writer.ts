/**
 * Writes one container: frames are sealed into a buffer as they arrive, and `finish` puts header and index in front of them and the
 * footer behind, so that the whole object is one contiguous view: a PUT that is repeated sends identical bytes.
 *
 * ```
 *   buffer  | reserve        | header | index | frame 0 | frame 1 | …      | footer |  free … |
 *                            ^ the object begins where header and index need it to
 * ```
 *
 * Invariants:
 * - data arrives compressed and is stored as it came; only the index is compressed here;
 * - a frame is sealed once. `finish` may be called again for another slot (seq, chain): frames stay, the index salt is new;
 * - the bytes of an earlier `finish` are overwritten by the next one, so its PUT must have ended;
 * - the buffer belongs to the writer until its last bytes are stored; then it goes back to the pool.
 */
import { createHash, type Hash } from "node:crypto";
import { EMPTY_MAP, SOURCE_TRIM, SOURCE_ZERO } from "#model/extent-map.ts";
import { type Arrivals, arrivals, resolveArrivals } from "#model/format/arrivals.ts";
import {
  type BarrierMark,
  encodeIndex,
  type SegmentReference,
  type SyncMark,
  tagBytesOf,
  type TrackerMark,
} from "#model/format/commit-index.ts";
import { fromHex } from "#model/format/fields.ts";
import { frameBinding } from "#model/format/frame-binding.ts";
import { type FrameDirectory, frameDirectoryBuilder } from "#model/format/frame-directory.ts";
import {
  CHAIN_BYTES,
  type Cipher,
  type ContainerHeader,
  type ContainerKind,
  FOOTER_BYTES,
  HEADER_BYTES,
  INDEX_SALT_BYTES,
} from "#model/format/header.ts";
import { CODEC_ZERO, type FrameKind, type FrameRecord } from "#model/frame-record.ts";
import type { Random } from "#ports/random.ts";
import type { CommitPlace } from "./commit-codec.ts";
import { sealHead, type SealedHead } from "./container-head.ts";
import { type DataKey, deriveFrameKey, NO_KEY_ID, requireKey, sealInto } from "./sealing.ts";
import { compress } from "./zstd.ts";

/** Buffer of a journal object or a segment; with it no object exceeds 16 MiB unless its index is extraordinarily large. */
export const CONTAINER_BUFFER_BYTES = 16 << 20;

/** Buffer that is enough for a fence, or any commit without frames and with few extents. */
export const FENCE_BUFFER_BYTES = 64 << 10;

/** A segment is no commit: it chains to nothing. */
const NO_CHAIN = "0".repeat(2 * CHAIN_BYTES);

export interface ContainerWriterOptions {
  /** Recycled; from a pool. */
  readonly buffer: Uint8Array;
  /** What `finish` makes of it. A container that fills up before its commit is complete ends as a segment, whatever it was begun as. */
  readonly kind: "journal" | "fence";
  readonly cipher: Cipher;
  /** Undefined only with cipher `none`. */
  readonly dataKey: DataKey | undefined;
  readonly storeId: string;
  readonly diskId: string;
  /** `formatContainerId`. */
  readonly containerId: string;
  /** 32 bytes for the salt now, 16 for each details. */
  readonly random: Random;
}

/** What a commit says of its content. */
export interface CommitDetails {
  readonly cycle: number;
  /** How many disks of the group have a commit of this cycle; 0 when that is not known. */
  readonly cycleDisks: number;
  /** FLAG_… bits. */
  readonly flags: number;
  readonly firstWriteMs: number;
  readonly cutMs: number;
  readonly rawCutMs: number;
  readonly diskSizeBytes: number;
  readonly sectorBytes: number;
  /** What this commit holds in other objects; they must be stored already. */
  readonly segments?: readonly SealedSegment[];
  readonly tracker?: TrackerMark;
  readonly barrier?: BarrierMark;
  readonly sync?: SyncMark;
}

export interface SealedContainer extends SealedHead {
  /** The object: a view into the buffer, valid until the next `finish` or until the buffer is given back. */
  readonly bytes: Uint8Array;
  readonly header: ContainerHeader;
}

/** What a commit needs to know of a segment; does not hold the buffer. */
export interface SealedSegment {
  readonly reference: SegmentReference;
  readonly directory: FrameDirectory;
  readonly arrivals: Arrivals;
}

export interface ContainerWriter {
  readonly containerId: string;
  readonly frameCount: number;
  /** Stored bytes of the frames so far. */
  readonly bodyBytes: number;
  /** Records taken so far, frames and zero runs. */
  readonly recordCount: number;
  /** Whether a record with so many stored bytes has room. */
  fits(storedBytes: number): boolean;
  /** Seal a record. Throws RangeError when it does not fit: a bug in the caller. */
  append(record: FrameRecord): void;
  appendTrim(run: { readonly block: number; readonly blocks: number; readonly kind: FrameKind }): void;
  /** The finished object for a place; may be called again for another one. */
  finish(place: CommitPlace, details: CommitDetails): SealedContainer;
  /** Like `finish`, for a segment, which has no place: also what its commit needs. */
  finishSegment(
    place: Omit<CommitPlace, "seq" | "chain">,
    details: Omit<CommitDetails, "segments">,
  ): SealedContainer & { readonly segment: SealedSegment };
}

export function containerWriter(options: ContainerWriterOptions): ContainerWriter {
  const { buffer, cipher, containerId } = options;
  const dataKey = requireKey(cipher, options.dataKey);
  const dataKeyId = cipher === "none" ? NO_KEY_ID : options.dataKey!.id;
  const salt = options.random.bytes(32);
  const frameKey = dataKey && deriveFrameKey(dataKey, salt);
  const tagBytes = tagBytesOf(cipher);
  const binding = frameBinding(options);
  const directory = frameDirectoryBuilder();
  const received = arrivals();
  // 22 bytes of index for each frame of at least 4 KiB, plus extents, is below a fiftieth of the buffer.
  const bodyAt = HEADER_BYTES + Math.max(8192, Math.ceil(buffer.length / 50));
  const bodyLimit = buffer.length - FOOTER_BYTES;
  let at = bodyAt;
  let bodyHash: Hash | undefined = createHash("sha256");
  let bodySha256: Uint8Array | undefined;
  const digests = growingBytes(64 << 10);

  const writer: ContainerWriter = {
    containerId,
    get frameCount() {
      return directory.count;
    },
    get bodyBytes() {
      return at - bodyAt;
    },
    get recordCount() {
      return received.count;
    },
    fits: (storedBytes) => at + storedBytes + tagBytes <= bodyLimit,
    append(record) {
      const { block, blocks, codec, kind } = record;
      if (bodyHash === undefined) throw new RangeError("The container is finished");
      if (codec === CODEC_ZERO) {
        received.add({ start: block, length: blocks, source: SOURCE_ZERO, frame: 0, kind });
        return;
      }
      if (!writer.fits(record.stored.length)) throw new RangeError("The frame does not fit");
      const { additional, nonce } = binding.bind(directory.count, block, blocks, codec);
      const end = at + sealInto(buffer, at, record.stored, { key: frameKey, nonce, additional });
      bodyHash.update(buffer.subarray(at, end));
      at = end;
      const frame = directory.push(record, record.stored.length);
      digests.push(record.digests);
      received.add({ start: block, length: blocks, source: 0, frame, kind });
    },
    appendTrim(run) {
      received.add({ start: run.block, length: run.blocks, source: SOURCE_TRIM, frame: 0, kind: run.kind });
    },
    finish: (place, details) => seal(options.kind, place, details),
    finishSegment(place, details) {
      const sealed = seal("segment", { ...place, seq: 0, chain: NO_CHAIN }, details);
      const { indexBytes, bodyBytes } = sealed.header;
      const reference = { containerId, headSha256: sealed.headSha256, salt, dataKeyId, indexBytes, bodyBytes };
      return { ...sealed, segment: { reference, directory: directory.view(), arrivals: received } };
    },
  };

  function seal(kind: ContainerKind, place: CommitPlace, details: CommitDetails): SealedContainer {
    bodySha256 ??= bodyHash!.digest();
    bodyHash = undefined;
    const segments = details.segments ?? [];
    const parts = [
      ...segments.map((segment, index) => ({ ordinal: index + 1, arrivals: segment.arrivals })),
      { ordinal: 0, arrivals: received },
    ];
    const extents = kind === "segment" ? EMPTY_MAP : resolveArrivals(parts);
    const plainIndex = encodeIndex({
      segments: segments.map((segment) => segment.reference),
      directories: [directory.view(), ...segments.map((segment) => segment.directory)],
      digests: digests.view(),
      extents,
      ...(details.tracker && { tracker: details.tracker }),
      ...(details.barrier && { barrier: details.barrier }),
      ...(details.sync && { sync: details.sync }),
    });
    const packedIndex = compress(plainIndex);
    const header: ContainerHeader = {
      kind,
      cipher,
      flags: details.flags,
      incompatible: 0,
      storeId: options.storeId,
      diskId: options.diskId,
      branchId: place.branch,
      epoch: place.epoch,
      seq: place.seq,
      cycle: details.cycle,
      cycleDisks: details.cycleDisks,
      firstWriteMs: details.firstWriteMs,
      cutMs: details.cutMs,
      rawCutMs: details.rawCutMs,
      chain: fromHex(place.chain, CHAIN_BYTES, "chain"),
      diskSizeBytes: details.diskSizeBytes,
      sectorBytes: details.sectorBytes,
      indexBytes: packedIndex.length + tagBytes,
      frameCount: directory.count,
      extentCount: extents.count,
      bodyBytes: at - bodyAt,
      containerId,
      salt,
      indexSalt: options.random.bytes(INDEX_SALT_BYTES),
      dataKeyId,
      writerId: place.writerId,
    };
    const object = objectAround(header);
    return { bytes: object, header, ...sealHead(object, header, { packedIndex, dataKey, bodySha256 }) };
  }

  /** The object's place in the buffer; an index too large for the reserve costs a copy into a new one. */
  function objectAround(header: ContainerHeader): Uint8Array {
    const headBytes = HEADER_BYTES + header.indexBytes;
    if (headBytes <= bodyAt) return buffer.subarray(bodyAt - headBytes, at + FOOTER_BYTES);
    const object = new Uint8Array(headBytes + header.bodyBytes + FOOTER_BYTES);
    object.set(buffer.subarray(bodyAt, at), headBytes);
    return object;
  }

  return writer;
}

function growingBytes(capacity: number): { push(more: Uint8Array): void; view(): Uint8Array } {
  let data = new Uint8Array(capacity);
  let length = 0;
  return {
    push(more) {
      if (length + more.length > data.length) {
        const larger = new Uint8Array(Math.max(data.length * 2, length + more.length));
        larger.set(data.subarray(0, length));
        data = larger;
      }
      data.set(more, length);
      length += more.length;
    },
    view: () => data.subarray(0, length),
  };
}
