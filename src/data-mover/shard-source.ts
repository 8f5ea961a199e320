/**
 * A shard of the disk as of an anchor: from its map, or, when that is damaged or gone, from an older one and the commits in between.
 *
 * A damaged map costs time and never data: what it says stands in the commits too, as long as they are kept.
 */
import { overlay, sliceMap, SOURCE_LIMIT, type ExtentMap } from "#model/extent-map.ts";
import { tagBytesOf } from "#model/format/commit-index.ts";
import type { Cipher } from "#model/format/header.ts";
import type { Anchor } from "#model/format/manifest.ts";
import type { MapShard } from "#model/format/map-shard.ts";
import { copyFrames, SHARD_BLOCKS, type ShardContent, type ShardFrames } from "#model/shard-map.ts";
import { containerKey, replayLine, type Replay } from "./line-replay.ts";
import { type ContainerPlace, framesOf } from "./image-container.ts";
import { anchorsOnLine } from "./manifests.ts";
import { isUnusable, type MapAccess } from "./map-access.ts";
import { readMapShard } from "./map-store.ts";

export type Shard = ShardContent<ContainerPlace>;

/**
 * Shard `shard` as of `anchor`; undefined when nothing was ever written there. `anchors`: all that may help.
 * Throws what reading the commits throws, when the map is unusable and they are too.
 */
export async function readShard(
  access: MapAccess,
  anchor: Anchor,
  { shard, anchors }: { readonly shard: number; readonly anchors: readonly Anchor[] },
): Promise<Shard | undefined> {
  const reference = anchor.maps.find((map) => map.shard === shard);
  if (reference === undefined) return undefined;
  try {
    return shardOfMap(access, await readMapShard(access, reference));
  } catch (error) {
    if (!isUnusable(error)) throw error;
    access.log?.warn("A map cannot be used: it is worked out from an older one and the commits since", {
      key: access.disk.names.map(shard, reference.name),
      fault: String(error),
    });
  }
  let base: Anchor | undefined;
  for await (const older of anchorsOnLine(access.disk, anchors, anchor)) {
    const other = older.maps.find((map) => map.shard === shard);
    if (other?.name === reference.name || isSame(older, anchor)) continue;
    base = older;
    break;
  }
  const replay = await replayLine(access, anchor, { base });
  const older = base && (await readShard(access, base, { shard, anchors }));
  return mergeShard(older, replay, { shard, cipher: access.keyring.cipher });
}

function isSame(one: Anchor, other: Anchor): boolean {
  return one.branch === other.branch && one.seq === other.seq;
}

/** A shard with what `replay` has of it on top: the replay's sources first, then the shard's. Not compact. */
export function mergeShard(
  older: Shard | undefined,
  { extents, places }: Pick<Replay, "extents" | "places">,
  { shard, cipher }: { readonly shard: number; readonly cipher: Cipher },
): Shard {
  const newer = sliceMap(extents, shard * SHARD_BLOCKS, (shard + 1) * SHARD_BLOCKS);
  const shifted = older && { ...older.extents, source: shiftSources(older.extents, places.length) };
  const known = new Map<number, ShardFrames>();
  const framesAt = (source: number): ShardFrames => {
    const frames =
      known.get(source) ??
      (source < places.length ? framesOf(places[source]!, tagBytesOf(cipher)) : older!.frames(source - places.length));
    known.set(source, frames);
    return frames;
  };
  return {
    extents: shifted === undefined ? newer : overlay(shifted, newer),
    containerCount: places.length + (older?.containerCount ?? 0),
    container: (source) => (source < places.length ? places[source]! : older!.container(source - places.length)),
    frames: framesAt,
  };
}

function shiftSources(extents: ExtentMap, by: number): Uint32Array {
  const source = extents.source.slice(0, extents.count);
  for (let index = 0; index < source.length; index++) if (source[index]! < SOURCE_LIMIT) source[index]! += by;
  return source;
}

function shardOfMap({ disk }: MapAccess, map: MapShard): Shard {
  return {
    ...map,
    container(source) {
      const container = map.container(source);
      const { number, offset, ...directory } = copyFrames(map.frames(source));
      return { ...container, key: containerKey(disk, container), directory, kept: { number, offset } };
    },
  };
}
