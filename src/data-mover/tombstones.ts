/**
 * Tombstones: lists of keys that a version of the ledger condemns, as objects of their own. A tombstone alone orders nothing.
 *
 * Its hash stands in the version, so nobody can put another list in its place; and whatever it lists, only commits, segments and maps of its own disk
 * are ever deleted.
 *
 * Source: docs/format.md, "The ledger".
 */
import { hash } from "node:crypto";
import { utcCalendar } from "#model/retention/calendar.ts";
import type { Condemned } from "#model/collection/ledger.ts";
import type { CondemnedRecord } from "#model/format/ledger-record.ts";
import { damagedRecord, decodeRecord, encodeRecord, recordFields } from "#model/format/json-record.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, storeOptions, withRetries, type DiskContext } from "./disk-context.ts";

type TombstoneContext = Omit<DiskContext, "codec" | "checkpoint" | "ledger">;

/** By hash: tombstones never change. A few are due at a time. */
const known = new Map<string, readonly string[]>();
const KNOWN_MOST = 64;

/** What may be deleted of a disk, by the part of its key behind the disk's prefix. */
const COLLECTABLE =
  /^(?:branches\/[A-Za-z0-9][A-Za-z0-9._-]*\/journal\/[0-9a-f]{16}|segments\/[0-9a-f]{8}-[0-9a-f]{12}|maps\/[0-9a-f]{4}\/[A-Za-z0-9][A-Za-z0-9._-]*)$/;

export function isCollectable(disk: TombstoneContext, key: string): boolean {
  return key.startsWith(disk.names.prefix) && COLLECTABLE.test(key.slice(disk.names.prefix.length));
}

/** Name of a tombstone that falls due at `dueMs`. */
export function tombstoneName(dueMs: number, name: string): string {
  return `${utcCalendar("daily", dueMs)}/${name}`;
}

export function tombstoneKey(disk: TombstoneContext, tombstone: string): string {
  const [day = "", name = ""] = tombstone.split("/");
  return disk.names.tombstone(day, name);
}

/** Create the tombstone. Its hash. */
export async function buryTombstone(disk: TombstoneContext, condemned: Condemned): Promise<string> {
  const wrong = condemned.keys.find((one) => !isCollectable(disk, one));
  if (wrong !== undefined) throw new RangeError(`Object "${wrong}" is nothing that is collected`);
  const key = tombstoneKey(disk, condemned.tombstone);
  const keys = condemned.keys.map((one) => one.slice(disk.names.prefix.length));
  const body = encodeRecord({ diskId: disk.diskId, dueMs: condemned.dueMs, keys });
  const other = await createOnce(disk, {
    key,
    body,
    look: () => readIfThere(disk, key),
    isMine: (found) => Buffer.compare(found, body) === 0,
  });
  if (other !== undefined) throw new RangeError(`Two tombstones drew the name "${condemned.tombstone}"`);
  return hash("sha256", body, "hex");
}

/** Full keys, without those that were spared. Throws OBJECT_MISSING, OBJECT_CORRUPT, STORE_…. */
export async function condemnedKeys(disk: TombstoneContext, record: CondemnedRecord): Promise<readonly string[]> {
  const listed = known.get(record.sha256) ?? (await readTombstone(disk, record));
  if (!known.has(record.sha256)) {
    if (known.size >= KNOWN_MOST) known.delete(known.keys().next().value!);
    known.set(record.sha256, listed);
  }
  const spared = new Set(record.spared);
  return listed.filter((one) => !spared.has(one)).map((one) => `${disk.names.prefix}${one}`);
}

async function readTombstone(disk: TombstoneContext, record: CondemnedRecord): Promise<readonly string[]> {
  const key = tombstoneKey(disk, record.tombstone);
  const data = await withRetries(disk, () => disk.store.get(key, storeOptions(disk)));
  if (hash("sha256", data, "hex") !== record.sha256)
    throw damagedRecord(key, "it is not the one that the manifest names");
  const read = recordFields(decodeRecord(data, key), key);
  if (read.text("diskId") !== disk.diskId) throw damagedRecord(key, "it is another disk's");
  const keys = read.list("keys", (value) => (typeof value === "string" ? value : undefined));
  const wrong = keys.find((one) => !COLLECTABLE.test(one));
  if (wrong !== undefined) throw damagedRecord(key, `it lists "${wrong}", which is never deleted`);
  return keys;
}
