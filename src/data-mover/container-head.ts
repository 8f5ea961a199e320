/** Puts header, sealed index and footer around what lies between them: the last step in making any object of the store. */
import { hash, type KeyObject } from "node:crypto";
import { toHex } from "#model/format/fields.ts";
import { encodeFooter } from "#model/format/footer.ts";
import {
  CHAIN_BYTES,
  type ContainerHeader,
  encodeHeader,
  FOOTER_BYTES,
  HEADER_AUTHENTICATED_BYTES,
  HEADER_BYTES,
} from "#model/format/header.ts";
import { deriveIndexKey, INDEX_NONCE, sealInto } from "./sealing.ts";

export interface SealedHead {
  /** 32 bytes: SHA-256 over header and index. */
  readonly headSha256: Uint8Array;
  /** First 16 bytes of it, hex. */
  readonly commitHash: string;
}

/**
 * Fill `object`, in which only the frames are there yet. `header.indexSalt` must be new: an index key seals once.
 * `packedIndex`: compressed; `header.indexBytes` is its length and the tag's.
 */
export function sealHead(
  object: Uint8Array,
  header: ContainerHeader,
  what: {
    readonly packedIndex: Uint8Array;
    readonly dataKey: KeyObject | undefined;
    /** Over the frames as stored. */
    readonly bodySha256: Uint8Array;
  },
): SealedHead {
  const { packedIndex, dataKey, bodySha256 } = what;
  const headBytes = HEADER_BYTES + header.indexBytes;
  encodeHeader(header, object);
  sealInto(object, HEADER_BYTES, packedIndex, {
    key: dataKey && deriveIndexKey(dataKey, header.salt, header.indexSalt),
    nonce: INDEX_NONCE,
    additional: object.subarray(0, HEADER_AUTHENTICATED_BYTES),
  });
  const headSha256 = hash("sha256", object.subarray(0, headBytes), "buffer");
  const footer = { totalBytes: object.length, headSha256, bodySha256 };
  encodeFooter(footer, object.subarray(object.length - FOOTER_BYTES));
  return { headSha256, commitHash: toHex(headSha256.subarray(0, CHAIN_BYTES)) };
}
