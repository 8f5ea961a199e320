/**
 * Names of the objects of a replica store: one builder for each kind, and one parser for all.
 *
 * Invariants:
 * - numbers are hexadecimal and of fixed length, so that LIST order is number order;
 * - no name derives from content, and no deleted name is ever created again;
 * - ids inside a name (`isName`) cannot contain "/", so a name parses in one way only.
 *
 * Source: docs/format.md, "Names".
 */
import { hex16, parseHex16 } from "../units.ts";
import { isName } from "./fields.ts";
import type { KeptCollection } from "./kept-record.ts";

/** Longest id of a group, a key, a collector's object in a name. */
const MAX_ID_LENGTH = 64;

/** `root` is "" or a path without a slash at its ends. */
function prefixOf(root: string): string {
  if (root.startsWith("/") || root.endsWith("/"))
    throw new RangeError(`Store root "${root}" must not begin or end with "/"`);
  return root === "" ? "" : `${root}/`;
}

function id(text: string, what: string): string {
  if (!isName(text, MAX_ID_LENGTH)) {
    throw new RangeError(`${what} must be 1 to ${MAX_ID_LENGTH} letters, digits or ". _ -", got "${text}"`);
  }
  return text;
}

function fixedHex(value: number, digits: number, what: string): string {
  if (!Number.isSafeInteger(value) || value < 0 || value >= 16 ** digits) throw new RangeError(`${what} ${value}`);
  return value.toString(16).padStart(digits, "0");
}

/** Names that belong to the store as a whole. */
export function storeNames(root: string) {
  const prefix = prefixOf(root);
  return {
    store: `${prefix}store.json`,
    disks: `${prefix}disks/`,
    groups: `${prefix}groups/`,
    catalog: (path: string) => `${prefix}catalog/${path}`,
    evidence: (path: string) => `${prefix}evidence/${path}`,
    controlEpochs: `${prefix}control/epochs/`,
    controlEpoch: (epoch: number) => `${prefix}control/epochs/${hex16(epoch)}`,
    controlKeys: `${prefix}control/keys/`,
    controlKey: (no: number) => `${prefix}control/keys/${hex16(no)}`,
    catalogGroups: `${prefix}catalog/groups/`,
    catalogGroup: (groupId: string) => `${prefix}catalog/groups/${id(groupId, "Group id")}/`,
    catalogEntry: (groupId: string, revision: number) =>
      `${prefix}catalog/groups/${id(groupId, "Group id")}/${hex16(revision)}`,
    keptCollection: (collection: KeptCollection) => `${prefix}catalog/${collection}/`,
    keptSeries: (collection: KeptCollection, name: string) =>
      `${prefix}catalog/${collection}/${id(name, "Name of a series")}/`,
    keptRecord: (collection: KeptCollection, name: string, number: number) =>
      `${prefix}catalog/${collection}/${id(name, "Name of a series")}/${hex16(number)}`,
    /** Keys that a probe of the store may create and delete. */
    scratch: `${prefix}scratch/`,
  } as const;
}

/** Names below one disk. Those that end in "/" are prefixes to list. */
export function diskNames(root: string, diskId: string) {
  const prefix = `${prefixOf(root)}disks/${id(diskId, "Disk id")}/`;
  const branch = (branchId: string) => `${prefix}branches/${id(branchId, "Branch id")}/`;
  return {
    prefix,
    epochs: `${prefix}epochs/`,
    epoch: (epoch: number) => `${prefix}epochs/${hex16(epoch)}`,
    keys: `${prefix}keys/`,
    key: (keyId: string) => `${prefix}keys/${id(keyId, "Key id")}`,
    branches: `${prefix}branches/`,
    origin: (branchId: string) => `${branch(branchId)}origin.json`,
    journal: (branchId: string) => `${branch(branchId)}journal/`,
    commit: (branchId: string, seq: number) => `${branch(branchId)}journal/${hex16(seq)}`,
    segments: `${prefix}segments/`,
    segment: (epoch: number, counter: number) => `${prefix}segments/${segmentName(epoch, counter)}`,
    pack: (name: string) => `${prefix}packs/${id(name, "Pack name")}`,
    map: (shard: number, name: string) => `${prefix}maps/${fixedHex(shard, 4, "Shard")}/${id(name, "Map name")}`,
    containerTable: (name: string) => `${prefix}containers/${id(name, "Table name")}`,
    manifests: `${prefix}manifests/`,
    manifest: (no: number) => `${prefix}manifests/${hex16(no)}`,
    tombstone: (dueDay: string, name: string) =>
      `${prefix}tombstones/${id(dueDay, "Day")}/${id(name, "Tombstone name")}`,
    collectorTerms: `${prefix}gc/`,
    collectorTerm: (term: number) => `${prefix}gc/${hex16(term)}`,
  } as const;
}

export type DiskNames = ReturnType<typeof diskNames>;

/** Names below one group. */
export function groupNames(root: string, groupId: string) {
  const prefix = `${prefixOf(root)}groups/${id(groupId, "Group id")}/`;
  return {
    prefix,
    epochs: `${prefix}epochs/`,
    epoch: (epoch: number) => `${prefix}epochs/${hex16(epoch)}`,
    barriers: `${prefix}barriers/`,
    barrier: (barrier: number) => `${prefix}barriers/${hex16(barrier)}`,
    points: `${prefix}points/`,
    point: (cutAtMs: number, barrier: number) => `${prefix}points/${formatPointId(cutAtMs, barrier)}`,
  } as const;
}

export type GroupNames = ReturnType<typeof groupNames>;

/** `{cutMs:013d}-{barrier:016x}`: sorts by time. */
export function formatPointId(cutAtMs: number, barrier: number): string {
  if (!Number.isSafeInteger(cutAtMs) || cutAtMs < 0 || cutAtMs > 9_999_999_999_999)
    throw new RangeError(`Cut ${cutAtMs}`);
  return `${String(cutAtMs).padStart(13, "0")}-${hex16(barrier)}`;
}

export function parsePointId(text: string): { cutAtMs: number; barrier: number } | undefined {
  const match = /^([0-9]{13})-([0-9a-f]{16})$/.exec(text);
  const barrier = match ? parseHex16(match[2]!) : undefined;
  return barrier === undefined ? undefined : { cutAtMs: Number(match![1]), barrier };
}

/** `{epoch:08x}-{counter:012x}`: the last part of a segment's name, and its container id without the role. */
export function segmentName(epoch: number, counter: number): string {
  return `${fixedHex(epoch, 8, "Epoch")}-${fixedHex(counter, 12, "Counter")}`;
}

/** The number behind `prefix`, when the rest of `key` is exactly 16 hex digits: epochs, commits, barriers, manifests. */
export function parseNumbered(prefix: string, key: string): number | undefined {
  return key.startsWith(prefix) ? parseHex16(key.slice(prefix.length)) : undefined;
}

/** The id behind `prefix`, when the rest of `key` is exactly `{id}{suffix}`: keys, or branches with suffix "/origin.json". */
export function parseNamed(prefix: string, key: string, suffix = ""): string | undefined {
  if (!key.startsWith(prefix) || !key.endsWith(suffix)) return undefined;
  const text = key.slice(prefix.length, key.length - suffix.length);
  return isName(text, MAX_ID_LENGTH) ? text : undefined;
}

export function parseSegment(prefix: string, key: string): { epoch: number; counter: number } | undefined {
  const match = key.startsWith(prefix) ? /^([0-9a-f]{8})-([0-9a-f]{12})$/.exec(key.slice(prefix.length)) : null;
  return match ? { epoch: Number.parseInt(match[1]!, 16), counter: Number.parseInt(match[2]!, 16) } : undefined;
}
