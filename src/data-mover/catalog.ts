/**
 * The catalog: each group's record, by revision, and what the rest of the store says of the group. Nothing here needs a disk key.
 *
 * A damaged or half-written entry is reported, and the one before it stands: it is older, and the claims of the group, which are always consulted
 * beside it, say where that matters. One whose MAC does not hold is treated alike: somebody without the site's key made it.
 *
 * Source: docs/format.md, "Catalog".
 */
import { Fault, isFault } from "#model/fault.ts";
import { decodeCatalogEntry, encodeCatalogEntry, type CatalogEntry } from "#model/format/catalog-entry.ts";
import { diskNames, groupNames, parseNumbered, storeNames } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import {
  decodeBarrier,
  decodeGroupClaim,
  type BarrierRecord,
  type DiskClaim,
  type GroupClaim,
} from "#model/format/records.ts";
import { listNumbers, readHighestClaim } from "./claims.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, readIntact, storeOptions, withRetries, type StoreContext } from "./disk-context.ts";

/** What is in the catalog of one group. */
export interface CatalogGroup {
  readonly groupId: string;
  /** The newest entry that can be read. */
  readonly entry?: CatalogEntry;
  /** Newer ones that cannot, with why. */
  readonly damaged: readonly { readonly key: string; readonly fault: Fault }[];
}

/** Where a group stands by its claims, and what can be recovered. */
export interface GroupStanding {
  readonly claim?: GroupClaim;
  /** The highest claim of the group's first disk: which branch is written, or that it is being moved. */
  readonly disk?: DiskClaim;
  /** The newest barrier that is there; whether each of its commits is, has not been checked. */
  readonly newest?: { readonly barrier: number; readonly cutAtMs: number };
}

/**
 * Keep `entry`; the answer is the group's highest revision afterwards. Higher than the entry's: somebody has written a newer one, and the writer
 * goes on above it. Throws REFUSED when its own revision holds something else.
 */
export async function writeCatalogEntry(context: StoreContext, entry: CatalogEntry, mac: Mac): Promise<number> {
  const { groupId, revision } = entry;
  const names = storeNames(context.root);
  const key = names.catalogEntry(groupId, revision);
  const mine = JSON.stringify(entry.record);
  const taken = await createOnce(context, {
    key,
    body: encodeCatalogEntry(entry, mac),
    look: async () => {
      const data = await readIfThere(context, key);
      return data && (await readIntact(async () => decodeCatalogEntry(data, key, mac)))?.record;
    },
    isMine: (found) => JSON.stringify(found) === mine,
  });
  const highest = (await listNumbers(context, names.catalogGroup(groupId))).at(-1) ?? revision;
  if (taken !== undefined && highest === revision) {
    throw new Fault("REFUSED", `Revision ${revision} of group "${groupId}" in the catalog holds another record`, {
      details: { groupId, revision },
    });
  }
  return highest;
}

/** One group of the catalog. */
export async function readCatalogGroup(context: StoreContext, groupId: string, mac: Mac): Promise<CatalogGroup> {
  const revisions = await listNumbers(context, storeNames(context.root).catalogGroup(groupId));
  return readNewest(context, groupId, revisions, mac);
}

/** All groups of the catalog, by id. Without `mac` it is not checked who wrote the entries. */
export async function readCatalog(context: StoreContext, mac?: Mac): Promise<readonly CatalogGroup[]> {
  const names = storeNames(context.root);
  const revisions = new Map<string, number[]>();
  await withRetries(context, async () => {
    revisions.clear();
    for await (const { key } of context.store.list(names.catalogGroups, storeOptions(context))) {
      const [groupId = ""] = key.slice(names.catalogGroups.length).split("/");
      const revision = parseNumbered(`${names.catalogGroups}${groupId}/`, key);
      if (groupId === "") continue;
      const known = revisions.get(groupId) ?? [];
      if (revision !== undefined) known.push(revision);
      revisions.set(groupId, known);
    }
  });
  const groups: CatalogGroup[] = [];
  for (const [groupId, known] of [...revisions].sort(([a], [b]) => (a < b ? -1 : 1)))
    groups.push(await readNewest(context, groupId, known, mac));
  return groups;
}

async function readNewest(
  context: StoreContext,
  groupId: string,
  revisions: readonly number[],
  mac: Mac | undefined,
): Promise<CatalogGroup> {
  const damaged: { key: string; fault: Fault }[] = [];
  for (const revision of revisions.toSorted((a, b) => b - a)) {
    const key = storeNames(context.root).catalogEntry(groupId, revision);
    try {
      const data = await readIfThere(context, key);
      if (data === undefined) continue; // Listed, and gone: somebody cleans up by hand.
      const entry = decodeCatalogEntry(data, key, mac);
      if (entry.groupId === groupId && entry.revision === revision) return { groupId, entry, damaged };
      throw new Fault("OBJECT_CORRUPT", `Object "${key}" is an entry of another place`, { details: { key } });
    } catch (error) {
      if (!isFault(error, "OBJECT_CORRUPT")) throw error;
      damaged.push({ key, fault: error });
    }
  }
  return { groupId, damaged };
}

export async function readStanding(context: StoreContext, groupId: string): Promise<GroupStanding> {
  const names = groupNames(context.root, groupId);
  const epoch = (await listNumbers(context, names.epochs)).at(-1);
  const barrier = (await listNumbers(context, names.barriers)).at(-1);
  const [claim, record] = await Promise.all([
    epoch === undefined ? undefined : read(context, names.epoch(epoch), decodeGroupClaim),
    barrier === undefined
      ? undefined
      : readIntact<BarrierRecord>(() => read(context, names.barrier(barrier), decodeBarrier)),
  ]);
  const [diskId] = claim?.disks ?? [];
  const disk =
    diskId === undefined
      ? undefined
      : await readHighestClaim({ ...context, diskId, names: diskNames(context.root, diskId) });
  return {
    ...(claim === undefined ? {} : { claim }),
    ...(disk === undefined ? {} : { disk }),
    ...(record === undefined ? {} : { newest: { barrier: record.barrier, cutAtMs: record.cutAtMs } }),
  };
}

async function read<Value>(
  context: StoreContext,
  key: string,
  decode: (data: Uint8Array, key: string) => Value,
): Promise<Value> {
  return decode(await withRetries(context, () => context.store.get(key, storeOptions(context))), key);
}
