import assert from "node:assert/strict";
import { test } from "node:test";
import { type Fault, isFault } from "#model/fault.ts";
import { CODEC_ZERO, type FrameKind, KIND_DELTA, KIND_SWEEP } from "#model/frame-record.ts";
import { FLAG_POINT_CLEAN, FOOTER_BYTES, formatContainerId, HEADER_BYTES } from "#model/format/header.ts";
import { diskNames } from "#model/format/object-names.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { Clock } from "#ports/clock.ts";
import { memoryStore, type MemoryStore } from "../../src/adapters/memory/memory-store.ts";
import { type DiskWriter, openWriter } from "../../src/data-mover/commit-log.ts";
import { containerCodec } from "../../src/data-mover/container-codec.ts";
import { type CommitDetails, containerWriter, type SealedSegment } from "../../src/data-mover/container-writer.ts";
import type { DiskContext, StoreContext } from "../../src/data-mover/disk-context.ts";
import { claimBranch, createBranch, createDisk, fenceDisk } from "../../src/data-mover/disk-moves.ts";
import { type DiskImage, imageDevice, openImage } from "../../src/data-mover/image.ts";
import { type Keyring, openKeyring } from "../../src/data-mover/keyring.ts";
import { blockData, DETAILS, DISK_ID, frameOf, seededRandom, STORE_ID } from "../support/format-samples.ts";

const SIZE_BYTES = 3000 * BLOCK_SIZE - 1536; // The last block is partial.
const BLOCKS = 3000;
const clock: Clock = {
  now: () => 1_786_000_000_000,
  monotonic: () => performance.now(),
  sleep: () => Promise.resolve(),
};

interface Bench {
  readonly store: MemoryStore;
  readonly disk: DiskContext;
  readonly keyring: Keyring;
  readonly random: ReturnType<typeof seededRandom>;
}

async function bench(seed: string): Promise<Bench> {
  const store = memoryStore();
  const random = seededRandom(seed);
  const context: StoreContext = { store, root: "replica", clock, random };
  const diskKey = Buffer.alloc(32, 9);
  const keyring = await openKeyring(context, { storeId: STORE_ID, diskId: DISK_ID, diskKey, create: true });
  const shape = { sizeBytes: SIZE_BYTES, sectorBytes: 512 };
  const codec = containerCodec({
    storeId: STORE_ID,
    diskId: DISK_ID,
    keyring,
    random,
    now: clock.now,
    shape: () => shape,
  });
  const disk: DiskContext = { ...context, diskId: DISK_ID, names: diskNames("replica", DISK_ID), codec };
  await createDisk(disk, { operation: "prepare", groupEpoch: 1, activeSite: "one", holder: "test" });
  return { store, disk, keyring, random };
}

interface Write {
  readonly block: number;
  readonly blocks: number;
  readonly kind: FrameKind;
  /** Undefined: zeroes. */
  readonly version?: number;
}

let counter = 0;

/** Commit `writes`; the first `inSegments` of them go into segments of their own. */
async function commit(
  at: Bench,
  writer: DiskWriter,
  cycle: number,
  writes: readonly Write[],
  inSegments = 0,
): Promise<void> {
  const { disk, keyring, random } = at;
  const dataKey = await keyring.current();
  const containerFor = () =>
    containerWriter({
      buffer: new Uint8Array(4 << 20),
      kind: "journal",
      cipher: keyring.cipher,
      dataKey,
      storeId: STORE_ID,
      diskId: DISK_ID,
      containerId: formatContainerId({ role: "writer", term: writer.epoch, counter: ++counter }),
      random,
    });
  const details: CommitDetails = { ...DETAILS, cycle, flags: FLAG_POINT_CLEAN, diskSizeBytes: SIZE_BYTES };
  const segments: SealedSegment[] = [];
  for (const write of writes.slice(0, inSegments)) {
    const container = containerFor();
    container.append(recordOf(write));
    const { bytes, segment } = container.finishSegment(writer, details);
    assert.equal(await disk.store.create(disk.names.segment(writer.epoch, counter), bytes), "created");
    segments.push(segment);
  }
  const journal = containerFor();
  for (const write of writes.slice(inSegments)) journal.append(recordOf(write));
  await writer.commit({
    cycle,
    cutAtMs: details.cutMs,
    seal(place) {
      const sealed = journal.finish(place, { ...details, segments });
      return { body: sealed.bytes, commitHash: sealed.commitHash };
    },
  });
}

function recordOf({ block, blocks, kind, version }: Write) {
  if (version !== undefined) return frameOf(block, blockData(block, blocks, version), kind);
  return { block, blocks, codec: CODEC_ZERO, kind, digests: new Uint8Array(), stored: new Uint8Array() } as const;
}

/** What the disk must read as: the version of each block, 0 for zeroes. Deltas win over sweeps of the same commit. */
function applyTo(flat: Uint16Array, writes: readonly Write[]): void {
  for (const kind of [KIND_SWEEP, KIND_DELTA]) {
    for (const write of writes)
      if (write.kind === kind) flat.fill(write.version ?? 0, write.block, write.block + write.blocks);
  }
}

function expected(flat: Uint16Array, offset: number, length: number): Buffer {
  const start = Math.floor(offset / BLOCK_SIZE);
  const end = Math.ceil((offset + length) / BLOCK_SIZE);
  const data = Buffer.alloc((end - start) * BLOCK_SIZE);
  for (let block = start; block < end; block++) {
    if (flat[block] !== 0) blockData(block, 1, flat[block]).copy(data, (block - start) * BLOCK_SIZE);
  }
  return data.subarray(offset - start * BLOCK_SIZE, offset - start * BLOCK_SIZE + length);
}

async function assertReads(image: DiskImage, flat: Uint16Array, offset: number, length: number): Promise<void> {
  const actual = Buffer.alloc(length, 0xee);
  await image.read(actual, offset);
  assert.ok(actual.equals(expected(flat, offset, length)), `${length} bytes at ${offset}`);
}

function openAt(
  at: Bench,
  branch: string,
  seq: number,
  more: { commitHash?: string; cacheBytes?: number } = {},
): Promise<DiskImage> {
  return openImage(at.disk, { keyring: at.keyring, storeId: STORE_ID, branch, seq, ...more });
}

function randomWrites(random: Bench["random"], version: number): Write[] {
  return Array.from({ length: 1 + random.below(12) }, () => {
    const blocks = 1 + random.below(64);
    const kind = random.below(3) === 0 ? KIND_SWEEP : KIND_DELTA;
    const zero = random.below(6) === 0;
    return { block: random.below(BLOCKS - blocks + 1), blocks, kind, ...(!zero && { version }) };
  });
}

test("Every commit of a random history, on two branches, reads as a flat array with the same writes", async () => {
  for (const seed of ["a", "b"]) {
    const at = await bench(`history ${seed}`);
    const writer = await openWriter(at.disk, { site: "one", branch: "root", holder: "test", operation: "stream" });
    const states = new Map<string, Uint16Array>();
    let flat: Uint16Array = new Uint16Array(BLOCKS);
    for (let cycle = 1; cycle <= 12; cycle++) {
      const writes = randomWrites(at.random, cycle);
      await commit(at, writer, cycle, writes, at.random.below(3));
      flat = flat.slice();
      applyTo(flat, writes);
      states.set(`root/${writer.data.seq}`, flat);
    }
    // A failover to an earlier commit: a branch that never sees what came after.
    const fork = writer.data.seq - 4;
    const parent = { branch: "root", seq: fork, commitHash: "" };
    const forked = await openAt(at, "root", fork);
    assert.equal(forked.sizeBytes, SIZE_BYTES);
    const move = { operation: "failover", groupEpoch: 2, activeSite: "two", holder: "test" };
    await fenceDisk(at.disk, { ...move, branch: "root" });
    const head = await at.store.get(at.disk.names.commit("root", fork));
    const inspected = at.disk.codec.inspect(head);
    assert.ok(!("needBytes" in inspected));
    await createBranch(at.disk, {
      branch: "b-1",
      parent: { ...parent, commitHash: inspected.commitHash },
      reason: "failover",
      operation: "failover",
    });
    await claimBranch(at.disk, { ...move, branch: "b-1" });
    const second = await openWriter(at.disk, { site: "two", branch: "b-1", holder: "test", operation: "stream" });
    flat = states.get(`root/${fork}`)!;
    states.set("b-1/0", flat);
    for (let cycle = 20; cycle < 26; cycle++) {
      const writes = randomWrites(at.random, 1000 + cycle);
      await commit(at, second, cycle, writes, 1);
      flat = flat.slice();
      applyTo(flat, writes);
      states.set(`b-1/${second.data.seq}`, flat);
    }

    for (const [position, state] of states) {
      const [branch, seq] = position.split("/");
      const image = await openAt(at, branch!, Number(seq), { cacheBytes: 1 << 20 });
      assert.equal(image.sizeBytes, SIZE_BYTES);
      await assertReads(image, state, 0, SIZE_BYTES);
      await assertReads(image, state, SIZE_BYTES - 100, 100);
      for (let round = 0; round < 20; round++) {
        const offset = at.random.below(SIZE_BYTES - 1);
        await assertReads(image, state, offset, 1 + at.random.below(Math.min(400_000, SIZE_BYTES - offset)));
      }
      const covered = (await image.allocation(0, SIZE_BYTES)).reduce((sum, run) => sum + run.length, 0);
      assert.equal(covered, SIZE_BYTES);
    }
  }
});

test("Readers in parallel that want the same frames fetch each once, and neighbours together", async () => {
  const at = await bench("parallel");
  const writer = await openWriter(at.disk, { site: "one", branch: "root", holder: "test", operation: "stream" });
  const writes = Array.from({ length: 32 }, (_, index): Write => ({
    block: index * 64,
    blocks: 64,
    kind: KIND_SWEEP,
    version: 7,
  }));
  await commit(at, writer, 1, writes);
  const flat = new Uint16Array(BLOCKS);
  applyTo(flat, writes);
  const image = await openAt(at, "root", writer.data.seq);
  await Promise.all(Array.from({ length: 40 }, () => assertReads(image, flat, 100_000, 300_000)));
  assert.equal(image.statistics.requests, 1);
  await assertReads(image, flat, 0, 2048 * BLOCK_SIZE);
  assert.ok(image.statistics.requests <= 6, `${image.statistics.requests} requests for 8 MiB`);
});

test("A reader that goes forward finds the next blocks fetched", async () => {
  const at = await bench("forward");
  const writer = await openWriter(at.disk, { site: "one", branch: "root", holder: "test", operation: "stream" });
  const writes = Array.from({ length: 40 }, (_, index): Write => ({
    block: index * 64,
    blocks: 64,
    kind: KIND_SWEEP,
    version: 3,
  }));
  await commit(at, writer, 1, writes);
  const flat = new Uint16Array(BLOCKS);
  applyTo(flat, writes);
  const image = await openAt(at, "root", writer.data.seq);
  for (let block = 0; block < 2560; block += 8) await assertReads(image, flat, block * BLOCK_SIZE, 8 * BLOCK_SIZE);
  assert.ok(image.statistics.requests <= 12, `${image.statistics.requests} requests`);
});

test("What is at hand is answered at once", async () => {
  const at = await bench("at once");
  const writer = await openWriter(at.disk, { site: "one", branch: "root", holder: "test", operation: "stream" });
  const writes: Write[] = [{ block: 0, blocks: 64, kind: KIND_SWEEP, version: 4 }];
  await commit(at, writer, 1, writes);
  const flat = new Uint16Array(BLOCKS);
  applyTo(flat, writes);
  const image = await openAt(at, "root", writer.data.seq);
  const target = Buffer.alloc(10 * BLOCK_SIZE, 0xee);
  assert.ok(image.read(target, 5000) instanceof Promise);
  await assertReads(image, flat, 5000, target.length);
  assert.equal(image.read(target, 9000), undefined);
  assert.ok(target.equals(expected(flat, 9000, target.length)));
  assert.equal(image.read(target, 1000 * BLOCK_SIZE), undefined, "and so is what was never written");
  assert.ok(target.equals(Buffer.alloc(target.length)));
});

test("A device has its first blocks and its last fetched before anybody asks", async () => {
  const at = await bench("warm");
  const writer = await openWriter(at.disk, { site: "one", branch: "root", holder: "test", operation: "stream" });
  const writes: Write[] = [
    { block: 0, blocks: 64, kind: KIND_SWEEP, version: 4 },
    { block: 1000, blocks: 64, kind: KIND_SWEEP, version: 4 },
    { block: BLOCKS - 8, blocks: 8, kind: KIND_SWEEP, version: 4 },
  ];
  await commit(at, writer, 1, writes);
  const image = await openAt(at, "root", writer.data.seq);
  const device = imageDevice(image);
  await new Promise((resolve) => setTimeout(resolve, 50));
  const target = Buffer.alloc(BLOCK_SIZE);
  assert.equal(device.read(target, 0), undefined);
  assert.equal(device.read(target.subarray(0, 512), SIZE_BYTES - 512), undefined);
  assert.ok(device.read(target, 1000 * BLOCK_SIZE) instanceof Promise);
});

test("A damaged frame fails its own readers, not those of its neighbours, and only when nothing writes to their buffer any more", async () => {
  const at = await bench("neighbours");
  const writer = await openWriter(at.disk, { site: "one", branch: "root", holder: "test", operation: "stream" });
  const writes = Array.from({ length: 5 }, (_, index): Write => ({
    block: index * 8,
    blocks: 8,
    kind: KIND_DELTA,
    version: 6,
  }));
  await commit(at, writer, 1, writes);
  const flat = new Uint16Array(BLOCKS);
  applyTo(flat, writes);
  const image = await openAt(at, "root", writer.data.seq, { cacheBytes: 64 << 10 });
  const object = at.store.objects.get(at.disk.names.commit("root", writer.data.seq))!;
  object[object.length - FOOTER_BYTES - 20]! ^= 1; // In the last frame.
  const whole = Buffer.alloc(40 * BLOCK_SIZE, 0xee);
  const reads = [0, 1, 2, 3].map((index) => assertReads(image, flat, index * 8 * BLOCK_SIZE, 8 * BLOCK_SIZE));
  await assert.rejects(Promise.resolve(image.read(whole, 0)), { code: "OBJECT_CORRUPT" });
  await Promise.all(reads);
  whole.fill(0xdd);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(whole.every((byte) => byte === 0xdd));
  object[object.length - FOOTER_BYTES - 20]! ^= 1;
  await assertReads(image, flat, 0, 40 * BLOCK_SIZE);
});

test("Frames that lie close together come with one request, whatever lies between them", async () => {
  const at = await bench("gaps");
  const writer = await openWriter(at.disk, { site: "one", branch: "root", holder: "test", operation: "stream" });
  const first = Array.from({ length: 16 }, (_, index): Write => ({
    block: index * 8,
    blocks: 8,
    kind: KIND_SWEEP,
    version: 1,
  }));
  await commit(at, writer, 1, first);
  const second = [1, 4, 9].map((index): Write => ({ block: index * 8, blocks: 8, kind: KIND_DELTA, version: 2 }));
  await commit(at, writer, 2, second);
  const flat = new Uint16Array(BLOCKS);
  applyTo(flat, first);
  applyTo(flat, second);
  const image = await openAt(at, "root", writer.data.seq);
  await assertReads(image, flat, 0, 128 * BLOCK_SIZE);
  assert.equal(image.statistics.requests, 2);
});

test("Damage in the store is named with object, frame and blocks, and never served", async () => {
  const at = await bench("damage");
  const writer = await openWriter(at.disk, { site: "one", branch: "root", holder: "test", operation: "stream" });
  const writes: Write[] = [
    { block: 10, blocks: 8, kind: KIND_DELTA, version: 1 },
    { block: 200, blocks: 8, kind: KIND_DELTA, version: 1 },
  ];
  await commit(at, writer, 1, writes);
  const flat = new Uint16Array(BLOCKS);
  applyTo(flat, writes);
  const key = at.disk.names.commit("root", writer.data.seq);
  const object = at.store.objects.get(key)!;
  object[object.length - FOOTER_BYTES - 20]! ^= 1; // In the last frame.
  const image = await openAt(at, "root", writer.data.seq);
  await assertReads(image, flat, 10 * BLOCK_SIZE, 8 * BLOCK_SIZE);
  const target = Buffer.alloc(BLOCK_SIZE, 0xee);
  const fault = await image.read(target, 203 * BLOCK_SIZE)?.then(
    () => undefined,
    (error: unknown) => error as Fault,
  );
  assert.ok(isFault(fault, "OBJECT_CORRUPT"));
  assert.deepEqual(fault.details, { key, frame: 1, block: 200, blocks: 8 });
  assert.ok(target.every((byte) => byte === 0xee));
  object[object.length - FOOTER_BYTES - 20]! ^= 1;
  await assertReads(image, flat, 200 * BLOCK_SIZE, 8 * BLOCK_SIZE);

  object[HEADER_BYTES + 5]! ^= 1;
  await assert.rejects(openAt(at, "root", writer.data.seq), { code: "OBJECT_CORRUPT" });
  object[HEADER_BYTES + 5]! ^= 1;
  await assert.rejects(openAt(at, "root", writer.data.seq, { commitHash: "ab".repeat(16) }), { code: "CHAIN_BROKEN" });
  await assert.rejects(openAt(at, "root", 1), { code: "NO_POINT" }, "only the fence");
  await at.store.delete([key]);
  await assert.rejects(openAt(at, "root", writer.data.seq), { code: "CHAIN_BROKEN" });
});

test("As a device it is read only, says what is allocated, and serves its last, partial block", async () => {
  const at = await bench("device");
  const writer = await openWriter(at.disk, { site: "one", branch: "root", holder: "test", operation: "stream" });
  const writes: Write[] = [
    { block: 4, blocks: 4, kind: KIND_DELTA, version: 1 },
    { block: 8, blocks: 2, kind: KIND_DELTA },
    { block: BLOCKS - 1, blocks: 1, kind: KIND_DELTA, version: 2 },
  ];
  await commit(at, writer, 1, writes);
  const device = imageDevice(await openAt(at, "root", writer.data.seq));
  assert.ok(device.readOnly);
  assert.deepEqual(await device.status!(0, SIZE_BYTES), [
    { length: 4 * BLOCK_SIZE, hole: true, zero: true },
    { length: 4 * BLOCK_SIZE, hole: false, zero: false },
    { length: (BLOCKS - 9) * BLOCK_SIZE, hole: true, zero: true },
    { length: BLOCK_SIZE - 1536, hole: false, zero: false },
  ]);
  const tail = Buffer.alloc(BLOCK_SIZE - 1536);
  await device.read(tail, SIZE_BYTES - tail.length);
  assert.ok(tail.equals(blockData(BLOCKS - 1, 1, 2).subarray(0, tail.length)));
  assert.throws(() => device.write(tail, 0), RangeError);
});

test("A wrong disk key is KEY_REJECTED, a missing one KEY_MISSING, a disk without keys KEY_MISSING", async () => {
  const at = await bench("keys");
  const request = { storeId: STORE_ID, diskId: DISK_ID, create: false };
  await assert.rejects(openKeyring(at.disk, { ...request, diskKey: Buffer.alloc(32, 10) }), { code: "KEY_REJECTED" });
  await assert.rejects(openKeyring(at.disk, { ...request, diskKey: Buffer.alloc(31, 9) }), { code: "KEY_REJECTED" });
  await assert.rejects(openKeyring(at.disk, { ...request, diskKey: undefined }), { code: "KEY_MISSING" });
  await assert.rejects(openKeyring(at.disk, { ...request, diskId: "other", diskKey: Buffer.alloc(32, 9) }), {
    code: "KEY_MISSING",
  });
  const again = await openKeyring(at.disk, { ...request, diskKey: Buffer.alloc(32, 9) });
  const first = (await at.keyring.current())!;
  await again.refresh();
  assert.equal((await again.current())!.id, first.id, "one key serves the month");
  assert.ok(again.keyOf(first.id).equals(first.key));
  assert.throws(() => again.keyOf("ffffffffffffffff"), { code: "KEY_MISSING" });
  const key = at.disk.names.key(first.id);
  const text = Buffer.from(at.store.objects.get(key)!).toString();
  at.store.objects.get(key)!.set(Buffer.from(text.replace(/"month":"[^"]*"/, '"month":"1999-01"')));
  const damaged = await openKeyring(at.disk, { ...request, diskKey: Buffer.alloc(32, 9) });
  assert.throws(() => damaged.keyOf(first.id), { code: "OBJECT_CORRUPT" });
  assert.notEqual((await damaged.current())!.id, first.id, "another one seals");
});
