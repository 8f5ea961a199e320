/** What a start finds in the state file, row by row, and when bits are durable. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isFault } from "#model/fault.ts";
import { openWriteIntent, REGION_BLOCKS } from "../../src/capture/tap/write-intent.ts";
import type { IntentIdentity } from "../../src/capture/tap/intent-file.ts";

const folder = mkdtempSync(join(tmpdir(), "leeward-intent-"));
after(() => rmSync(folder, { recursive: true, force: true }));
let count = 0;
const newFile = (): string => join(folder, "state", `${++count}.intent`);

const IMAGE_BYTES = (10 << 20) + 4608;
const BLOCKS = 2562;
const identity: IntentIdentity = {
  diskId: "disk-1",
  imageBytes: IMAGE_BYTES,
  bootId: "5e1885b6-a957-4182-8e0b-77eff352bdf9",
  imageMtimeNs: 1234n,
};
const EVERYTHING = [{ start: 0, count: BLOCKS }];

/** A file with bits in regions 2, 3 and 10 (the partial one), left cleanly or not. */
async function leftBehind(clean: boolean): Promise<string> {
  const path = newFile();
  const intent = openWriteIntent(path, identity);
  intent.clear(() => true);
  await intent.set(2 * REGION_BLOCKS + 5, REGION_BLOCKS);
  await intent.set(BLOCKS - 1, 1);
  await intent.close(clean ? { imageMtimeNs: 999n } : undefined);
  return path;
}

const SOME = [
  { start: 2 * REGION_BLOCKS, count: 2 * REGION_BLOCKS },
  { start: 10 * REGION_BLOCKS, count: 2 },
];

async function found(
  path: string,
  changes: Partial<IntentIdentity> = {},
): Promise<{ runs: unknown; reason: string; generation: number }> {
  const intent = openWriteIntent(path, { ...identity, ...changes });
  await intent.close(undefined);
  return { ...intent.found, generation: intent.generation };
}

test("a disk that was never tracked is swept as a whole", async () => {
  const first = await found(newFile());
  assert.deepEqual(first.runs, EVERYTHING);
  assert.match(first.reason, /initial sync/);
  assert.equal(first.generation, 1);
});

test("after a clean stop and after a kill, the regions with a bit are swept", async () => {
  const stopped = await found(await leftBehind(true), { imageMtimeNs: 999n });
  assert.deepEqual([stopped.runs, stopped.generation], [SOME, 2]);
  assert.match(stopped.reason, /after a stop/);
  const rebooted = await found(await leftBehind(true), {
    imageMtimeNs: 999n,
    bootId: "00000000-0000-0000-0000-000000000001",
  });
  assert.deepEqual(rebooted.runs, SOME);
  const killed = await found(await leftBehind(false));
  assert.deepEqual(killed.runs, SOME);
  assert.match(killed.reason, /killed/);
});

test("a clean stop with nothing to sweep says so", async () => {
  const path = newFile();
  const intent = openWriteIntent(path, identity);
  intent.clear(() => true);
  await intent.close({ imageMtimeNs: 1n });
  assert.deepEqual(await found(path, { imageMtimeNs: 1n }), { runs: [], reason: "", generation: 2 });
});

test("whenever the file cannot know, everything is swept, and the reason names it", async () => {
  const cases: [string, Partial<IntentIdentity>, RegExp][] = [
    [await leftBehind(false), { bootId: "00000000-0000-0000-0000-000000000001" }, /without a clean stop/],
    [await leftBehind(true), { imageMtimeNs: 1000n }, /changed while the tap was stopped/],
    [await leftBehind(true), { diskId: "disk-2", imageMtimeNs: 999n }, /belongs to disk "disk-1"/],
    [await leftBehind(true), { imageBytes: IMAGE_BYTES + 512, imageMtimeNs: 999n }, /bytes/],
  ];
  for (const [path, changes, reason] of cases) {
    const result = await found(path, changes);
    assert.deepEqual(result.runs, EVERYTHING);
    assert.match(result.reason, reason);
    assert.equal(result.generation, 2, String(reason));
  }
});

test("every damaged byte of the header, and a cut-off file, is noticed", async () => {
  const path = await leftBehind(true);
  const whole = readFileSync(path);
  for (const at of [0, 8, 12, 16, 24, 32, 40, 56, 60, 65, 2000, 4091, 4095]) {
    const damaged = Buffer.from(whole);
    damaged[at] = damaged[at]! ^ 0x40;
    writeFileSync(path, damaged);
    const result = await found(path, { imageMtimeNs: 999n });
    assert.deepEqual(result.runs, EVERYTHING, String(at));
    assert.match(result.reason, /damaged/);
  }
  for (const length of [100, 4096, whole.length - 1]) {
    writeFileSync(path, whole);
    truncateSync(path, length);
    const result = await found(path, { imageMtimeNs: 999n });
    assert.match(result.reason, /damaged|cut off/);
  }
});

test("a region is covered only when its bit is in the file", async () => {
  const path = newFile();
  const intent = openWriteIntent(path, identity);
  intent.clear(() => true);
  assert.equal(intent.covers(700, 10), false);
  const setting = intent.set(700, 100);
  assert.equal(intent.covers(700, 10), false);
  const joining = intent.set(710, 1);
  await joining;
  assert.equal(intent.covers(700, 1), true);
  await setting;
  assert.equal(intent.covers(700, 100), true);
  assert.equal(readFileSync(path)[4096]! & 0b1100, 0b1100);
  intent.clear((block) => block === 2 * REGION_BLOCKS);
  assert.equal(intent.covers(700, 1), false);
  assert.equal(intent.covers(780, 1), true);
  await intent.close(undefined);
  assert.deepEqual((await found(path)).runs, [{ start: 3 * REGION_BLOCKS, count: REGION_BLOCKS }]);
});

test("bits that are set and cleared in turns are never lost", async () => {
  const path = newFile();
  const intent = openWriteIntent(path, { ...identity, imageBytes: 100_000 * 2 ** 20 });
  intent.clear(() => true);
  const dirty = new Set<number>();
  for (let round = 0; round < 60; round++) {
    const regions = Array.from({ length: 20 }, (_, index) => (round * 7919 + index * 48_271) % 100_000);
    for (const region of regions) dirty.add(region);
    await Promise.all(regions.map((region) => intent.set(region * REGION_BLOCKS, 1)));
    for (const region of regions) assert.ok(intent.covers(region * REGION_BLOCKS, 1));
    if (round % 3 === 0) {
      for (const region of [...dirty].slice(0, 30)) dirty.delete(region);
      intent.clear((block) => !dirty.has(block / REGION_BLOCKS));
    }
  }
  await intent.close(undefined);
  const bits = readFileSync(path).subarray(4096);
  for (const region of dirty) assert.equal((bits[region >>> 3]! >>> (region & 7)) & 1, 1);
  assert.equal(statSync(path).size % 4096, 0);
});

test("a state folder that cannot be made is a fault with a remedy", () => {
  const path = join(folder, "a-file");
  writeFileSync(path, "x");
  assert.throws(
    () => openWriteIntent(join(path, "disk.intent"), identity),
    (error) => isFault(error, "CONFIG_INVALID") && error.hint !== undefined,
  );
  mkdirSync(join(folder, "is-a-folder.intent"));
  assert.throws(
    () => openWriteIntent(join(folder, "is-a-folder.intent"), identity),
    (error) => isFault(error, "CONFIG_INVALID"),
  );
});
