/**
 * The control plane's own objects in a store: who runs it, and a sealed copy of what would otherwise exist on its machine only.
 *
 * Invariants:
 * - the claim with the highest number is the law, as for a disk; nobody deletes one;
 * - the sealed copy opens with the recovery key only, which is neither in the store nor with whoever writes it there. Everything but `sealed` is
 *   additional data of the seal, so one copy cannot be passed off as another.
 *
 * Source: docs/format.md, "The control plane".
 */
import { isUuid } from "./fields.ts";
import {
  canonicalJson,
  damagedRecord,
  decodeRecord,
  encodeRecord,
  RECORD_FORMAT,
  recordFields,
} from "./json-record.ts";
import { utf8Bytes } from "./utf8.ts";

/** One control and its term. A term is the same number in every store that it has anything to say in. */
export interface ControlTerm {
  /** UUID, new for each state folder of a control. */
  readonly controlId: string;
  readonly controlEpoch: number;
}

/** `control/epochs/{epoch}`. */
export interface ControlClaim extends ControlTerm {
  /** Where it runs, for people to read; may be "". */
  readonly site: string;
  readonly claimedAtMs: number;
}

export interface SealedKeysHead extends ControlTerm {
  readonly createdAtMs: number;
  /** Tells equal contents apart from changed ones without opening them: keyed with the recovery key. 64 hex digits. */
  readonly mark: string;
  readonly cipher: "aes-256-gcm";
  /** 32 random bytes, hex. */
  readonly salt: string;
  /** 12 random bytes, hex. */
  readonly nonce: string;
}

/** `control/keys/{no}`: CA, order key and the book of who is enrolled. */
export interface SealedKeysRecord extends SealedKeysHead {
  /** Ciphertext and 16 bytes of tag, hex. */
  readonly sealed: string;
}

export const encodeControlClaim = (claim: ControlClaim): Uint8Array => encodeRecord(claim);
export const encodeSealedKeys = (record: SealedKeysRecord): Uint8Array => encodeRecord(record);

/** Both decoders throw OBJECT_CORRUPT, FORMAT_UNSUPPORTED. */
export function decodeControlClaim(data: Uint8Array, key: string): ControlClaim {
  const read = recordFields(decodeRecord(data, key), key);
  return {
    controlId: read.text("controlId", isUuid),
    controlEpoch: read.number("controlEpoch", 1),
    site: read.text("site", () => true),
    claimedAtMs: read.number("claimedAtMs"),
  };
}

export function decodeSealedKeys(data: Uint8Array, key: string): SealedKeysRecord {
  const json = decodeRecord(data, key);
  const read = recordFields(json, key);
  const { sealed } = json;
  // Longer than other texts of a record: the book of everyone who is enrolled is in it.
  if (typeof sealed !== "string" || !/^([0-9a-f]{2}){17,}$/.test(sealed)) {
    throw damagedRecord(key, '"sealed" has an impossible value');
  }
  return {
    controlId: read.text("controlId", isUuid),
    controlEpoch: read.number("controlEpoch", 1),
    createdAtMs: read.number("createdAtMs"),
    mark: read.text("mark", (text) => /^[0-9a-f]{64}$/.test(text)),
    // The check has just compared it with the only one.
    cipher: read.text("cipher", (text) => text === "aes-256-gcm") as "aes-256-gcm",
    salt: read.text("salt", (text) => /^[0-9a-f]{64}$/.test(text)),
    nonce: read.text("nonce", (text) => /^[0-9a-f]{24}$/.test(text)),
    sealed,
  };
}

/** Additional data under which the keys of `head` are sealed. */
export function sealedKeysBinding(head: SealedKeysHead): Uint8Array {
  const { controlId, controlEpoch, createdAtMs, mark, cipher, salt, nonce } = head;
  return utf8Bytes(
    canonicalJson({ format: RECORD_FORMAT, controlId, controlEpoch, createdAtMs, mark, cipher, salt, nonce }),
  );
}
