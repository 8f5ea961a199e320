/**
 * Makes anchors: flattens the commits since the last one into map shards, so that no cut is far behind an anchor.
 *
 * A shard in which nothing changed is used again by its name; the others are made one at a time, so memory holds the commits of one step and one
 * shard, however large the disk. A history that has none yet (an initial sync, a store of an earlier version) is taken in steps, and
 * each step's anchor serves the cuts behind it.
 *
 * Any number of processes may do this at once, for any commits that count: each anchor is true, and the worst is work done twice.
 * Killed at any moment, it leaves map shards that nobody names; the collector takes them.
 *
 * Source: docs/format.md, "Manifests".
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Anchor } from "#model/format/manifest.ts";
import { compactShard, shardOf, shardsIn, SHARDS_MAX } from "#model/shard-map.ts";
import { blockCount } from "#model/units.ts";
import { replayLine, type ImagePosition, type Replay, type ReplayLimits } from "./line-replay.ts";
import { addAnchor } from "./disk-ledger.ts";
import { anchorsOnLine, readNewestManifest } from "./manifests.ts";
import type { MapAccess } from "./map-access.ts";
import { storeMapShard } from "./map-store.ts";
import { mergeShard, readShard } from "./shard-source.ts";

/**
 * No cut is further behind an anchor than this. 250 indexes are read in a second even from a store that is busy, and are 20 minutes of 5 s cycles;
 * 100,000 extents are less than 4 MB in memory, and 25 GiB of an initial sync.
 */
export const ANCHOR_LIMITS: ReplayLimits = { commits: 250, extents: 100_000 };

/**
 * Make anchors up to `target` until it is within `limits` of one. Resolves to those that were made.
 * Throws what reading commits and writing objects throws; the disk is as readable as before.
 */
export async function makeAnchors(
  access: MapAccess,
  target: ImagePosition,
  options: { readonly limits?: ReplayLimits; readonly signal?: AbortSignal } = {},
): Promise<Anchor[]> {
  const limits = options.limits ?? ANCHOR_LIMITS;
  const made: Anchor[] = [];
  for (;;) {
    options.signal?.throwIfAborted();
    const { anchors } = await readNewestManifest(access);
    const base = await nearest(access, anchors, target);
    const replay = await replayLine(access, target, { base, limits });
    if (!replay.limited) return made;
    const anchor = await flatten(access, replay, { base, anchors, ...options });
    if (anchor === undefined || !(await addAnchor(access, anchor))) return made;
    made.push(anchor);
  }
}

/**
 * The anchor just there, with its maps stored and not yet in a version. Undefined for a disk that maps cannot describe.
 * Throws what reading commits and writing objects throws.
 */
export async function anchorAt(
  access: MapAccess,
  target: ImagePosition,
  options: { readonly signal?: AbortSignal } = {},
): Promise<Anchor | undefined> {
  await makeAnchors(access, target, options); // So that what follows is bounded.
  const { anchors } = await readNewestManifest(access);
  const base = await nearest(access, anchors, target);
  const replay = await replayLine(access, target, { base });
  // Nothing to lay over it: it is there.
  if (replay.last === undefined) return base;
  if (replay.shape === undefined) return undefined;
  return flatten(access, replay, { base, anchors, ...options });
}

async function nearest(
  { disk }: MapAccess,
  anchors: readonly Anchor[],
  target: ImagePosition,
): Promise<Anchor | undefined> {
  for await (const anchor of anchorsOnLine(disk, anchors, target)) return anchor;
  return undefined;
}

/** Undefined for a disk that maps cannot describe: they have one size, of at most a PiB. */
async function flatten(
  access: MapAccess,
  replay: Replay,
  {
    base,
    anchors,
    signal,
  }: { readonly base: Anchor | undefined; readonly anchors: readonly Anchor[]; readonly signal?: AbortSignal },
): Promise<Anchor | undefined> {
  const { last, shape } = replay;
  if (last === undefined || shape === undefined) throw new RangeError("A replay that reached a limit has read commits");
  if (replay.resized || shardOf(blockCount(shape.sizeBytes) - 1) >= SHARDS_MAX) return undefined;
  const { branch, epoch, seq, commitHash, data } = last;
  const head = { branch, epoch, seq, commitHash, data, ...pick(shape) };
  const maps = new Map((base?.maps ?? []).map((reference) => [reference.shard, reference]));
  for (const shard of shardsIn(replay.extents)) {
    signal?.throwIfAborted();
    await nextTurn(); // A shard is the longest piece of work that keeps everyone else in this process waiting.
    const older = base && (await readShard(access, base, { shard, anchors }));
    const compact = compactShard(mergeShard(older, replay, { shard, cipher: access.keyring.cipher }));
    maps.set(shard, await storeMapShard(access, { ...compact, shard }, head));
  }
  return { ...head, maps: [...maps.values()].sort((a, b) => a.shard - b.shard) };
}

function pick({ sizeBytes, sectorBytes, cutAtMs }: NonNullable<Replay["shape"]>) {
  return { sizeBytes, sectorBytes, cutAtMs };
}
