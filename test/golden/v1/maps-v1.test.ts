import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { diskNames } from "#model/format/object-names.ts";
import { openImage } from "../../../src/data-mover/image.ts";
import { readManifest } from "../../../src/data-mover/manifests.ts";
import { readMapShard } from "../../../src/data-mover/map-store.ts";
import { DISK_ID, ROOT, SIZE_BYTES, STORE_ID } from "./facts.ts";
import { goldenContents, goldenStore, openGolden } from "./golden-store.ts";

const disk = diskNames(ROOT, DISK_ID);

test("The golden map and manifest are the ones that were made for version 1", async () => {
  const { objects } = await goldenStore("maps");
  const sums = [...objects].map(([key, data]) => `${createHash("sha256").update(data).digest("hex")}  ${key}\n`).sort();
  assert.equal(sums.join(""), await readFile(new URL("./MAPS_SHA256SUMS", import.meta.url), "utf8"));
});

test("The golden disk is read by its golden map, without the commits that the map replaces", async () => {
  const { store, context, keyring } = await openGolden("store", "maps");
  for (const seq of [1, 2]) assert.ok(store.objects.delete(disk.commit("root", seq)));
  const { synced, changed } = goldenContents();
  for (const [seq, expected] of [
    [2, synced],
    [3, changed],
  ] as const) {
    const image = await openImage(context, { keyring, storeId: STORE_ID, branch: "root", seq });
    const actual = Buffer.alloc(SIZE_BYTES, 0xee);
    await image.read(actual, 0);
    assert.ok(actual.equals(expected.subarray(0, SIZE_BYTES)), `commit ${seq}`);
  }
});

test("The golden manifest and map say what they said when they were written", async () => {
  const { context, keyring } = await openGolden("store", "maps");
  const access = { disk: context, keyring, storeId: STORE_ID };
  const { anchors } = await readManifest(access, 1);
  const [anchor] = anchors;
  assert.ok(anchor !== undefined && anchors.length === 1);
  assert.deepEqual(
    [anchor.branch, anchor.epoch, anchor.seq, anchor.data.cycle, anchor.cutAtMs, anchor.sizeBytes, anchor.maps.length],
    ["root", 1, 2, 1, 1_786_000_005_000, SIZE_BYTES, 1],
  );
  const map = await readMapShard(access, anchor.maps[0]!);
  assert.equal(map.shard, 0);
  const { start, length, source, count } = map.extents;
  const runs = Array.from({ length: count }, (_, index) => [start[index], length[index], source[index]]);
  assert.deepEqual(runs, [
    [0, 64, 0],
    [64, 5, 0],
    [69, 31, 0xffffffff],
  ]);
  assert.deepEqual([map.containerCount, map.container(0).containerId, map.container(0).commit], [1, "010000000001000000000001", undefined]);
  assert.deepEqual([...map.frames(0).number, ...map.frames(0).blocks], [0, 1, 64, 5]);
});
