/**
 * The format is what docs/format.md says, not what our program does: a reader in another language, written from that page and sharing no code
 * with us, must restore the same bytes.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test, type TestContext } from "node:test";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { restorePoint } from "../../src/data-mover/export-restore.ts";
import { listPoints } from "../../src/data-mover/points.ts";
import { blockData, seededRandom } from "../support/format-samples.ts";
import { SMALL_GROUP, SMALL_ROOT, smallStore } from "../support/small-store.ts";
import { DISK_ID, DISK_KEY, GROUP_ID, ROOT, SIZE_BYTES } from "../golden/v1/facts.ts";

const program = join(import.meta.dirname, "..", "..", "docs", "reader", "leeward-reader.py");

async function python(...words: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = spawn("python3", [program, ...words]);
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (data: Buffer) => (stdout += data.toString()));
  child.stderr.on("data", (data: Buffer) => (stderr += data.toString()));
  const [code] = (await once(child, "close")) as [number];
  return { code, stdout, stderr };
}

async function folderOf(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "leeward-reader-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

async function writeKeys(
  folder: string,
  tenantKey: Uint8Array,
  disks: Readonly<Record<string, Uint8Array>>,
): Promise<string> {
  const path = join(folder, "disk-keys.json");
  const base64 = (key: Uint8Array): string => Buffer.from(key).toString("base64");
  const all = Object.fromEntries(Object.entries(disks).map(([diskId, key]) => [diskId, base64(key)]));
  await writeFile(path, JSON.stringify({ format: 1, tenantKey: base64(tenantKey), disks: all }));
  return path;
}

test("A reader in Python that was written from the format's page restores every point as our own restore does", async (t) => {
  const folder = await folderOf(t);
  const objects = memoryStore();
  const made = await smallStore(objects);
  const store = join(folder, "store");
  for (const [key, data] of objects.objects) {
    const path = join(store, key.slice(SMALL_ROOT.length + 1));
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, data);
  }
  const keys = await writeKeys(folder, made.tenantKey, Object.fromEntries(made.keys));
  const points = await listPoints(await made.group(made.open()), { bookmarks: made.bookmarks });
  const listed = await python("--store", store, "--keys", keys, "--list");
  assert.equal(listed.code, 0, listed.stderr);
  assert.equal(listed.stderr, "");
  assert.deepEqual(
    listed.stdout.trim().split("\n").reverse(),
    points.map(({ id, members, name }) => `${SMALL_GROUP} ${id} ${members[0]!.branch} ${name ?? ""}`.trimEnd()),
  );
  for (const point of points) {
    const [ours, theirs] = [join(folder, `ours-${point.id}`), join(folder, `theirs-${point.id}`)];
    await restorePoint({ store: made.open(), point, folder: ours });
    const ended = await python(
      "--store",
      store,
      "--keys",
      keys,
      "--group",
      SMALL_GROUP,
      "--point",
      point.id,
      "--to",
      theirs,
    );
    assert.equal(ended.code, 0, ended.stderr);
    assert.deepEqual(await readdir(theirs), await readdir(ours));
    for (const name of await readdir(ours))
      assert.ok((await readFile(join(theirs, name))).equals(await readFile(join(ours, name))), `${point.id}, ${name}`);
  }

  // It does not serve damage either.
  const segments = join(store, "disks", "web-system", "segments");
  const [name] = (await readdir(segments)).sort();
  const bytes = await readFile(join(segments, name!));
  bytes[bytes.length - 300]! ^= 1;
  await writeFile(join(segments, name!), bytes);
  const damaged = await python(
    "--store",
    store,
    "--keys",
    keys,
    "--group",
    SMALL_GROUP,
    "--to",
    join(folder, "damaged"),
  );
  assert.equal(damaged.code, 1);
  assert.match(damaged.stderr, /segments\/.*seal does not hold/);
});

test("It reads the golden store of version 1", async (t) => {
  const folder = await folderOf(t);
  const store = join(import.meta.dirname, "..", "golden", "v1", "store", ROOT);
  // The golden bookmark was made with the disk's key as the tenant's.
  const keys = await writeKeys(folder, DISK_KEY, { [DISK_ID]: DISK_KEY });
  const listed = await python("--store", store, "--keys", keys, "--list");
  assert.match(listed.stdout, /before the move/);
  const ended = await python("--store", store, "--keys", keys, "--group", GROUP_ID, "--to", folder);
  assert.equal(ended.code, 0, ended.stderr);
  const expected = Buffer.concat([blockData(0, 69), Buffer.alloc(31 * 4096)]);
  Buffer.from(seededRandom("noise").bytes(4096)).copy(expected, 70 * 4096);
  blockData(10, 3, 2).copy(expected, 10 * 4096);
  expected.fill(0, 20 * 4096, 24 * 4096);
  assert.ok((await readFile(join(folder, `${DISK_ID}.raw`))).equals(expected.subarray(0, SIZE_BYTES)));
});
