/**
 * The ledger as a manifest keeps it: floors, where branches begin, points and pins, and what is condemned. What it means, and what may follow what, is
 * `../collection/ledger.ts`.
 *
 * Condemned keys stand in tombstones, objects of their own, so that a version stays small; the version has a tombstone's hash.
 *
 * Source: docs/format.md, "The ledger".
 */
import type { LedgerPin, Position } from "../collection/ledger.ts";
import type { JsonObject } from "../json.ts";
import { isName } from "./fields.ts";
import { damagedRecord, memberObject, recordFields } from "./json-record.ts";
import { isBranchId } from "./records.ts";

export interface LedgerRecord {
  /** By branch; those that are not here have none. */
  readonly floors: Readonly<Record<string, number>>;
  /** Where each branch begins; null: at nothing, as `root` does. */
  readonly parents: Readonly<Record<string, Position | null>>;
  readonly points: readonly Position[];
  readonly pins: readonly PinRecord[];
  readonly condemned: readonly CondemnedRecord[];
  /** Versions that nobody could read when the next one was written. With any, nothing is collected until a person has looked. */
  readonly lost: readonly number[];
}

/** `id` says whose it is, and is the same for all positions that one reader needs. */
export interface PinRecord extends LedgerPin {
  /** Who released it if nobody else does: the master target that made it; "": only by its id. */
  readonly holder: string;
  readonly sinceMs: number;
}

export interface CondemnedRecord {
  /** `{day}/{name}`: the last part of the tombstone's key. */
  readonly tombstone: string;
  readonly dueMs: number;
  /** Of the tombstone, 64 hex digits. */
  readonly sha256: string;
  /** Keys (below the disk's prefix) that it lists and that were needed again before this was a version. */
  readonly spared: readonly string[];
}

export const NO_LEDGER: LedgerRecord = { floors: {}, parents: {}, points: [], pins: [], condemned: [], lost: [] };

/** Lists instead of objects with names as members: no branch is called like something that every object has. */
export function ledgerToJson(ledger: LedgerRecord): object {
  return {
    ...ledger,
    floors: Object.entries(ledger.floors).map(([branch, seq]) => ({ branch, seq })),
    parents: Object.entries(ledger.parents).map(([branch, parent]) => ({ branch, ...(parent !== null && { parent }) })),
  };
}

/** Throws OBJECT_CORRUPT. */
export function ledgerFrom(json: JsonObject, key: string): LedgerRecord {
  const read = recordFields(json, key);
  const list = <Item>(
    name: string,
    item: (fields: ReturnType<typeof recordFields>, json: JsonObject) => Item,
  ): Item[] =>
    read.list(name, (value) => {
      const member = memberObject(value, key, name);
      return item(recordFields(member, key), member);
    });
  const position = (fields: ReturnType<typeof recordFields>): Position => ({
    branch: fields.text("branch", isBranchId),
    seq: fields.number("seq"),
  });
  const floors = list("floors", position);
  const parents = list("parents", (fields, member) => ({
    branch: fields.text("branch", isBranchId),
    parent:
      member["parent"] === undefined
        ? null
        : position(recordFields(memberObject(member["parent"], key, "parent"), key)),
  }));
  if (new Set(floors.map(({ branch }) => branch)).size < floors.length)
    throw damagedRecord(key, "a branch has two floors");
  return {
    floors: Object.fromEntries(floors.map(({ branch, seq }) => [branch, seq])),
    parents: Object.fromEntries(parents.map(({ branch, parent }) => [branch, parent])),
    points: list("points", position),
    pins: list("pins", (fields) => ({
      ...position(fields),
      id: fields.text("id", (text) => text.length > 0 && text.length <= 200),
      holder: fields.text("holder", () => true),
      sinceMs: fields.number("sinceMs"),
    })),
    condemned: list("condemned", (fields, member) => ({
      tombstone: fields.text("tombstone", isTombstone),
      dueMs: fields.number("dueMs"),
      sha256: fields.text("sha256", (text) => /^[0-9a-f]{64}$/.test(text)),
      spared: Array.isArray(member["spared"]) ? member["spared"].map((one) => textOf(one, key)) : [],
    })),
    lost: read.list("lost", (value) => (typeof value === "number" && Number.isSafeInteger(value) ? value : undefined)),
  };
}

function textOf(value: unknown, key: string): string {
  if (typeof value === "string") return value;
  throw damagedRecord(key, '"spared" holds an impossible value');
}

/** `{day}/{name}` */
export function isTombstone(text: string): boolean {
  const [day = "", name = "", ...more] = text.split("/");
  return more.length === 0 && isName(day, 64) && isName(name, 64);
}
