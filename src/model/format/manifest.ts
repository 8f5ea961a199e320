/**
 * Manifests: which anchors a disk has. An anchor says that the disk, after one commit of a branch, is what these map shards say;
 * whoever opens a cut after it reads the shards that it needs and the commits in between, and not the whole history.
 *
 * Invariants:
 * - an anchor is true for ever: which commits count up to a seq never changes, so neither does what the disk is after it. A manifest that
 *   is out of date says less, and nothing wrong;
 * - the MAC covers the whole record, and with `head` the header and index of each map shard: nobody without the disk's key can make one,
 *   move it to another disk or put another shard in its place. That there is a newer manifest it cannot show;
 * - as long as nothing was collected, nothing here is needed to read the disk: without manifests the commits say everything. Once a branch has a
 *   floor, what lies below it is read by its anchors alone;
 * - a manifest with a ledger has format 2: a program that does not know ledgers adds no version that would forget one.
 *
 * Source: docs/format.md, "Manifests".
 */
import type { JsonObject } from "../json.ts";
import { SHARDS_MAX } from "../shard-map.ts";
import { isName } from "./fields.ts";
import { damagedRecord, memberObject, RECORD_FORMAT, recordFields } from "./json-record.ts";
import { ledgerFrom, type LedgerRecord, ledgerToJson } from "./ledger-record.ts";
import { decodeMacRecord, encodeMacRecord, type Mac } from "./mac-record.ts";
import { isBranchId, isCommitHash, isDiskId } from "./records.ts";

/** One object `maps/{shard}/{name}`. */
export interface MapReference {
  readonly shard: number;
  readonly name: string;
  /** First 16 bytes of SHA-256 over its header and index, 32 hex digits. */
  readonly head: string;
  /** Of the object. */
  readonly bytes: number;
}

/** The disk after commit `seq` of `branch`. Shards that are not listed were never written. */
export interface Anchor {
  readonly branch: string;
  readonly epoch: number;
  readonly seq: number;
  readonly commitHash: string;
  /** The newest commit with data up to there on this branch; all zero, and the parent's hash, when there is none. */
  readonly data: {
    readonly epoch: number;
    readonly seq: number;
    readonly commitHash: string;
    readonly cycle: number;
    readonly cutAtMs: number;
    readonly writerId: string;
  };
  /** Cut of the newest data in it, also when that is a parent's. */
  readonly cutAtMs: number;
  readonly sizeBytes: number;
  readonly sectorBytes: number;
  /** Ascending by shard. */
  readonly maps: readonly MapReference[];
}

export interface Manifest {
  readonly no: number;
  readonly storeId: string;
  readonly diskId: string;
  /** Tells "mine" from "another's" after a lost reply: 16 hex digits. */
  readonly writerId: string;
  readonly createdAtMs: number;
  /** In the order in which they were made. */
  readonly anchors: readonly Anchor[];
  /** What of the history is promised. Without: all of it. */
  readonly ledger?: LedgerRecord;
}

const LEDGER_FORMAT = 2;

/** Shards that several anchors share are written once: `maps` is a table, an anchor lists places in it. */
export function encodeManifest(manifest: Manifest, mac: Mac): Uint8Array {
  const places = new Map<string, number>();
  const maps: MapReference[] = [];
  const anchors = manifest.anchors.map((anchor) => ({
    ...anchor,
    maps: anchor.maps.map((reference) => {
      const name = `${reference.shard}/${reference.name}`;
      const place = places.get(name) ?? maps.push(reference) - 1;
      places.set(name, place);
      return place;
    }),
  }));
  const { ledger, ...plain } = manifest;
  const format = ledger === undefined ? RECORD_FORMAT : LEDGER_FORMAT;
  const record = { format, ...plain, maps, anchors, ...(ledger !== undefined && { ledger: ledgerToJson(ledger) }) };
  return encodeMacRecord(record, mac);
}

/** `mac` undefined: who wrote it is not checked. Throws OBJECT_CORRUPT (also when the MAC does not hold), FORMAT_UNSUPPORTED. */
export function decodeManifest(data: Uint8Array, key: string, mac: Mac | undefined): Manifest {
  const json = decodeMacRecord(data, key, mac, LEDGER_FORMAT);
  const read = recordFields(json, key);
  const maps = read.list("maps", (value) => mapReference(memberObject(value, key, "map"), key));
  return {
    no: read.number("no", 1),
    storeId: read.text("storeId"),
    diskId: read.text("diskId", isDiskId),
    writerId: read.text("writerId"),
    createdAtMs: read.number("createdAtMs"),
    anchors: read.list("anchors", (value) => anchorFrom(memberObject(value, key, "anchor"), key, maps)),
    ...(json["format"] === LEDGER_FORMAT && { ledger: ledgerFrom(memberObject(json["ledger"], key, "ledger"), key) }),
  };
}

function anchorFrom(json: JsonObject, key: string, table: readonly MapReference[]): Anchor {
  const read = recordFields(json, key);
  const data = recordFields(memberObject(json["data"], key, "anchor"), key);
  const maps = read.list("maps", (place) => (typeof place === "number" ? table[place] : undefined));
  if (maps.some(({ shard }, index) => index > 0 && shard <= maps[index - 1]!.shard))
    throw damagedRecord(key, "the shards of an anchor are not in order");
  return {
    branch: read.text("branch", isBranchId),
    epoch: read.number("epoch"),
    seq: read.number("seq", 1),
    commitHash: read.text("commitHash", isCommitHash),
    data: {
      epoch: data.number("epoch"),
      seq: data.number("seq"),
      commitHash: data.text("commitHash", isCommitHash),
      cycle: data.number("cycle"),
      cutAtMs: data.number("cutAtMs"),
      writerId: data.text("writerId", () => true),
    },
    cutAtMs: read.number("cutAtMs"),
    sizeBytes: read.number("sizeBytes", 1),
    sectorBytes: read.number("sectorBytes", 512),
    maps,
  };
}

function mapReference(json: JsonObject, key: string): MapReference {
  const read = recordFields(json, key);
  const shard = read.number("shard");
  if (shard >= SHARDS_MAX) throw damagedRecord(key, `shard ${shard} is impossible`);
  return {
    shard,
    name: read.text("name", (text) => isName(text, 64)),
    head: read.text("head", isCommitHash),
    bytes: read.number("bytes"),
  };
}
