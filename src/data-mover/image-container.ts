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
import { digestCount, DIGEST_BYTES } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { digestsHold, type FrameOpener, frameOpener, openHead, readIndex } from "./container-reader.ts";
import type { Keyring } from "./keyring.ts";

/** What a commit says of a container. */
export interface ContainerPlace {
  readonly key: string;
  readonly containerId: string;
  readonly headSha256: Uint8Array;
  readonly salt: Uint8Array;
  readonly dataKeyId: string;
  readonly indexBytes: number;
  readonly directory: FrameDirectory;
}

export interface ImageContainer {
  readonly place: ContainerPlace;
  /** Number of its first frame, counted over all containers of the image. */
  readonly frameBase: number;
  /** Byte range of frames `first` … `last` in the object. */
  rangeOf(first: number, last: number): { readonly offset: number; readonly length: number };
  /** Header and index again, from the store, for the digests. Throws OBJECT_CORRUPT, OBJECT_MISSING, STORE_…. */
  loadDigests(): Promise<Uint8Array>;
  /** The same from bytes that are at hand: the object from its start, at least header and index. Throws OBJECT_CORRUPT. */
  digestsFrom(data: Uint8Array): Uint8Array;
  /** Plain length of a frame. */
  plainBytesOf(frame: number): number;
  /**
   * Fill `target` with a frame; `sealed` is what lies in its range. Throws OBJECT_CORRUPT that names object, frame and blocks, and then
   * `target` must not be believed.
   */
  openInto(
    target: Uint8Array,
    sealed: Uint8Array,
    what: { readonly frame: number; readonly digests: Uint8Array },
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
  let lazy: { readonly opener: FrameOpener; readonly offsets: Uint32Array; readonly pieces: Uint32Array } | undefined;

  const prepared = () => {
    if (lazy !== undefined) return lazy;
    const dataKey = context.cipher === "none" ? undefined : context.keyring.keyOf(place.dataKeyId);
    const opener = frameOpener({ ...context, ...place, dataKey });
    const offsets = new Uint32Array(directory.count + 1);
    const pieces = new Uint32Array(directory.count + 1);
    offsets[0] = headBytes;
    for (let frame = 0; frame < directory.count; frame++) {
      offsets[frame + 1] = offsets[frame]! + directory.storedBytes[frame]! + opener.tagBytes;
      pieces[frame + 1] = pieces[frame]! + digestCount(directory.blocks[frame]!);
    }
    return (lazy = { opener, offsets, pieces });
  };

  const digestsFrom = (data: Uint8Array): Uint8Array => {
    try {
      const head = data.length < headBytes ? undefined : openHead(data, context.keyring);
      if (head === undefined || "needBytes" in head) throw corrupt("Index", "the object is cut off");
      if (Buffer.compare(head.headSha256, place.headSha256) !== 0)
        throw corrupt("Index", "it is not the one that the commit names");
      return readIndex(head).digests.slice();
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
      const { offsets } = prepared();
      return { offset: offsets[first]!, length: offsets[last + 1]! - offsets[first]! };
    },
    async loadDigests() {
      return digestsFrom(await context.store.get(place.key, { range: { offset: 0, length: headBytes } }));
    },
    plainBytesOf: (frame) => directory.blocks[frame]! * BLOCK_SIZE,
    openInto(target, sealed, { frame, digests }) {
      const { opener, pieces } = prepared();
      const block = directory.block[frame]!;
      const blocks = directory.blocks[frame]!;
      try {
        opener.openInto(target, sealed, { frame, block, blocks, codec: directory.codec[frame]! });
        if (digestsHold(target, digests.subarray(pieces[frame]! * DIGEST_BYTES, pieces[frame + 1]! * DIGEST_BYTES)))
          return;
        throw corrupt("Frame", "it opens, and is not what the source hashed");
      } catch (error) {
        if (!(error instanceof Fault)) throw error;
        throw inObject(error, place.key, { frame, block, blocks });
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
      "Recover an older point, or read the object from another copy of the bucket; a resync of the disk writes these blocks anew.",
    cause: fault,
  });
}
