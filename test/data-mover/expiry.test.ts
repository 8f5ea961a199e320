import assert from "node:assert/strict";
import { test } from "node:test";
import type { RetentionPolicy } from "#model/retention/policy.ts";
import { HOUR_MS } from "#model/retention/policy.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { s3ObjectStore } from "../../src/adapters/s3/s3-object-store.ts";
import { startVersitygw } from "../support/versitygw.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { makeAnchors } from "../../src/data-mover/anchor-maker.ts";
import { expireGroup, type ExpireGroup, expiryMemory } from "../../src/data-mover/expiry.ts";
import { openImage } from "../../src/data-mover/image.ts";
import { mapAccess } from "../../src/data-mover/map-access.ts";
import type { OpenedDisk } from "../../src/data-mover/mover-store.ts";
import { bookmark, listPoints, pinPoint, readPoint, releasePoint } from "../../src/data-mover/points.ts";
import { checkStore } from "../../src/data-mover/store-check.ts";
import { SMALL_DISKS, type SmallStore, smallStore } from "../support/small-store.ts";

/** One hour, and nothing older but what somebody asked for. */
const SHORT: RetentionPolicy = { journalWindowMs: HOUR_MS, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 };
const DISK_IDS: readonly string[] = SMALL_DISKS.map(({ diskId }) => diskId);

async function world() {
  const objects = memoryStore();
  return { objects, ...(await worldIn(objects)) };
}

async function worldIn(objects: ObjectStore) {
  const made = await smallStore(objects);
  /** As a process that was just started. */
  const fresh = async () => {
    const store = made.open();
    const group = await made.group(store);
    const opened = new Map<string, OpenedDisk>();
    for (const disk of SMALL_DISKS) opened.set(disk.diskId, await store.openDisk(disk));
    return { group, accessOf: (diskId: string) => mapAccess(opened.get(diskId)!, silentLog) };
  };
  const { group, accessOf } = await fresh();
  // An anchor behind each commit: floors can rise to anywhere.
  for (const diskId of DISK_IDS)
    for (const point of (await listPoints(group)).toReversed()) {
      const member = point.members.find((one) => one.diskId === diskId)!;
      await makeAnchors(accessOf(diskId), member, { limits: { commits: 1, extents: 1 } });
    }
  const expire = async (more: Partial<ExpireGroup> = {}) => {
    const process = await fresh();
    return expireGroup(process.group, {
      policy: SHORT,
      stops: [],
      bookmarks: made.bookmarks,
      diskIds: DISK_IDS,
      accessOf: process.accessOf,
      memory: expiryMemory(),
      holder: "test",
      settings: { graceMs: 0, paceMs: 0 },
      ...more,
    });
  };
  const containers = async (): Promise<number> => {
    let count = 0;
    for await (const { key } of objects.list("replica/disks/")) if (/\/(journal|segments)\//.test(key)) count++;
    return count;
  };
  return { made, expire, containers };
}

async function assertReads(made: SmallStore, barrier: number): Promise<void> {
  const store = made.open();
  const group = await made.group(store);
  const point = await readPoint(group, barrier, made.bookmarks);
  for (const { diskId, branch, seq, commitHash } of point.members) {
    const disk = SMALL_DISKS.find((one) => one.diskId === diskId)!;
    const { context, keyring, storeId } = await store.openDisk(disk);
    const image = await openImage(context, { keyring, storeId, branch, seq, commitHash });
    const data = Buffer.alloc(image.sizeBytes, 0xee);
    await image.read(data, 0);
    assert.ok(data.equals(made.states.get(barrier)!.get(diskId)!), `point ${barrier} of ${diskId} reads as it was`);
  }
}

async function offered({ made }: { made: SmallStore }): Promise<number[]> {
  const group = await made.group(made.open());
  return (await listPoints(group, { bookmarks: made.bookmarks })).map(({ barrier }) => barrier);
}

test("Points that the plan lets go are no longer offered, their objects go, and every point that stays reads as it was", async () => {
  const own = await world();
  const before = await own.containers();
  assert.deepEqual(await offered(own), [8, 7, 5, 4, 3, 2]);
  // All of `root` is forty days older than what the failover wrote: its bookmark stays, and where the new branch began.
  const expired = await own.expire();
  assert.deepEqual(expired.stopped, []);
  assert.ok(expired.deleted > 0 && expired.deletedBytes > 0, JSON.stringify(expired));
  assert.ok((await own.containers()) < before);
  const left = await offered(own);
  assert.ok(left.includes(8) && left.includes(7) && left.includes(3) && !left.includes(2), `offered: ${left.join()}`);
  for (const barrier of left) await assertReads(own.made, barrier);
  await assert.rejects(async () => readPoint(await own.made.group(own.made.open()), 2), { code: "POINT_NOT_FOUND" });
  const again = await own.expire();
  assert.deepEqual([again.deleted, again.condemned, again.barriersDeleted], [0, 0, 0]);
});

test("What was collected is no damage to the check of the store, and what it still needs is", async () => {
  const own = await world();
  await own.expire();
  const context = { ...own.made.context, store: own.objects };
  const keys = { tenantKey: own.made.tenantKey, keyOf: (diskId: string) => own.made.keys.get(diskId) };
  for (const more of [{}, { keys }]) {
    const found = await checkStore(context, { readData: 100, ...more });
    assert.deepEqual(
      found.findings.filter(({ level }) => level === "damage"),
      [],
    );
    assert.ok(found.points.every(({ state }) => state === "good"));
  }
  const map = [...own.objects.objects.keys()].find((key) => key.includes("/maps/"))!;
  own.objects.objects.delete(map);
  const found = await checkStore(context, { readData: 100, keys });
  assert.ok(found.findings.some(({ key, code }) => key === map && code === "OBJECT_MISSING"));
});

test("Nothing changes while something speaks against it, or a move is under way", async () => {
  const own = await world();
  const before = [...own.objects.objects.keys()];
  for (const stop of ["source-lost", "failover-uncommitted", "group-held"] as const)
    assert.deepEqual((await own.expire({ stops: [stop] })).stopped, [stop]);
  assert.deepEqual([...own.objects.objects.keys()], before);
});

test("A pin and a bookmark keep their point below the floor until they are gone", async () => {
  const own = await world();
  const group = await own.made.group(own.made.open());
  const pinned = await readPoint(group, 2);
  await pinPoint(group, { id: "export/test", holder: "mt" }, pinned.members);
  await pinPoint(group, { id: "export/test", holder: "mt" }, pinned.members);
  await bookmark(group, { operation: "later", barrier: 5, name: "late" }, own.made.bookmarks);
  await own.expire();
  await own.expire();
  for (const barrier of [2, 3, 5, 7, 8]) await assertReads(own.made, barrier);
  await releasePoint(group, "export/test", DISK_IDS);
  await own.expire();
  assert.ok(!(await offered(own)).includes(2));
  for (const barrier of [3, 5, 7, 8]) await assertReads(own.made, barrier);
  await assert.rejects(pinPoint(group, { id: "export/late", holder: "mt" }, pinned.members), {
    code: "POINT_NOT_FOUND",
  });
});

test("A manifest that is lost stops collection, and keeps nobody from making a pin", async () => {
  const own = await world();
  await own.expire();
  const newest = [...own.objects.objects.keys()].filter((key) => key.includes("web-data/manifests/")).at(-1)!;
  own.objects.overwrite(newest, new TextEncoder().encode("{}"));
  await assert.rejects(own.expire(), { code: "OBJECT_CORRUPT" });
  const group = await own.made.group(own.made.open());
  await pinPoint(group, { id: "export/x", holder: "mt" }, (await readPoint(group, 8)).members);
  await assert.rejects(own.expire(), { code: "OBJECT_CORRUPT" });
  for (const barrier of await offered(own)) await assertReads(own.made, barrier);
});

test("A map that is damaged and needed stops the pass before anything goes", async () => {
  const own = await world();
  await own.expire();
  const before = [...own.objects.objects.keys()];
  const map = before.find((key) => key.includes("web-system/maps/"))!;
  own.objects.objects.get(map)![300]! ^= 1;
  await assert.rejects(own.expire(), (error: { code?: string }) => String(error.code).startsWith("OBJECT_"));
});

test("On a real S3 server the same goes and the same stays", async (t) => {
  const server = await startVersitygw();
  t.after(() => server.stop());
  await using store = s3ObjectStore({ ...server, bucket: "expiry" }, { clock: systemClock, random: systemRandom });
  await store.ensureBucket();
  const own = await worldIn(store);
  const before = await own.containers();
  const expired = await own.expire();
  assert.ok(expired.deleted > 0 && (await own.containers()) < before, JSON.stringify(expired));
  for (const barrier of await offered(own)) await assertReads(own.made, barrier);
  assert.deepEqual((await own.expire()).deleted, 0);
});
