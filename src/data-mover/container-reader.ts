/**
 * Opens what a container writer made: header and index of one object, and its frames one by one.
 *
 * Invariants:
 * - nothing of an object is believed before its CRC, its seal and its identity hold;
 * - every refusal is a Fault that names what is damaged; plain bytes that were not authenticated never leave this file.
 *
 * Source: docs/format.md.
 */
import { hash, type KeyObject } from "node:crypto";
import { Fault } from "#model/fault.ts";
import { type CommitIndex, decodeIndex, MAX_PLAIN_INDEX_BYTES, tagBytesOf } from "#model/format/commit-index.ts";
import { corrupt, toHex } from "#model/format/fields.ts";
import { type FrameBinding, frameBinding } from "#model/format/frame-binding.ts";
import {
  CHAIN_BYTES,
  type Cipher,
  type DecodedHeader,
  decodeHeader,
  HEADER_AUTHENTICATED_BYTES,
  HEADER_BYTES,
} from "#model/format/header.ts";
import { CODEC_RAW, DIGEST_BYTES, PIECE_BYTES } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { deriveFrameKey, deriveIndexKey, INDEX_NONCE, open } from "./sealing.ts";
import { decompress, decompressInto } from "./zstd.ts";

/** Finds the data key of an id at once. Throws KEY_MISSING. */
export type KeyOf = (dataKeyId: string) => KeyObject;

export interface OpenedHead {
  readonly header: DecodedHeader;
  /** Authenticated, still compressed; `readIndex` decodes it. */
  readonly packedIndex: Uint8Array;
  readonly headSha256: Uint8Array;
  /** 32 hex digits. */
  readonly commitHash: string;
}

/**
 * Header and authenticated index of the object that begins with `prefix`, or how many of its bytes are needed for that.
 *
 * `cipher` is what the store uses: an object that claims to be sealed with less is refused.
 * Throws: OBJECT_CORRUPT, FORMAT_UNSUPPORTED, KEY_MISSING.
 */
export function openHead(
  prefix: Uint8Array,
  keys: { readonly cipher: Cipher; readonly keyOf: KeyOf },
): OpenedHead | { readonly needBytes: number } {
  if (prefix.length < HEADER_BYTES) return { needBytes: HEADER_BYTES };
  const header = decodeHeader(prefix);
  if (header.cipher !== keys.cipher) {
    throw corrupt("Header", `the object is sealed with "${header.cipher}" in a store that uses "${keys.cipher}"`);
  }
  const headBytes = HEADER_BYTES + header.indexBytes;
  if (prefix.length < headBytes) return { needBytes: headBytes };
  const packedIndex = open(prefix.subarray(HEADER_BYTES, headBytes), {
    key:
      header.cipher === "none"
        ? undefined
        : deriveIndexKey(keys.keyOf(header.dataKeyId), header.salt, header.indexSalt),
    nonce: INDEX_NONCE,
    additional: prefix.subarray(0, HEADER_AUTHENTICATED_BYTES),
  });
  if (packedIndex === undefined) throw corrupt("Index", "its seal does not hold");
  const headSha256 = hash("sha256", prefix.subarray(0, headBytes), "buffer");
  return { header, packedIndex, headSha256, commitHash: toHex(headSha256.subarray(0, CHAIN_BYTES)) };
}

/** Throws OBJECT_CORRUPT, FORMAT_UNSUPPORTED. */
export function readIndex(head: OpenedHead): CommitIndex {
  return decodeIndex(decompress(head.packedIndex, MAX_PLAIN_INDEX_BYTES, "Index"), head.header);
}

export interface FramePlace {
  readonly frame: number;
  readonly block: number;
  readonly blocks: number;
  readonly codec: number;
}

/** Opens the frames of one container. */
export interface FrameOpener {
  readonly tagBytes: number;
  /**
   * Fill `target`, which has the length of the frame's blocks; `sealed` is the frame as stored.
   * Throws OBJECT_CORRUPT; `target` may hold anything then.
   */
  openInto(target: Uint8Array, sealed: Uint8Array, place: FramePlace): void;
}

export function frameOpener(container: {
  readonly cipher: Cipher;
  readonly storeId: string;
  readonly diskId: string;
  readonly containerId: string;
  readonly salt: Uint8Array;
  readonly dataKey: KeyObject | undefined;
}): FrameOpener {
  const key = container.dataKey && deriveFrameKey(container.dataKey, container.salt);
  if (container.cipher !== "none" && key === undefined)
    throw new Fault("KEY_MISSING", "A sealed container needs its data key");
  const binding: FrameBinding = frameBinding(container);
  return {
    tagBytes: tagBytesOf(container.cipher),
    openInto(target, sealed, place) {
      const { additional, nonce } = binding.bind(place.frame, place.block, place.blocks, place.codec);
      const stored = open(sealed, { key, nonce, additional });
      if (stored === undefined) throw corrupt("Frame", "its seal does not hold");
      const plainBytes = place.blocks * BLOCK_SIZE;
      if (target.length !== plainBytes) throw new RangeError(`${target.length} bytes for a frame of ${plainBytes}`);
      if (place.codec === CODEC_RAW) {
        if (stored.length !== plainBytes)
          throw corrupt("Frame", `it has ${stored.length} bytes instead of ${plainBytes}`);
        target.set(stored);
        return;
      }
      const length = decompressInto(target, stored, "Frame");
      if (length !== plainBytes) throw corrupt("Frame", `it unpacks to ${length} bytes instead of ${plainBytes}`);
    },
  };
}

/** Whether `plain` is what the source hashed. `digests` are those of this frame. */
export function digestsHold(plain: Uint8Array, digests: Uint8Array): boolean {
  for (let piece = 0; piece * PIECE_BYTES < plain.length; piece++) {
    const actual = hash("sha256", plain.subarray(piece * PIECE_BYTES, (piece + 1) * PIECE_BYTES), "buffer");
    const expected = digests.subarray(piece * DIGEST_BYTES, (piece + 1) * DIGEST_BYTES);
    if (actual.compare(expected, 0, DIGEST_BYTES, 0, DIGEST_BYTES) !== 0) return false;
  }
  return true;
}
