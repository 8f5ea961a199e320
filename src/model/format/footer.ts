/**
 * The 80-byte footer of a container: lets a scrub check the whole object without a key.
 *
 * Two hashes cover every byte before it: one over header and index, one over the frames. They are apart because frames are hashed
 * while they arrive, and a commit that moves to another slot changes header and index only.
 *
 * Source: docs/format.md, "Footer".
 */
import { crc32c } from "../checksum.ts";
import { corrupt } from "./fields.ts";
import { FOOTER_BYTES } from "./header.ts";

const MAGIC = Uint8Array.of(0x4c, 0x57, 0x52, 0x45); // "LWRE"
const CRC_AT = FOOTER_BYTES - 4;

export interface ContainerFooter {
  readonly totalBytes: number;
  /** 32 bytes: SHA-256 over header and index. Its first 16 bytes are the commit hash. */
  readonly headSha256: Uint8Array;
  /** 32 bytes: SHA-256 over the frames as stored. */
  readonly bodySha256: Uint8Array;
}

export function encodeFooter(footer: ContainerFooter, target: Uint8Array = new Uint8Array(FOOTER_BYTES)): Uint8Array {
  if (footer.headSha256.length !== 32 || footer.bodySha256.length !== 32)
    throw new RangeError("A SHA-256 has 32 bytes");
  const view = new DataView(target.buffer, target.byteOffset, FOOTER_BYTES);
  target.set(MAGIC, 0);
  view.setUint32(4, footer.totalBytes, true);
  target.set(footer.headSha256, 8);
  target.set(footer.bodySha256, 40);
  view.setUint32(72, 0, true);
  view.setUint32(CRC_AT, crc32c(target.subarray(0, CRC_AT)), true);
  return target.subarray(0, FOOTER_BYTES);
}

/** Inverse of `encodeFooter`. Throws OBJECT_CORRUPT. */
export function decodeFooter(source: Uint8Array): ContainerFooter {
  if (source.length !== FOOTER_BYTES) throw corrupt("Footer", `expected ${FOOTER_BYTES} bytes, got ${source.length}`);
  const view = new DataView(source.buffer, source.byteOffset, FOOTER_BYTES);
  if (MAGIC.some((byte, index) => source[index] !== byte))
    throw corrupt("Footer", "it does not begin with the magic number");
  if (crc32c(source.subarray(0, CRC_AT)) !== view.getUint32(CRC_AT, true))
    throw corrupt("Footer", "its CRC32C does not match");
  return {
    totalBytes: view.getUint32(4, true),
    headSha256: new Uint8Array(source.subarray(8, 40)),
    bodySha256: new Uint8Array(source.subarray(40, 72)),
  };
}
