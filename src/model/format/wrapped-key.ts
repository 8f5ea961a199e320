/**
 * `keys/{id}`: a data key, wrapped by the disk key that never enters the bucket. And `keys/canary`, which proves that a disk key
 * is the right one before anything else is tried.
 *
 * Everything but `sealed` is additional data of the wrap (its canonical JSON), so a record cannot be passed off as another.
 *
 * Source: docs/format.md, "Keys".
 */
import { canonicalJson, decodeRecord, encodeRecord, RECORD_FORMAT, recordFields } from "./json-record.ts";
import { utf8Bytes } from "./utf8.ts";
import { isUuid } from "./fields.ts";
import { isDiskId } from "./records.ts";

export interface WrappedKeyHead {
  /** 16 hex digits, or "canary". */
  readonly keyId: string;
  readonly storeId: string;
  readonly diskId: string;
  /** Month in which it seals, "2026-08"; "" for the canary. */
  readonly month: string;
  readonly createdAtMs: number;
  readonly cipher: "aes-256-gcm";
  /** 12 random bytes, hex. */
  readonly nonce: string;
}

export interface WrappedKeyRecord extends WrappedKeyHead {
  /** 32 bytes of key and 16 of tag, hex. */
  readonly sealed: string;
}

export const CANARY_ID = "canary";

export const encodeWrappedKey = (record: WrappedKeyRecord): Uint8Array => encodeRecord(record);

/** Additional data under which the key of `head` is wrapped. */
export function wrapBinding(head: WrappedKeyHead): Uint8Array {
  const { keyId, storeId, diskId, month, createdAtMs, cipher, nonce } = head;
  return utf8Bytes(canonicalJson({ format: RECORD_FORMAT, keyId, storeId, diskId, month, createdAtMs, cipher, nonce }));
}

/** Throws OBJECT_CORRUPT, FORMAT_UNSUPPORTED. */
export function decodeWrappedKey(data: Uint8Array, key: string): WrappedKeyRecord {
  const read = recordFields(decodeRecord(data, key), key);
  return {
    keyId: read.text("keyId", (text) => text === CANARY_ID || /^[0-9a-f]{16}$/.test(text)),
    storeId: read.text("storeId", isUuid),
    diskId: read.text("diskId", isDiskId),
    month: read.text("month", (text) => text === "" || /^[0-9]{4}-[0-9]{2}$/.test(text)),
    createdAtMs: read.number("createdAtMs"),
    // The check has just compared it with the only one.
    cipher: read.text("cipher", (text) => text === "aes-256-gcm") as "aes-256-gcm",
    nonce: read.text("nonce", (text) => /^[0-9a-f]{24}$/.test(text)),
    sealed: read.text("sealed", (text) => /^[0-9a-f]{96}$/.test(text)),
  };
}
