/**
 * JSON records that only somebody with the store's key can have made. The MAC covers the canonical JSON of everything but itself, members that this
 * program does not know included.
 *
 * Source: docs/format.md, "Records".
 */
import { toHex } from "./fields.ts";
import { canonicalJson, damagedRecord, decodeRecord, encodeRecord, RECORD_FORMAT } from "./json-record.ts";
import { utf8Bytes } from "./utf8.ts";
import type { JsonObject } from "../json.ts";

/** Keyed MAC over the bytes of a record; HMAC-SHA-256, or nothing where the store is not encrypted. */
export type Mac = (data: Uint8Array) => Uint8Array;

/** A record of a later format brings its own `format`. */
export function encodeMacRecord(record: object, mac: Mac): Uint8Array {
  const whole = { format: RECORD_FORMAT, ...record };
  return encodeRecord({ ...whole, mac: macOf(whole, mac) });
}

/** Without `mac` it is not checked who wrote it. Throws OBJECT_CORRUPT (also when the MAC does not hold), FORMAT_UNSUPPORTED. */
export function decodeMacRecord(data: Uint8Array, key: string, mac: Mac | undefined, formatMost?: number): JsonObject {
  const json = decodeRecord(data, key, formatMost);
  const { mac: stored, ...rest } = json;
  if (mac !== undefined && stored !== macOf(rest, mac)) throw damagedRecord(key, "its MAC does not hold");
  return json;
}

function macOf(record: object, mac: Mac): string {
  return toHex(mac(utf8Bytes(canonicalJson(record))));
}
