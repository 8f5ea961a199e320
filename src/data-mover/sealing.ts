/**
 * Sealing: AES-256-GCM with keys that exist for one container only.
 *
 * ```
 *   disk key (outside the bucket) ─wraps─► data key (one a month) ─HKDF, container's salt─► frame key
 *                                                            └─HKDF, salt and index salt─► index key
 * ```
 *
 * Invariants:
 * - a frame's nonce is its number and the frame key belongs to one salt, so a nonce never repeats under a key;
 * - an index key seals once: every finished header has a new index salt;
 * - what is sealed is bound by additional data: a frame to its place (`frameBinding`), an index to the header in front of it;
 * - `cipher: none` stores the plain bytes without a tag; it exists for tests.
 *
 * Source: docs/format.md, "Sealing".
 */
import { createCipheriv, createDecipheriv, createHmac, createSecretKey, hkdfSync, type KeyObject } from "node:crypto";
import { Fault } from "#model/fault.ts";
import { FRAME_NONCE_BYTES } from "#model/format/frame-binding.ts";
import type { Cipher } from "#model/format/header.ts";
import type { Mac } from "#model/format/mac-record.ts";

const ALGORITHM = "aes-256-gcm";
export const TAG_BYTES = 16;
const KEY_BYTES = 32;
const ZERO_NONCE = new Uint8Array(FRAME_NONCE_BYTES);

/** A month's key of one disk, unwrapped. */
export interface DataKey {
  /** 16 hex digits. */
  readonly id: string;
  readonly key: KeyObject;
}

export const NO_KEY_ID = "0000000000000000";

export function deriveFrameKey(dataKey: KeyObject, salt: Uint8Array): KeyObject {
  return derive(dataKey, salt, "leeward/1/frames");
}

export function deriveIndexKey(dataKey: KeyObject, salt: Uint8Array, indexSalt: Uint8Array): KeyObject {
  return derive(dataKey, Buffer.concat([salt, indexSalt]), "leeward/1/index");
}

/** Key for the MAC of one kind of records, from a disk key. */
export function deriveMacKey(
  diskKey: KeyObject,
  storeId: string,
  records: "points" | "manifests" = "points",
): KeyObject {
  return derive(diskKey, Buffer.from(storeId), `leeward/1/${records}`);
}

/** MAC of what a site keeps as a whole: bookmarks, the catalog. */
export function tenantMac(tenantKey: Uint8Array, storeId: string): Mac {
  const key = deriveMacKey(createSecretKey(tenantKey), storeId);
  return (data) => createHmac("sha256", key).update(data).digest();
}

function derive(key: KeyObject, salt: Uint8Array, purpose: string): KeyObject {
  return createSecretKey(Buffer.from(hkdfSync("sha256", key, salt, purpose, KEY_BYTES)));
}

/** Seals `plain` into `target` at `at`, tag behind it; returns the sealed length. `key` is undefined for cipher `none`. */
export function sealInto(
  target: Uint8Array,
  at: number,
  plain: Uint8Array,
  how: { readonly key: KeyObject | undefined; readonly nonce: Uint8Array; readonly additional: Uint8Array },
): number {
  if (how.key === undefined) {
    target.set(plain, at);
    return plain.length;
  }
  const cipher = createCipheriv(ALGORITHM, how.key, how.nonce);
  cipher.setAAD(how.additional);
  target.set(cipher.update(plain), at);
  cipher.final(); // GCM keeps nothing back: this only makes the tag.
  target.set(cipher.getAuthTag(), at + plain.length);
  return plain.length + TAG_BYTES;
}

/** Inverse of `sealInto`: a new array (with cipher `none` a view), or undefined when the tag does not hold. */
export function open(
  sealed: Uint8Array,
  how: { readonly key: KeyObject | undefined; readonly nonce: Uint8Array; readonly additional: Uint8Array },
): Uint8Array | undefined {
  if (how.key === undefined) return sealed;
  if (sealed.length < TAG_BYTES) return undefined;
  const decipher = createDecipheriv(ALGORITHM, how.key, how.nonce, { authTagLength: TAG_BYTES });
  decipher.setAAD(how.additional);
  decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
  const plain = decipher.update(sealed.subarray(0, sealed.length - TAG_BYTES));
  try {
    decipher.final();
  } catch {
    // Node says only "unable to authenticate data"; the caller knows what it was and says more.
    return undefined;
  }
  return plain;
}

/** The index key seals exactly one index, so its nonce is all zeroes. */
export const INDEX_NONCE: Uint8Array = ZERO_NONCE;

export function requireKey(cipher: Cipher, key: DataKey | undefined): KeyObject | undefined {
  if (cipher === "none") return undefined;
  if (key === undefined)
    throw new Fault("KEY_MISSING", `An object is sealed with ${cipher}, and no key is there to open it`);
  return key.key;
}
