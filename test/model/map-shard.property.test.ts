import assert from "node:assert/strict";
import { test } from "node:test";
import { type ExtentMap, extentMapBuilder, runsOf, sliceMap, SOURCE_TRIM, SOURCE_ZERO } from "#model/extent-map.ts";
import { isFault } from "#model/fault.ts";
import { HEADER_BYTES } from "#model/format/header.ts";
import { decodeMapShard, encodeMapShard, type MapShard, type ShardContainer } from "#model/format/map-shard.ts";
import { compactShard, newFrames, SHARD_BLOCKS, type ShardFrames, shardsIn } from "#model/shard-map.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { seededRandom } from "../support/format-samples.ts";

const TAG_BYTES = 16;
const SPAN = 2000;

type Random = ReturnType<typeof seededRandom>;

/** Containers with frames around `first`, and extents that each lie in one of them. */
function randomShard(random: Random, shard: number): MapShard {
  const first = shard * SHARD_BLOCKS;
  const containers: { readonly container: ShardContainer; readonly frames: ShardFrames }[] = [];
  for (let source = 0; source < 1 + random.below(5); source++) {
    const indexBytes = 100 + random.below(1000);
    const frames = newFrames(1 + random.below(20));
    let [number, offset] = [0, HEADER_BYTES + indexBytes];
    for (let frame = 0; frame < frames.count; frame++) {
      number += random.below(3);
      offset += random.below(3) * 1000;
      frames.number[frame] = number++;
      frames.offset[frame] = offset;
      frames.blocks[frame] = 1 + random.below(64);
      frames.block[frame] = first + random.below(SPAN) + (shard > 0 ? -20 : 0);
      frames.codec[frame] = random.below(2);
      frames.storedBytes[frame] =
        frames.blocks[frame]! * BLOCK_SIZE - (frames.codec[frame] === 1 ? random.below(4000) : 0);
      offset += frames.storedBytes[frame]! + TAG_BYTES;
    }
    containers.push({
      container: {
        containerId: `010000000001${(source + 1).toString(16).padStart(12, "0")}`,
        headSha256: random.bytes(32),
        salt: random.bytes(32),
        dataKeyId: "00112233445566aa",
        indexBytes,
        digestBytes: random.below(5000),
        ...(random.below(2) === 0 && { commit: { branch: `b-${random.below(3)}`, seq: 1 + random.below(1e9) } }),
      },
      frames,
    });
  }
  const extents = extentMapBuilder();
  for (let at = first; at < first + SPAN;) {
    const what = random.below(6);
    const length = 1 + random.below(12);
    if (what < 2) extents.push(at, length, what === 0 ? SOURCE_ZERO : SOURCE_TRIM, 0);
    else if (what < 5) {
      const source = random.below(containers.length);
      const { frames } = containers[source]!;
      const inside = [...frames.block].findIndex((block, frame) => block <= at && at < block + frames.blocks[frame]!);
      if (inside >= 0)
        extents.push(at, Math.min(length, frames.block[inside]! + frames.blocks[inside]! - at), source, inside);
    }
    at += length;
  }
  return {
    shard,
    extents: extents.finish(),
    containerCount: containers.length,
    container: (source) => containers[source]!.container,
    frames: (source) => containers[source]!.frames,
  };
}

/** What each block of the span reads as, without the numbers that a compact shard may change. */
function answers(map: MapShard): string[] {
  const out: string[] = [];
  for (const run of runsOf(map.extents, map.shard * SHARD_BLOCKS, SPAN + 100)) {
    const data = run.source !== undefined && run.source < SOURCE_TRIM;
    const frames = data ? map.frames(run.source) : undefined;
    const frame =
      frames &&
      (["number", "offset", "block", "blocks", "storedBytes", "codec"] as const).map(
        (field) => frames[field][run.frame],
      );
    const container = data ? map.container(run.source) : undefined;
    const text = JSON.stringify([container?.containerId, container?.commit, frame, data ? 0 : run.source]);
    for (let block = 0; block < run.length; block++) out.push(text);
  }
  return out;
}

test("A compact shard answers as before, and names no container or frame that no block refers to", () => {
  for (let number = 0; number < 200; number++) {
    const map = randomShard(seededRandom(`compact ${number}`), number % 3);
    const compact = { ...compactShard(map), shard: map.shard };
    assert.deepEqual(answers(compact), answers(map));
    const used = new Set(
      [...compact.extents.source].slice(0, compact.extents.count).filter((source) => source < SOURCE_TRIM),
    );
    assert.equal(used.size, compact.containerCount);
    for (const source of used) {
      const { count } = compact.extents;
      const frames = Array.from({ length: count }, (_, index) => index).filter(
        (index) => compact.extents.source[index] === source,
      );
      assert.equal(new Set(frames.map((index) => compact.extents.frame[index])).size, compact.frames(source).count);
    }
  }
});

test("A map shard is decoded to what was encoded", () => {
  for (let number = 0; number < 200; number++) {
    const map = randomShard(seededRandom(`codec ${number}`), number % 3);
    const compact = { ...compactShard(map), shard: map.shard };
    const decoded = decodeMapShard(encodeMapShard(compact, TAG_BYTES), {
      sizeBytes: 3 * SHARD_BLOCKS * BLOCK_SIZE,
      tagBytes: TAG_BYTES,
    });
    assert.equal(decoded.shard, map.shard);
    assert.deepEqual(answers(decoded), answers(map));
    for (let source = 0; source < decoded.containerCount; source++)
      assert.deepEqual(decoded.container(source), compact.container(source));
  }
});

test("A damaged map shard is a fault, or another shard that is possible, and never anything else", () => {
  const random = seededRandom("damaged maps");
  const genuine = Array.from({ length: 20 }, (_, number) => {
    const map = randomShard(seededRandom(`damage ${number}`), number % 2);
    return { shard: map.shard, plain: encodeMapShard({ ...compactShard(map), shard: map.shard }, TAG_BYTES).slice() };
  });
  const disk = { sizeBytes: 2 * SHARD_BLOCKS * BLOCK_SIZE, tagBytes: TAG_BYTES };
  let refused = 0;
  for (let number = 0; number < 3000; number++) {
    const { shard, plain } = genuine[number % genuine.length]!;
    const cut = plain.slice(0, random.below(4) === 0 ? random.below(plain.length) : plain.length);
    for (let hits = 1 + random.below(3); hits > 0 && cut.length > 0; hits--)
      cut[random.below(cut.length)] = random.below(256);
    try {
      const decoded = decodeMapShard(cut, disk);
      if (number % 10 === 0) answers({ ...decoded, shard });
    } catch (error) {
      if (!isFault(error)) throw error;
      refused++;
    }
  }
  assert.ok(refused > 1000, `${refused} refused`);
});

test("A slice of a map says what the map says, and nothing outside of it", () => {
  const random = seededRandom("slices");
  for (let number = 0; number < 300; number++) {
    const map: ExtentMap = randomShard(random, 0).extents;
    const start = random.below(SPAN);
    const end = start + 1 + random.below(SPAN);
    const slice = sliceMap(map, start, end);
    assert.deepEqual([...runsOf(slice, start, end - start)], [...runsOf(map, start, end - start)]);
    assert.ok(
      slice.count === 0 ||
        (slice.start[0]! >= start && slice.start[slice.count - 1]! + slice.length[slice.count - 1]! <= end),
    );
  }
});

test("The shards of a map are those in which it has extents, each once", () => {
  const extents = extentMapBuilder();
  extents.push(5, 10, SOURCE_ZERO, 0);
  extents.push(100, 10, SOURCE_ZERO, 0);
  extents.push(SHARD_BLOCKS - 1, 1, SOURCE_ZERO, 0);
  extents.push(3 * SHARD_BLOCKS - 2, 2 * SHARD_BLOCKS, SOURCE_TRIM, 0);
  extents.push(9 * SHARD_BLOCKS, 1, SOURCE_TRIM, 0);
  assert.deepEqual(shardsIn(extents.finish()), [0, 2, 3, 4, 9]);
});
