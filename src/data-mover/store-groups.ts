/**
 * What a store says of itself to somebody who knows nothing of it: its groups, their disks, the lines of history of each.
 *
 * Invariants:
 * - what is damaged is passed over, not believed: a group is found by the names of its objects, its disks by whatever record of it is intact;
 * - names are listed without walking through what lies behind them: a group with a million barriers costs as much as one with none.
 */
import { isFault } from "#model/fault.ts";
import { isName } from "#model/format/fields.ts";
import { groupNames, parseNumbered, storeNames } from "#model/format/object-names.ts";
import {
  decodeBarrier,
  decodeBranchOrigin,
  decodeDiskClaim,
  decodeGroupClaim,
  type BranchOrigin,
  type DiskClaim,
} from "#model/format/records.ts";
import { listNumbers } from "./claims.ts";
import { readIfThere, storeOptions, type DiskContext, type StoreContext } from "./disk-context.ts";

export interface FoundGroup {
  readonly groupId: string;
  /** As the catalog has it; for people. */
  readonly groupName: string;
  readonly disks: readonly FoundDisk[];
}

export interface FoundDisk {
  readonly diskId: string;
  /** "" when the catalog does not say. */
  readonly machine: string;
}

export interface FoundBranch {
  readonly branch: string;
  /** Undefined when it is damaged or missing. */
  readonly origin: BranchOrigin | undefined;
}

export async function findGroups(context: StoreContext): Promise<FoundGroup[]> {
  const ids = await listFolders(context, storeNames(context.root).groups);
  return Promise.all(ids.map((groupId) => findGroup(context, groupId)));
}

/** Ids of all disks that have anything in the store. */
export function findDisks(context: StoreContext): Promise<string[]> {
  return listFolders(context, storeNames(context.root).disks);
}

export async function findBranches(disk: DiskContext): Promise<FoundBranch[]> {
  const names = await listFolders(disk, disk.names.branches);
  return Promise.all(
    names.map(async (branch) => {
      const key = disk.names.origin(branch);
      return { branch, origin: await intact(disk, key, (data) => decodeBranchOrigin(data, key)) };
    }),
  );
}

/** The newest claim that can be read. */
export async function newestClaim(disk: DiskContext): Promise<DiskClaim | undefined> {
  for (const epoch of (await listNumbers(disk, disk.names.epochs)).toReversed()) {
    const key = disk.names.epoch(epoch);
    const claim = await intact(disk, key, (data) => decodeDiskClaim(data, key));
    if (claim?.epoch === epoch) return claim;
  }
  return undefined;
}

/** The next path segment of all keys below `prefix`, which ends in "/". */
export async function listFolders(context: StoreContext, prefix: string): Promise<string[]> {
  const found: string[] = [];
  let startAfter = prefix;
  for (;;) {
    const next = await firstKey(context, prefix, startAfter);
    if (next === undefined) return found;
    const name = next.slice(prefix.length).split("/", 1)[0]!;
    if (isName(name, 64) && next.length > prefix.length + name.length) found.push(name);
    // "0" is the character after "/": all that lies in the folder sorts before it, and nothing else does.
    startAfter = next.length > prefix.length + name.length ? `${prefix}${name}0` : next;
  }
}

async function firstKey(context: StoreContext, prefix: string, startAfter: string): Promise<string | undefined> {
  for await (const { key } of context.store.list(prefix, { ...storeOptions(context), startAfter, limit: 1 }))
    return key;
  return undefined;
}

async function findGroup(store: StoreContext, groupId: string): Promise<FoundGroup> {
  const names = groupNames(store.root, groupId);
  const disks = new Set<string>();
  for (const epoch of await listNumbers(store, names.epochs)) {
    const key = names.epoch(epoch);
    for (const diskId of (await intact(store, key, (data) => decodeGroupClaim(data, key)))?.disks ?? [])
      disks.add(diskId);
  }
  for (const barrier of (await listNumbers(store, names.barriers)).toReversed()) {
    const key = names.barrier(barrier);
    const record = await intact(store, key, (data) => decodeBarrier(data, key));
    if (record === undefined) continue;
    for (const { diskId } of record.members) disks.add(diskId);
    break;
  }
  const catalog = await catalogOf(store, groupId);
  return {
    groupId,
    groupName: catalog.groupName,
    disks: [...disks].sort().map((diskId) => ({ diskId, machine: catalog.machines.get(diskId) ?? "" })),
  };
}

/** Names for people; whatever of it cannot be read is left out. */
async function catalogOf(
  store: StoreContext,
  groupId: string,
): Promise<{ readonly groupName: string; readonly machines: ReadonlyMap<string, string> }> {
  let groupName = "";
  const machines = new Map<string, string>();
  const prefix = storeNames(store.root).catalog(`groups/${groupId}/`);
  for await (const { key } of store.store.list(prefix, storeOptions(store))) {
    if (parseNumbered(prefix, key) !== undefined) continue; // A workflow's entry; names do not change over its revisions.
    const record = await intact(store, key, (data) => JSON.parse(Buffer.from(data).toString()) as unknown);
    if (typeof record !== "object" || record === null) continue;
    const { groupName: name, disks } = record as { readonly groupName?: unknown; readonly disks?: unknown };
    if (typeof name === "string") groupName = name;
    for (const disk of Array.isArray(disks) ? disks : []) {
      const { diskId, machine } = (disk ?? {}) as { readonly diskId?: unknown; readonly machine?: unknown };
      if (typeof diskId === "string" && typeof machine === "string") machines.set(diskId, machine);
    }
  }
  return { groupName, machines };
}

/** What `decode` makes of the object; undefined when it is missing, damaged, or of a later format. */
async function intact<Value>(
  store: StoreContext,
  key: string,
  decode: (data: Uint8Array) => Value,
): Promise<Value | undefined> {
  const data = await readIfThere(store, key);
  if (data === undefined) return undefined;
  try {
    return decode(data);
  } catch (error) {
    if (error instanceof SyntaxError || isFault(error, "OBJECT_CORRUPT") || isFault(error, "FORMAT_UNSUPPORTED"))
      return undefined;
    throw error;
  }
}
