import assert from "node:assert/strict";
import { test } from "node:test";
import { Fault } from "#model/fault.ts";
import { encodeManifest } from "#model/format/manifest.ts";
import { makeAnchors } from "../../src/data-mover/anchor-maker.ts";
import { startAnchoring } from "../../src/data-mover/anchoring.ts";
import { readNewestManifest } from "../../src/data-mover/manifests.ts";
import { slots } from "../../src/data-mover/segment-upload.ts";
import { DISK_ID, STORE_ID } from "../support/format-samples.ts";
import { createHistory, firstDifference, type History, SIZE_BYTES } from "./history-fixture.ts";

const LIMITS = { commits: 4, extents: 1e6 };
const HISTORIES = Number(process.env["LEEWARD_HISTORIES"] ?? 40);
const SEED = process.env["LEEWARD_SEED"] ?? "anchors";

async function grow(history: History, steps: number, onStep?: () => Promise<void>): Promise<void> {
  const { random } = history;
  for (let step = 0; step < steps; step++) {
    const branch = history.branches[random.below(history.branches.length)]!;
    const what = random.below(10);
    if (what === 0) await history.fence(branch);
    else if (what === 1 && history.places.length > 0)
      await history.commit(await history.fork(history.places[random.below(history.places.length)]!));
    else await history.commit(branch);
    await onStep?.();
  }
}

function mapObjects(history: History, kind = /\/(maps|manifests)\//): string[] {
  return [...history.store.objects.keys()].filter((key) => kind.test(key));
}

/** Flip a bit, cut off, delete, or put another genuine object of the kind in its place. */
function damage(history: History): void {
  const { random, store } = history;
  const keys = mapObjects(history);
  if (keys.length === 0) return;
  const key = keys[random.below(keys.length)]!;
  const data = store.objects.get(key)!;
  const what = random.below(4);
  if (what === 0) store.objects.delete(key);
  else if (what === 1) store.objects.set(key, data.slice(0, random.below(data.length)));
  else if (what === 2) store.objects.set(key, store.objects.get(keys[random.below(keys.length)]!)!);
  else {
    const changed = data.slice();
    changed[random.below(changed.length)]! ^= 1 << random.below(8);
    store.objects.set(key, changed);
  }
}

async function assertAllRead(history: History, seed: string): Promise<void> {
  for (const { state, ...place } of history.places) {
    const mapBytes = history.random.below(2) === 0 ? 1 : 1 << 20;
    const image = await history.open(place, { mapBytes }).catch((error: unknown) => {
      // A branch that begins with fences has no data, and no size.
      if ((error as { code?: string }).code === "NO_POINT" && state.size === 0) return undefined;
      throw error;
    });
    if (image === undefined) continue;
    assert.equal(image.sizeBytes, SIZE_BYTES);
    assert.equal(await firstDifference(image, state), undefined, `${seed}: commit ${place.seq} of ${place.branch}`);
  }
}

test("Every commit of a random history with branches reads the same with anchors made at random moments, and with any of them damaged", async () => {
  let [anchors, warnings] = [0, 0];
  for (let number = 0; number < HISTORIES; number++) {
    const seed = `${SEED} ${number}`;
    const history = await createHistory(seed);
    const { random } = history;
    await grow(history, 4 + random.below(16), async () => {
      if (random.below(4) === 0) {
        const target = history.tip(history.branches[random.below(history.branches.length)]!);
        anchors += (await makeAnchors(history.access, target, { limits: LIMITS })).length;
      }
      if (number % 2 === 1 && random.below(6) === 0) damage(history);
    });
    await assertAllRead(history, seed);
    warnings += history.warnings.length;
    if (number % 2 === 0) assert.deepEqual(history.warnings, [], `${seed}: nothing was damaged`);
  }
  assert.ok(anchors > HISTORIES, `${anchors} anchors`);
  assert.ok(warnings > HISTORIES / 4, `${warnings} warnings`);
});

test("Opening a cut reads the commits since the nearest anchor and no others", async () => {
  const history = await createHistory("bounded");
  for (let number = 0; number < 60; number++) await history.commit("root");
  const anchors = await makeAnchors(history.access, history.tip("root"), { limits: LIMITS });
  assert.equal(anchors.length, 15);
  const { store } = history;
  // What is not ours lies among the commits, and takes places of a listing.
  for (const seq of [29, 30, 57]) store.objects.set(`${history.disk.names.commit("root", seq)}.tmp`, new Uint8Array(9));
  const keys: string[] = [];
  const { get } = store;
  store.get = (key, options) => (keys.push(key), get.call(store, key, options));
  for (const { state, ...place } of [history.places[2]!, history.places[30]!, history.places[58]!]) {
    keys.length = 0;
    const image = await history.open(place);
    const commits = keys.filter((key) => key.includes("/journal/"));
    assert.ok(commits.length <= LIMITS.commits, `${commits.length} commits for ${place.seq}`);
    assert.equal(keys.filter((key) => key.includes("/maps/")).length, 0, "maps are read when their blocks are");
    assert.equal(await firstDifference(image, state), undefined);
  }
});

test("A shard in which nothing changed is used again by its name, and each shard is named once", async () => {
  const history = await createHistory("reuse");
  for (let number = 0; number < 40; number++) await history.commit("root");
  const anchors = await makeAnchors(history.access, history.tip("root"), { limits: { ...LIMITS, commits: 1 } });
  let reused = 0;
  for (const [index, { maps }] of anchors.entries()) {
    assert.deepEqual(
      maps.map(({ shard }) => shard),
      [...new Set(maps.map(({ shard }) => shard))].sort(),
    );
    if (index > 0)
      reused += maps.filter((map) => anchors[index - 1]!.maps.some(({ name }) => name === map.name)).length;
  }
  assert.ok(reused > 40, `${reused} shards were used again`);
  const stored = mapObjects(history, /\/maps\//).length;
  assert.equal(stored, new Set(anchors.flatMap(({ maps }) => maps.map(({ name }) => name))).size);
});

test("An anchor lets a cut be opened when commits before it are gone, and hides no damage behind it", async () => {
  const history = await createHistory("gone");
  for (let number = 0; number < 10; number++) await history.commit("root");
  await makeAnchors(history.access, history.tip("root"), { limits: LIMITS });
  const { store, disk } = history;
  const { state, ...newest } = history.places.at(-1)!;
  // Its frames are still needed, its index is not: what is read of it is checked against the map.
  const second = store.objects.get(disk.names.commit("root", 2))!;
  store.objects.set(
    disk.names.commit("root", 2),
    second.map((byte, at) => (at === 100 ? byte ^ 1 : byte)),
  );
  const image = await history.open(newest);
  store.objects.set(disk.names.commit("root", 2), second);
  assert.equal(await firstDifference(image, state), undefined);

  const ninth = store.objects.get(disk.names.commit("root", 9))!;
  ninth[300]! ^= 1;
  await assert.rejects(history.open(newest), { code: "OBJECT_CORRUPT" });
  ninth[300]! ^= 1;
  await assert.rejects(history.open({ ...newest, commitHash: "0".repeat(32) }), { code: "CHAIN_BROKEN" });
  await assert.rejects(history.open({ ...history.places[7]!, commitHash: newest.commitHash }), {
    code: "CHAIN_BROKEN",
  });
});

test("Two processes that make anchors at once, through a store that loses its replies, both finish, and every anchor is true", async () => {
  const history = await createHistory("two makers");
  for (let number = 0; number < 30; number++) await history.commit("root");
  const { store, access, random } = history;
  const { create } = store;
  let lost = 0;
  store.create = async (key, body, options) => {
    await new Promise((resolve) => setImmediate(resolve));
    const answer = await create.call(store, key, body, options);
    if (random.below(3) > 0) return answer;
    lost++;
    throw new Fault("STORE_AMBIGUOUS", "The reply was lost");
  };
  const target = history.tip("root");
  await Promise.all([1, 2, 3].map(() => makeAnchors(access, target, { limits: LIMITS })));
  store.create = create;
  assert.ok(lost > 0);
  const { anchors, highest } = await readNewestManifest(access);
  assert.ok(highest >= 7 && anchors.length >= 7, `${anchors.length} anchors in ${highest} manifests`);
  assert.deepEqual(await makeAnchors(access, target, { limits: LIMITS }), []);
  await assertAllRead(history, "two makers");
  assert.deepEqual(history.warnings, []);
});

test("A manifest that somebody without the key wrote is not believed", async () => {
  const history = await createHistory("forged");
  for (let number = 0; number < 6; number++) await history.commit("root");
  const [anchor] = await makeAnchors(history.access, history.tip("root"), { limits: LIMITS });
  const { disk, store } = history;
  const forged = { no: 2, storeId: STORE_ID, diskId: DISK_ID, writerId: "00".repeat(8), createdAtMs: 0 };
  const lie = { ...anchor!, seq: 6, commitHash: history.tip("root").commitHash, maps: anchor!.maps.slice(1) };
  await store.create(
    disk.names.manifest(2),
    encodeManifest({ ...forged, anchors: [lie] }, () => new Uint8Array(32)),
  );
  const { state, ...newest } = history.places.at(-1)!;
  assert.equal(await firstDifference(await history.open(newest), state), undefined);
  assert.equal(history.warnings.length, 1);
  // A genuine one of another disk or number, under this name, is not believed either.
  store.objects.set(disk.names.manifest(2), store.objects.get(disk.names.manifest(1))!);
  assert.equal(await firstDifference(await history.open(newest), state), undefined);
  assert.equal(history.warnings.length, 2);
});

test("In the background anchors follow the commits; what fails is said and made up for", async () => {
  const history = await createHistory("background");
  const { store, access } = history;
  const anchoring = startAnchoring(access, { turns: slots(1), limits: LIMITS });
  const settled = async (): Promise<void> => {
    for (let turn = 0; turn < 400; turn++) await new Promise((resolve) => setImmediate(resolve));
  };
  const commitSome = async (count: number): Promise<void> => {
    for (let number = 0; number < count; number++) {
      await history.commit("root");
      anchoring.committed(history.tip("root"), 100);
      await settled();
    }
  };
  await commitSome(9);
  assert.equal((await readNewestManifest(access)).anchors.length, 2);
  const { create } = store;
  store.create = () => Promise.reject(new Fault("STORE_DENIED", "No"));
  await assert.rejects(history.commit("root"), { code: "STORE_DENIED" });
  store.create = create;
  await commitSome(1);
  store.create = (key, body, options) =>
    key.includes("/maps/") ? Promise.reject(new Fault("STORE_DENIED", "No")) : create.call(store, key, body, options);
  await commitSome(3);
  assert.ok(history.warnings.length > 0);
  store.create = create;
  await commitSome(6);
  const { anchors } = await readNewestManifest(access);
  assert.ok(history.tip("root").seq - anchors.at(-1)!.seq < LIMITS.commits);
  await anchoring.close();
  await commitSome(10);
  assert.equal((await readNewestManifest(access)).anchors.length, anchors.length);
});
