/**
 * Where the blocks of an image are, one shard at a time.
 *
 * Opening reads the commits since the nearest anchor, and no map. A shard's map is read when a block of it is asked for; those that were used last
 * stay, up to a bound. Without an anchor the commits are the whole map, and it stays in memory.
 *
 * An anchor may be gone when its map is wanted, and the position, if somebody needs it, is promised by a newer one: then the image is opened once more by
 * the newest manifest, and goes on. What was read before stays good, for both say the same of the same frames.
 *
 * Source: docs/format.md, "Reading a disk".
 */
import type { ExtentMap } from "#model/extent-map.ts";
import type { Anchor } from "#model/format/manifest.ts";
import { type ImageContainer, imageContainer } from "./image-container.ts";
import { replayLine, type ImagePosition, type Replay } from "./line-replay.ts";
import { lruCache } from "./lru-cache.ts";
import { anchorsOnLine, readNewestManifest } from "./manifests.ts";
import { isUnusable, type MapAccess } from "./map-access.ts";
import { mergeShard, readShard, type Shard } from "./shard-source.ts";

export interface ImageMaps {
  readonly shape: Replay["shape"];
  /** The map of a shard, at once when it is at hand. Throws OBJECT_CORRUPT, OBJECT_MISSING, KEY_MISSING, STORE_…. */
  at(shard: number): ShardView | Promise<ShardView>;
}

export interface ShardView {
  /** Covers the shard; outside of it, it may say anything. */
  readonly extents: ExtentMap;
  container(source: number): ImageContainer;
}

/** Throws like `replayLine`. */
export async function openImageMaps(
  access: MapAccess,
  position: ImagePosition,
  options: { readonly mapBytes: number },
): Promise<ImageMaps> {
  const { disk, keyring, storeId } = access;
  let frameBase = 0;
  /** Containers are made when a block of them is read: an image names thousands of which most are never touched. */
  const containersOf = (shard: Pick<Shard, "container">): ShardView["container"] => {
    const made = new Map<number, ImageContainer>();
    return (source) => {
      const known = made.get(source);
      if (known !== undefined) return known;
      const place = shard.container(source);
      const container = imageContainer(place, {
        store: disk.store,
        keyring,
        cipher: keyring.cipher,
        storeId,
        diskId: disk.diskId,
        frameBase,
      });
      frameBase += place.directory.count;
      made.set(source, container);
      return container;
    };
  };

  interface Opened {
    readonly no: number;
    readonly anchors: readonly Anchor[];
    readonly base: Anchor | undefined;
    readonly replay: Replay;
    readonly replayed: ShardView["container"];
    readonly whole: ShardView;
  }
  const open = async (): Promise<Opened> => {
    const { highest, anchors } = await readNewestManifest(access);
    const { base, replay } = await readFrom(access, position, anchors);
    const inUse = placesInUse(replay);
    const replayed = containersOf({ container: (source) => inUse[source]! });
    return { no: highest, anchors, base, replay, replayed, whole: { extents: replay.extents, container: replayed } };
  };
  let opened = await open();
  let reopening: Promise<Opened> | undefined;
  const resident = lruCache<ShardView>(options.mapBytes);
  const coming = new Map<number, Promise<ShardView>>();

  const loadFrom = async ({ base, anchors, replay, replayed, whole }: Opened, shard: number): Promise<ShardView> => {
    if (base?.maps.some((map) => map.shard === shard) !== true) return whole;
    const older = await readShard(access, base, { shard, anchors });
    const merged = mergeShard(older, replay, { shard, cipher: keyring.cipher });
    const mapped = containersOf(merged);
    const view: ShardView = {
      extents: merged.extents,
      container: (source) => (source < replay.places.length ? replayed(source) : mapped(source)),
    };
    resident.set(shard, view, Math.min(options.mapBytes, bytesOf(merged, older))); // One stays, however large it is.
    return view;
  };
  const load = async (shard: number): Promise<ShardView> => {
    const from = opened;
    try {
      return await loadFrom(from, shard);
    } catch (error) {
      if (!isUnusable(error)) throw error;
      if (opened === from) {
        if ((await readNewestManifest(access)).highest === from.no) throw error;
        reopening ??= open().finally(() => (reopening = undefined));
        opened = await reopening;
      }
      return loadFrom(opened, shard);
    }
  };

  return {
    shape: opened.replay.shape,
    at(shard) {
      if (opened.base?.maps.some((map) => map.shard === shard) !== true) return opened.whole;
      const known = resident.get(shard) ?? coming.get(shard);
      if (known !== undefined) return known;
      const loading = load(shard).finally(() => coming.delete(shard));
      coming.set(shard, loading);
      return loading;
    },
  };
}

/** The replay from the nearest anchor; of the whole history when that one leads elsewhere, for what the commits say is what counts. */
async function readFrom(
  access: MapAccess,
  position: ImagePosition,
  anchors: readonly Anchor[],
): Promise<{ readonly base: Anchor | undefined; readonly replay: Replay }> {
  for await (const base of anchorsOnLine(access.disk, anchors, position)) {
    try {
      return { base, replay: await replayLine(access, position, { base }) };
    } catch (error) {
      if (!isUnusable(error)) throw error;
      access.log?.warn("The commits behind an anchor cannot be read on from it: the whole history is read", {
        disk: access.disk.diskId,
        branch: base.branch,
        seq: base.seq,
        fault: String(error),
      });
      break;
    }
  }
  return { base: undefined, replay: await replayLine(access, position) };
}

/** Places by source; those that no block refers to any more are left out, with their directories. */
function placesInUse({ extents, places }: Replay): (Replay["places"][number] | undefined)[] {
  const used = new Set(extents.source.subarray(0, extents.count));
  return places.map((place, source) => (used.has(source) ? place : undefined));
}

/** About what a resident shard holds: 20 bytes an extent, 22 a frame, of which it keeps no more than extents, 120 a container. */
function bytesOf(merged: Shard, older: Shard | undefined): number {
  return 20 * merged.extents.count + 22 * (older?.extents.count ?? 0) + 120 * (older?.containerCount ?? 0);
}
