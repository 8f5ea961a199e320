/**
 * `catalog/groups/{group}/{revision}`: all that a group's workflow knows and the rest of the store does not say, so that another control plane
 * can go on with it. The entry of the highest revision counts.
 *
 * The revision is given by the one writer, the group's workflow, before it asks for the write: an attempt that was given up and lands late
 * is an older revision, and changes nothing. `record` is the workflow's own JSON, with a version of its own; it is kept whole, with members that this
 * program does not know.
 *
 * Source: docs/format.md, "Catalog".
 */
import { memberObject, recordFields } from "./json-record.ts";
import { decodeMacRecord, encodeMacRecord, type Mac } from "./mac-record.ts";
import type { JsonObject } from "../json.ts";

export interface CatalogEntry {
  readonly groupId: string;
  readonly revision: number;
  readonly writtenAtMs: number;
  readonly record: JsonObject;
}

export function encodeCatalogEntry(entry: CatalogEntry, mac: Mac): Uint8Array {
  return encodeMacRecord(entry, mac);
}

/** Without `mac` it is not checked who wrote it. Throws OBJECT_CORRUPT, FORMAT_UNSUPPORTED. */
export function decodeCatalogEntry(data: Uint8Array, key: string, mac?: Mac): CatalogEntry {
  const json = decodeMacRecord(data, key, mac);
  const read = recordFields(json, key);
  return {
    groupId: read.text("groupId"),
    revision: read.number("revision", 1),
    writtenAtMs: read.number("writtenAtMs"),
    record: memberObject(json["record"], key, "record"),
  };
}
