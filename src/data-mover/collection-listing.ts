/**
 * What a disk's store holds, as far as collection looks (`Listing`), read after the version that it is judged by.
 *
 * Invariants:
 * - what cannot be read is needed: an unreadable commit above its floor may name any segment, so then no segment is collected;
 * - segments count as named once only by commits that count. Below the floor, those are found by walking down from its anchor, along the chain;
 *   what a hole cuts off from it is taken for stale, and its segments are left alone;
 * - an anchor is good for reading only if each of its maps opens and each container that these name is there. One that is not is no floor, and at
 *   or below a floor it ends the pass.
 *
 * Objects never change, so what they name is remembered by their names from pass to pass: a pass costs LISTs, and reads what is new.
 */
import { floorOf, type Ledger, type Listing } from "#model/collection/ledger.ts";
import { Fault, isFault } from "#model/fault.ts";
import { MAX_PLAIN_INDEX_BYTES, tagBytesOf } from "#model/format/commit-index.ts";
import { decodeMapShard } from "#model/format/map-shard.ts";
import type { Anchor } from "#model/format/manifest.ts";
import { parseNumbered } from "#model/format/object-names.ts";
import { readCommit } from "./branch-reader.ts";
import { openHead, readIndex } from "./container-reader.ts";
import { readIfThere, storeOptions, withRetries, type DiskContext } from "./disk-context.ts";
import { containerKey } from "./line-replay.ts";
import { isUnusable, type MapAccess } from "./map-access.ts";
import { listFolders } from "./store-groups.ts";
import { decompress } from "./zstd.ts";

/** Kept between passes over one disk. Some 200 bytes a commit, and a name a container in each map. */
export interface CollectionMemory {
  readonly commits: Map<string, CommitNames>;
  readonly maps: Map<string, MapNames>;
}

interface CommitNames {
  readonly commitHash: string;
  readonly chain: string;
  readonly segments: readonly string[];
}

interface MapNames {
  /** See `MapReference`. */
  readonly head: string;
  readonly names: readonly string[];
}

export function collectionMemory(): CollectionMemory {
  return { commits: new Map(), maps: new Map() };
}

export interface Look {
  readonly listing: Listing;
  /** Why an anchor cannot be read; those that can are not in it. */
  readonly unusable: ReadonlyMap<Anchor, Fault>;
  /** By key. */
  readonly sizes: ReadonlyMap<string, number>;
  /** By branch: its newest slot. Every branch that has anything is in it. */
  readonly tips: ReadonlyMap<string, number>;
}

const READS_AT_ONCE = 8;

/** `ledger` and `anchors` of one version, which was read before. Throws STORE_…, KEY_…, and what the signal says. */
export async function lookAtDisk(
  access: MapAccess,
  version: { readonly ledger: Ledger; readonly anchors: readonly Anchor[] },
  memory: CollectionMemory,
): Promise<Look> {
  const { disk } = access;
  const { ledger, anchors } = version;
  await access.keyring.refresh();
  const sizes = new Map<string, number>();
  const slots = new Map<string, number[]>();
  for (const branch of await listFolders(disk, disk.names.branches)) {
    const prefix = disk.names.journal(branch);
    const seqs: number[] = [];
    for (const { key, size } of await listAll(disk, prefix)) {
      const seq = parseNumbered(prefix, key);
      if (seq === undefined) continue;
      seqs.push(seq);
      sizes.set(key, size);
    }
    slots.set(branch, seqs);
  }
  const segments = await keysOf(disk, disk.names.segments, sizes);
  const mapKeys = await keysOf(disk, `${disk.names.prefix}maps/`, sizes);

  const unreadable = new Set<string>();
  const commitKeys = [...slots].flatMap(([branch, seqs]) => seqs.map((seq) => ({ branch, seq })));
  await eachOf(commitKeys, async ({ branch, seq }) => {
    const key = disk.names.commit(branch, seq);
    if (memory.commits.has(key)) return;
    const names = await readNames(access, branch, seq);
    if (names === undefined) unreadable.add(key);
    else memory.commits.set(key, names);
  });
  await eachOf(mapKeys, async (key) => {
    if (memory.maps.has(key)) return;
    const names = await readMapNames(access, key);
    if (names === undefined) unreadable.add(key);
    else memory.maps.set(key, names);
  });
  forget(memory.commits, sizes);
  forget(memory.maps, sizes);

  const commits: Listing["commits"][number][] = [];
  for (const [branch, seqs] of slots) {
    const floor = floorOf(ledger, branch);
    const counted = countedBelow(access.disk, branch, { floor, anchors, memory });
    for (const seq of seqs) {
      const key = disk.names.commit(branch, seq);
      const named = seq > floor || counted.has(seq) ? (memory.commits.get(key)?.segments ?? []) : [];
      commits.push({ branch, seq, key, names: [key, ...named] });
    }
  }
  const isBlind = commits.some(({ branch, seq, key }) => seq > floorOf(ledger, branch) && unreadable.has(key));
  const maps = mapKeys.map((key) => ({ key, names: memory.maps.get(key)?.names ?? [] }));
  return {
    listing: { commits, maps, segments: isBlind ? [] : segments },
    unusable: unusableAnchors(disk, anchors, { memory, sizes }),
    sizes,
    tips: new Map([...slots].map(([branch, seqs]) => [branch, seqs.at(-1) ?? 0])),
  };
}

/** Below and at the floor: the commits that count, as far as they are linked to its anchor. */
function countedBelow(
  disk: DiskContext,
  branch: string,
  from: { readonly floor: number; readonly anchors: readonly Anchor[]; readonly memory: CollectionMemory },
): ReadonlySet<number> {
  const counted = new Set<number>();
  let wanted = from.anchors.find((anchor) => anchor.branch === branch && anchor.seq === from.floor)?.commitHash;
  for (let seq = from.floor; seq > 0 && wanted !== undefined; seq--) {
    const commit = from.memory.commits.get(disk.names.commit(branch, seq));
    if (commit === undefined) break;
    if (commit.commitHash !== wanted) continue; // Stale.
    counted.add(seq);
    wanted = commit.chain;
  }
  return counted;
}

function unusableAnchors(
  disk: DiskContext,
  anchors: readonly Anchor[],
  there: { readonly memory: CollectionMemory; readonly sizes: ReadonlyMap<string, number> },
): ReadonlyMap<Anchor, Fault> {
  const unusable = new Map<Anchor, Fault>();
  for (const anchor of anchors) {
    for (const { shard, name, head } of anchor.maps) {
      const key = disk.names.map(shard, name);
      const map = there.memory.maps.get(key);
      const missing = map?.names.find((one) => !there.sizes.has(one));
      if (map?.head === head && missing === undefined) continue;
      const [code, what] =
        missing !== undefined
          ? (["OBJECT_MISSING", `it names "${missing}", which is not there`] as const)
          : there.sizes.has(key)
            ? (["OBJECT_CORRUPT", "it is not the one that the manifest names"] as const)
            : (["OBJECT_MISSING", "it is not there"] as const);
      const details = { diskId: disk.diskId, branch: anchor.branch, seq: anchor.seq, key };
      unusable.set(
        anchor,
        new Fault(code, `Map "${key}" of the anchor at commit ${anchor.seq} cannot be used: ${what}`, {
          details,
          hint: "Run `leeward store check`; restore the object from another copy of the bucket. Until then nothing is collected.",
        }),
      );
      break;
    }
  }
  return unusable;
}

/** Undefined: it is damaged, or closed. */
async function readNames(access: MapAccess, branch: string, seq: number): Promise<CommitNames | undefined> {
  const { disk, keyring } = access;
  try {
    const { header, prefix } = await withRetries(disk, () => readCommit(disk, branch, seq));
    const { commitHash, chain } = header;
    if (header.kind === "fence") return { commitHash, chain, segments: [] };
    const head = openHead(prefix, keyring);
    if ("needBytes" in head) throw new RangeError("A commit is read with its whole index");
    return { commitHash, chain, segments: readIndex(head).segments.map((one) => containerKey(disk, one)) };
  } catch (error) {
    if (isUnusable(error) || isFault(error, "KEY_MISSING")) return undefined;
    throw error;
  }
}

/** Undefined: it is damaged, or closed. */
async function readMapNames(access: MapAccess, key: string): Promise<MapNames | undefined> {
  const { disk, keyring } = access;
  const data = await readIfThere(disk, key);
  if (data === undefined) return undefined;
  try {
    const opened = openHead(data, keyring);
    if ("needBytes" in opened || opened.header.kind !== "map" || opened.header.diskId !== disk.diskId) return undefined;
    const { header, packedIndex, commitHash } = opened;
    const plain = decompress(packedIndex, MAX_PLAIN_INDEX_BYTES, "Map");
    const map = decodeMapShard(plain, { sizeBytes: header.diskSizeBytes, tagBytes: tagBytesOf(header.cipher) });
    const names = Array.from({ length: map.containerCount }, (_, source) => containerKey(disk, map.container(source)));
    return { head: commitHash, names };
  } catch (error) {
    if (isUnusable(error) || isFault(error, "KEY_MISSING")) return undefined;
    throw error;
  }
}

async function listAll(disk: DiskContext, prefix: string): Promise<{ readonly key: string; readonly size: number }[]> {
  return withRetries(disk, async () => {
    const found: { readonly key: string; readonly size: number }[] = [];
    for await (const entry of disk.store.list(prefix, storeOptions(disk))) found.push(entry);
    return found;
  });
}

async function keysOf(disk: DiskContext, prefix: string, sizes: Map<string, number>): Promise<string[]> {
  const entries = await listAll(disk, prefix);
  for (const { key, size } of entries) sizes.set(key, size);
  return entries.map(({ key }) => key);
}

function forget(memory: Map<string, unknown>, sizes: ReadonlyMap<string, number>): void {
  for (const key of memory.keys()) if (!sizes.has(key)) memory.delete(key);
}

async function eachOf<Item>(items: readonly Item[], work: (item: Item) => Promise<void>): Promise<void> {
  const queue = items.values();
  const lane = async (): Promise<void> => {
    for (const item of queue) await work(item);
  };
  await Promise.all(Array.from({ length: READS_AT_ONCE }, lane));
}
