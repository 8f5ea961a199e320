import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { Fault, isFault } from "#model/fault.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { memoryStore, type MemoryStore } from "../../src/adapters/memory/memory-store.ts";
import { restorePoint } from "../../src/data-mover/export-restore.ts";
import { listPoints } from "../../src/data-mover/points.ts";
import { MARKED, smallStore, type SmallStore } from "../support/small-store.ts";

interface Bench {
  readonly objects: MemoryStore;
  readonly made: SmallStore;
  readonly folder: string;
}

async function bench(t: TestContext): Promise<Bench> {
  const objects = memoryStore();
  const made = await smallStore(objects);
  const folder = await mkdtemp(join(tmpdir(), "leeward-restore-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return { objects, made, folder };
}

async function pointAt({ made }: Bench, barrier: number) {
  const points = await listPoints(await made.group(made.open()));
  return points.find((point) => point.barrier === barrier)!;
}

async function assertRestored({ made, folder }: Bench, barrier: number): Promise<void> {
  for (const [diskId, expected] of made.states.get(barrier)!)
    assert.ok((await readFile(join(folder, `${diskId}.raw`))).equals(expected), `${diskId} at ${barrier}`);
}

/** The store, with something done before each GET below the disks' data. */
function watched(objects: MemoryStore, before: (key: string) => void | Promise<void>): ObjectStore {
  return {
    ...objects,
    async get(key, options) {
      if (/journal|segments/.test(key)) await before(key);
      return objects.get(key, options);
    },
  };
}

test("Every point is restored as the disks were at its cut, with holes for what is zero", async (t) => {
  const at = await bench(t);
  for (const barrier of at.made.states.keys()) {
    const folder = join(at.folder, `${barrier}`);
    await restorePoint({ store: at.made.open(), point: await pointAt(at, barrier), folder });
    await assertRestored({ ...at, folder }, barrier);
    assert.deepEqual((await readdir(folder)).sort(), ["web-data.raw", "web-system.raw"]);
  }
  const { blocks, size } = await stat(join(at.folder, "4", "web-system.raw"));
  assert.ok(blocks * 512 < size, "zeroes take no space");
});

test("A restore that was stopped goes on with what is missing, and ends with the same image", async (t) => {
  const at = await bench(t);
  const point = await pointAt(at, 5);
  const stop = new AbortController();
  let gets = 0;
  const interrupted = at.made.open(
    watched(at.objects, () => {
      // After the indexes of the first disk: in the middle of its data.
      if (++gets === 9) stop.abort(new Fault("INTERRUPTED", "Stopped by the test"));
    }),
  );
  const { folder } = at;
  await assert.rejects(restorePoint({ store: interrupted, point, folder, signal: stop.signal }), {
    code: "INTERRUPTED",
  });
  const left = await readdir(folder);
  assert.ok(left.includes("web-system.raw.partial") && !left.includes("web-system.raw"), left.join());
  const state = JSON.parse(await readFile(join(folder, "web-system.raw.partial.json"), "utf8")) as { done: string };
  assert.ok(
    Buffer.from(state.done, "base64").some((byte) => byte !== 0),
    "something was done",
  );

  let after = 0;
  await restorePoint({ store: at.made.open(watched(at.objects, () => void after++)), point, folder });
  await assertRestored(at, 5);
  await rm(folder, { recursive: true });
  let whole = 0;
  await restorePoint({ store: at.made.open(watched(at.objects, () => void whole++)), point, folder });
  assert.ok(after < whole, `${after} requests instead of ${whole}`);
});

test("Disks that have their name already are not restored again by the attempt that goes on", async (t) => {
  const at = await bench(t);
  const point = await pointAt(at, 5);
  const { folder } = at;
  let segments = 0;
  // The second disk's data cannot be read.
  const broken = at.made.open(
    watched(at.objects, (key) => {
      if (key.includes("web-data/segments")) throw new Fault("STORE_UNAVAILABLE", "The store is away");
      if (key.includes("web-system/segments")) segments++;
    }),
  );
  const members = [...point.members].sort((a, b) => (a.diskId < b.diskId ? 1 : -1));
  assert.equal(members[0]!.diskId, "web-system");
  await assert.rejects(restorePoint({ store: broken, point: { ...point, members }, folder }), {
    code: "STORE_UNAVAILABLE",
  });
  assert.ok((await readdir(folder)).includes("web-system.raw"));
  const before = segments;
  const { ino } = await stat(join(folder, "web-system.raw"));
  await restorePoint({ store: at.made.open(), point: { ...point, members }, folder });
  await assertRestored(at, 5);
  assert.equal((await stat(join(folder, "web-system.raw"))).ino, ino);
  assert.ok(before > 0);
  assert.deepEqual((await readdir(folder)).sort(), ["web-data.raw", "web-system.raw"]);
});

test("A file that is there, and a part of another restore, are replaced only when the caller says so", async (t) => {
  const at = await bench(t);
  const { folder } = at;
  const mine = join(folder, "web-data.raw");
  await writeFile(mine, "somebody's");
  const store = at.made.open();
  const point = await pointAt(at, MARKED);
  await assert.rejects(restorePoint({ store, point, folder }), { code: "REFUSED" });
  assert.equal(await readFile(mine, "utf8"), "somebody's");
  await restorePoint({ store, point, folder, overwrite: true });
  await assertRestored(at, MARKED);

  await rm(folder, { recursive: true });
  const stop = new AbortController();
  stop.abort(new Fault("INTERRUPTED", "Stopped by the test"));
  await assert.rejects(restorePoint({ store, point, folder, signal: stop.signal }), { code: "INTERRUPTED" });
  const other = await pointAt(at, 5);
  await assert.rejects(restorePoint({ store, point: other, folder }), (error) => isFault(error, "REFUSED"));
  await restorePoint({ store, point: other, folder, overwrite: true });
  await assertRestored(at, 5);
});

test("A restore from a damaged container fails, names it, and leaves no file with a final name", async (t) => {
  const at = await bench(t);
  const { folder } = at;
  const key = [...at.objects.objects.keys()].find((name) => name.includes("web-system/segments"))!;
  const object = at.objects.objects.get(key)!;
  object[object.length - 200]! ^= 4;
  const point = await pointAt(at, 5);
  await assert.rejects(restorePoint({ store: at.made.open(), point, folder }), (error) => {
    assert.ok(isFault(error, "OBJECT_CORRUPT"));
    assert.equal(error.details["key"], key);
    return true;
  });
  assert.ok(!(await readdir(folder)).includes("web-system.raw"));
  object[object.length - 200]! ^= 4;
  await restorePoint({ store: at.made.open(), point, folder });
  await assertRestored(at, 5);
});
