/**
 * One container as an image reads it: where its frames lie, how they open, and what the source said they hash to.
 *
 * Offsets, keys and digests are worked out when the first frame is read: an image names thousands of containers of which most
 * are never touched again.
 */
import { Fault } from "#model/fault.ts";
import { corrupt } from "#model/format/fields.ts";
import type { FrameDirectory } from "#model/format/frame-directory.ts";
import { type Cipher, HEADER_BYTES } from "#model/format/header.ts";
import type { ShardContainer } from "#model/format/map-shard.ts";
import { digestCount, DIGEST_BYTES } from "#model/frame-record.ts";
import { allFrames, type ShardFrames } from "#model/shard-map.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { digestsHold, type FrameOpener, frameOpener, openHead, readIndex } from "./container-reader.ts";
import type { Keyring } from "./keyring.ts";

/** What a commit or a map says of a container. Plain data: it may be handed to another thread. */
export interface ContainerPlace extends ShardContainer {
  readonly key: string;
  /** Frames that may be asked for, counted from 0 here. */
  readonly directory: FrameDirectory;
  /** Their numbers and offsets in the container, when they are only those that a map keeps; without, they are all of its frames. */
  readonly kept?: Pick<ShardFrames, "number" | "offset">;
}

/** The frames of a place with their numbers and offsets. `tagBytes`: of each frame's seal. */
export function framesOf({ directory, kept, indexBytes }: ContainerPlace, tagBytes: number): ShardFrames {
  return kept ? { ...directory, ...kept } : allFrames(directory, HEADER_BYTES + indexBytes, tagBytes);
}

/** The digests of a container's own frames, in the order of their numbers. */
export interface FrameDigests {
  readonly bytes: Uint8Array;
  /** By number: digests of the frames before it. */
  readonly pieces: Uint32Array;
}

export interface ImageContainer {
  readonly place: ContainerPlace;
  /** Number of its first frame, counted over all containers of the image. */
  readonly frameBase: number;
  /** Byte range of frames `first` … `last` in the object. */
  rangeOf(first: number, last: number): { readonly offset: number; readonly length: number };
  /** Header and index again, from the store, for the digests. Throws OBJECT_CORRUPT, OBJECT_MISSING, STORE_…. */
  loadDigests(): Promise<FrameDigests>;
  /** The same from bytes that are at hand: the object from its start, at least header and index. Throws OBJECT_CORRUPT. */
  digestsFrom(data: Uint8Array): FrameDigests;
  /** Plain length of a frame. */
  plainBytesOf(frame: number): number;
  /** Of the digests of the container, that of one piece of a frame. */
  digestOf(digests: FrameDigests, frame: number, piece: number): Uint8Array;
  /**
   * Fill `target` with a frame; `sealed` is what lies in its range. Throws OBJECT_CORRUPT that names object, frame and blocks, and then
   * `target` must not be believed.
   */
  openInto(
    target: Uint8Array,
    sealed: Uint8Array,
    what: { readonly frame: number; readonly digests: FrameDigests },
  ): void;
}

export function imageContainer(
  place: ContainerPlace,
  context: {
    readonly store: ObjectStore;
    readonly cipher: Cipher;
    readonly keyring: Pick<Keyring, "cipher" | "keyOf">;
    readonly storeId: string;
    readonly diskId: string;
    readonly frameBase: number;
  },
): ImageContainer {
  const { directory } = place;
  const headBytes = HEADER_BYTES + place.indexBytes;
  let lazy: { readonly opener: FrameOpener; readonly frames: ShardFrames } | undefined;

  const prepared = () => {
    if (lazy !== undefined) return lazy;
    const dataKey = context.cipher === "none" ? undefined : context.keyring.keyOf(place.dataKeyId);
    const opener = frameOpener({ ...context, ...place, dataKey });
    return (lazy = { opener, frames: framesOf(place, opener.tagBytes) });
  };

  const digestsFrom = (data: Uint8Array): FrameDigests => {
    try {
      const head = data.length < headBytes ? undefined : openHead(data, context.keyring);
      if (head === undefined || "needBytes" in head) throw corrupt("Index", "the object is cut off");
      if (Buffer.compare(head.headSha256, place.headSha256) !== 0)
        throw corrupt("Index", "it is not the one that the commit names");
      const index = readIndex(head);
      const { count, blocks } = index.directories[0]!;
      const pieces = new Uint32Array(count + 1);
      for (let frame = 0; frame < count; frame++) pieces[frame + 1] = pieces[frame]! + digestCount(blocks[frame]!);
      return { bytes: index.digests.slice(), pieces };
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      throw inObject(error, place.key);
    }
  };

  return {
    place,
    frameBase: context.frameBase,
    digestsFrom,
    rangeOf(first, last) {
      const { frames, opener } = prepared();
      const offset = frames.offset[first]!;
      return { offset, length: frames.offset[last]! + frames.storedBytes[last]! + opener.tagBytes - offset };
    },
    async loadDigests() {
      return digestsFrom(await context.store.get(place.key, { range: { offset: 0, length: headBytes } }));
    },
    plainBytesOf: (frame) => directory.blocks[frame]! * BLOCK_SIZE,
    digestOf(digests, frame, piece) {
      const at = (digests.pieces[prepared().frames.number[frame]!]! + piece) * DIGEST_BYTES;
      return digests.bytes.subarray(at, at + DIGEST_BYTES);
    },
    openInto(target, sealed, { frame, digests }) {
      const { opener, frames } = prepared();
      const number = frames.number[frame]!;
      const block = directory.block[frame]!;
      const blocks = directory.blocks[frame]!;
      try {
        opener.openInto(target, sealed, { frame: number, block, blocks, codec: directory.codec[frame]! });
        const from = digests.pieces[number]! * DIGEST_BYTES;
        if (digestsHold(target, digests.bytes.subarray(from, digests.pieces[number + 1]! * DIGEST_BYTES))) return;
        throw corrupt("Frame", "it opens, and is not what the source hashed");
      } catch (error) {
        if (!(error instanceof Fault)) throw error;
        throw inObject(error, place.key, { frame: number, block, blocks });
      }
    },
  };
}

/** The same fault, saying where: which object, and which frame and blocks if it is about one. */
export function inObject(
  fault: Fault,
  key: string,
  frame?: { readonly frame: number; readonly block: number; readonly blocks: number },
): Fault {
  const where =
    frame === undefined ? "" : `, frame ${frame.frame} (blocks ${frame.block} to ${frame.block + frame.blocks - 1})`;
  return new Fault(fault.code, `Object "${key}"${where}: ${fault.message}`, {
    details: { ...fault.details, key, ...frame },
    hint:
      fault.hint ??
      "Recover an older point, or read the object from another copy of the bucket; blocks that the source writes again are whole from then on.",
    cause: fault,
  });
}
