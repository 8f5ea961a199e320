/**
 * `catalog/{plans|runs}/{name}/{number}`: what the control plane keeps in numbered series and must find again when everything else of it is lost: versions
 * of recovery plans, and what became of their runs. Create-only and never deleted; `record` is JSON with a version of its own.
 *
 * The MAC covers the place too: a record that was copied to another series, or under another number, is no record.
 *
 * Source: docs/format.md, "Catalog".
 */
import { damagedRecord, memberObject, recordFields } from "./json-record.ts";
import { decodeMacRecord, encodeMacRecord, type Mac } from "./mac-record.ts";
import type { JsonObject } from "../json.ts";

export const KEPT_COLLECTIONS = ["plans", "runs"] as const;
export type KeptCollection = (typeof KEPT_COLLECTIONS)[number];

export interface KeptRecord {
  readonly collection: KeptCollection;
  readonly name: string;
  readonly number: number;
  readonly writtenAtMs: number;
  readonly record: JsonObject;
}

export function isKeptCollection(value: unknown): value is KeptCollection {
  return KEPT_COLLECTIONS.some((one) => one === value);
}

export function encodeKeptRecord(kept: KeptRecord, mac: Mac): Uint8Array {
  return encodeMacRecord(kept, mac);
}

/** Throws OBJECT_CORRUPT, FORMAT_UNSUPPORTED. */
export function decodeKeptRecord(data: Uint8Array, key: string, mac: Mac): KeptRecord {
  const json = decodeMacRecord(data, key, mac);
  const read = recordFields(json, key);
  const collection = json["collection"];
  if (!isKeptCollection(collection)) throw damagedRecord(key, '"collection" has an impossible value');
  return {
    collection,
    name: read.text("name"),
    number: read.number("number", 1),
    writtenAtMs: read.number("writtenAtMs"),
    record: memberObject(json["record"], key, "record"),
  };
}
