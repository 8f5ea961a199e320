/**
 * The replica store itself, on versitygw: what it costs to open a cut, with anchors and without, and what a large disk needs of memory.
 *
 * A day of 5 s cycles is 17,280 small commits, made directly through the store port; opening means until the first 4 KiB are read. The disk of 4 TiB is
 * made up: its commits name segments that do not exist, for only its maps are read.
 *
 * `node bench/store.ts [--commits 17280] [--tib 4] [--rounds 3]`
 */
import { fork } from "node:child_process";
import { hash } from "node:crypto";
import { once } from "node:events";
import { parseArgs } from "node:util";
import { arrivals } from "#model/format/arrivals.ts";
import { frameDirectoryBuilder } from "#model/format/frame-directory.ts";
import { formatContainerId } from "#model/format/header.ts";
import { CODEC_RAW, CODEC_ZSTD, DIGEST_BYTES, KIND_DELTA, KIND_SWEEP } from "#model/frame-record.ts";
import { SHARD_BLOCKS } from "#model/shard-map.ts";
import { BLOCK_SIZE, blockCount } from "#model/units.ts";
import { systemClock as clock } from "../src/adapters/clock/system-clock.ts";
import { systemRandom as random } from "../src/adapters/random/system-random.ts";
import { s3ObjectStore, type S3ObjectStore, type S3Settings } from "../src/adapters/s3/s3-object-store.ts";
import { ANCHOR_LIMITS, makeAnchors } from "../src/data-mover/anchor-maker.ts";
import { NO_COMMIT } from "../src/data-mover/branch-reader.ts";
import { type CommitDetails, containerWriter, type SealedSegment } from "../src/data-mover/container-writer.ts";
import { createDisk } from "../src/data-mover/disk-moves.ts";
import { openImage } from "../src/data-mover/image.ts";
import { ensureStoreRecord, type OpenedDisk, openMoverStore } from "../src/data-mover/mover-store.ts";
import { startVersitygw } from "../test/support/versitygw.ts";

const MIB = 1 << 20;
const DISK_KEY = Buffer.alloc(32, 9);
const GOALS = { openSeconds: 2, heldMib: 16 };
const PUTS_AT_ONCE = 16;
/** Of the disk with small commits: four shards. */
const SMALL_BYTES = 64 * 2 ** 30;
const BLOCKS_OF_COMMIT = 16;
const writerId = "0123456789abcdef";

interface LargeDisk {
  readonly settings: S3Settings;
  readonly sizeBytes: number;
  readonly seq: number;
}

if (process.send) await measureLarge();
else await main();

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      commits: { type: "string", default: "17280" },
      tib: { type: "string", default: "4" },
      rounds: { type: "string", default: "3" },
    },
  });
  const commits = Number(values.commits);
  const rounds = Number(values.rounds);
  const server = await startVersitygw();
  try {
    const { endpoint, region, accessKey, secretKey } = server;
    const settings = { endpoint, region, accessKey, secretKey, bucket: "bench" };
    await using objects = s3ObjectStore(settings, { clock, random });
    await objects.ensureBucket();

    const small = await prepare(objects, "small", SMALL_BYTES);
    const storing = await seconds(() => storeSmallCommits(small, commits));
    print(`storing ${commits} commits, s`, storing);
    const oldest = Math.min(10, commits);
    const without = { newest: await opening(small, commits, 1), oldest: await opening(small, oldest, rounds) };
    let made = 0;
    const making = await seconds(async () => {
      made = (await makeAnchors(accessTo(small), { branch: "root", seq: commits })).length;
    });
    print("anchors made", made);
    print("  ms each", (making * 1000) / Math.max(1, made));
    print("  stored, MiB in all", (await storedBytes(objects, "replica/disks/small/maps/")) / MIB);
    print("  commits, stored, MiB in all", (await storedBytes(objects, "replica/disks/small/branches/")) / MIB);
    const worst = Math.max(1, commits - (commits % ANCHOR_LIMITS.commits) - 1); // As far behind an anchor as a cut can be.
    for (const [name, seq] of [
      ["oldest", oldest],
      ["farthest behind an anchor", worst],
      ["newest", commits],
    ] as const) {
      const measured = await opening(small, seq, rounds);
      print(`opening the ${name} cut, s`, measured);
      if (measured > GOALS.openSeconds) fail(`opening the ${name} cut takes longer than ${GOALS.openSeconds} s`);
    }
    print("opening the newest cut without anchors, s", without.newest);
    print("  with anchors, part of that", (await opening(small, commits, rounds)) / without.newest);

    const tib = Number(values.tib);
    if (tib > 0) {
      const large = await prepare(objects, "large", tib * 2 ** 40);
      const seq = await storeLargeCommits(large);
      let anchors = 0;
      const flattening = await seconds(async () => {
        anchors = (await makeAnchors(accessTo(large), { branch: "root", seq })).length;
      });
      print(`${tib} TiB in frames of 256 KiB: anchors made`, anchors);
      print("  s in all", flattening);
      const child = fork(import.meta.filename, { execArgv: ["--expose-gc"] });
      child.send({ settings, sizeBytes: large.shape.sizeBytes, seq } satisfies LargeDisk);
      const [figures] = (await once(child, "message")) as [Record<string, number>];
      for (const [name, value] of Object.entries(figures)) print(`  ${name}`, value);
      await once(child, "exit");
      const held = figures["held after reading the whole map, MiB"]!;
      if (held > GOALS.heldMib) fail(`more than ${GOALS.heldMib} MiB are held for a disk of ${tib} TiB`);
    }
  } finally {
    await server.stop();
  }
}

/** In a process of its own: what it holds is for the disk. */
async function measureLarge(): Promise<void> {
  const [{ settings, sizeBytes, seq }] = (await once(process, "message")) as [LargeDisk];
  await using objects = s3ObjectStore(settings, { clock, random });
  const disk = await prepare(objects, "large", sizeBytes);
  const before = held();
  const bornAt = performance.now();
  const image = await openImage(disk.context, { branch: "root", seq, keyring: disk.keyring, storeId: disk.storeId });
  await image.allocation(0, BLOCK_SIZE);
  const figures: Record<string, number> = {
    "opening it, s": (performance.now() - bornAt) / 1000,
    "held after opening, MiB": (held() - before) / MIB,
  };
  let [most, ms] = [0, 0];
  const shards = Math.ceil(blockCount(sizeBytes) / SHARD_BLOCKS);
  for (let shard = 0; shard < shards; shard++) {
    const askedAt = performance.now();
    await image.allocation(shard * SHARD_BLOCKS * BLOCK_SIZE, BLOCK_SIZE);
    ms += performance.now() - askedAt;
    most = Math.max(most, held() - before);
  }
  figures["ms to have another shard's map"] = ms / shards;
  figures["most at any moment, MiB"] = most / MIB;
  figures["held after reading the whole map, MiB"] = (held() - before) / MIB;
  process.send!(figures, () => process.exit(0));
}

function held(): number {
  globalThis.gc?.();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

async function prepare(objects: S3ObjectStore, diskId: string, sizeBytes: number): Promise<OpenedDisk> {
  const store = openMoverStore({ store: objects, root: "replica", clock, random }, { keys: () => DISK_KEY });
  await ensureStoreRecord(store.context);
  const disk = await store.openDisk({ diskId, sizeBytes, sectorBytes: 512 }, { create: true });
  await createDisk(disk.context, { operation: "prepare", groupEpoch: 1, activeSite: "one", holder: "bench" });
  return disk;
}

function accessTo({ context, keyring, storeId }: OpenedDisk) {
  return { disk: context, keyring, storeId };
}

async function opening(disk: OpenedDisk, seq: number, rounds: number): Promise<number> {
  const times: number[] = [];
  for (let round = 0; round < rounds; round++) {
    times.push(
      await seconds(async () => {
        const image = await openImage(disk.context, {
          branch: "root",
          seq,
          keyring: disk.keyring,
          storeId: disk.storeId,
        });
        await image.read(new Uint8Array(BLOCK_SIZE), placeOf(seq, 0) * BLOCK_SIZE);
      }),
    );
  }
  return times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)]!;
}

/** A block that commit `seq` writes; nobody's neighbour. */
function placeOf(seq: number, index: number): number {
  return (Math.imul(seq * BLOCKS_OF_COMMIT + index + 1, 2654435761) >>> 0) % (SMALL_BYTES / BLOCK_SIZE);
}

async function storeSmallCommits(disk: OpenedDisk, count: number): Promise<void> {
  await storeCommits(disk, count, (container, seq) => {
    const blocks = new Set(Array.from({ length: BLOCKS_OF_COMMIT }, (_, index) => placeOf(seq, index)));
    for (const block of blocks) {
      const plain = new Uint8Array(BLOCK_SIZE).fill(seq % 251);
      new DataView(plain.buffer).setUint32(0, block, true);
      const digests = hash("sha256", plain, "buffer").subarray(0, DIGEST_BYTES);
      container.append({ block, blocks: 1, codec: CODEC_RAW, kind: KIND_DELTA, digests, stored: plain });
    }
    return [];
  });
}

/** Commits of 4 GiB each, in segments of 64 frames of 256 KiB. Returns how many. */
async function storeLargeCommits(disk: OpenedDisk): Promise<number> {
  const blocksOfCommit = 2 ** 32 / BLOCK_SIZE;
  const count = blockCount(disk.shape.sizeBytes) / blocksOfCommit;
  const dataKeyId = (await disk.keyring.current())!.id;
  let counter = 0;
  await storeCommits(disk, count, (_, seq) =>
    Array.from({ length: 256 }, (__, index): SealedSegment => {
      const directory = frameDirectoryBuilder();
      const received = arrivals();
      let bodyBytes = 0;
      for (let frame = 0; frame < 64; frame++) {
        const block = (seq - 1) * blocksOfCommit + (index * 64 + frame) * 64;
        const stored = 90_000 + (Math.imul(block, 2654435761) >>> 16);
        directory.push({ block, blocks: 64, codec: CODEC_ZSTD }, stored);
        received.add({ start: block, length: 64, source: 0, frame, kind: KIND_SWEEP });
        bodyBytes += stored + 16;
      }
      const containerId = formatContainerId({ role: "writer", term: 1, counter: 1_000_000 + ++counter });
      const reference = {
        containerId,
        headSha256: random.bytes(32),
        salt: random.bytes(32),
        dataKeyId,
        indexBytes: 5000,
        bodyBytes,
      };
      return { reference, directory: directory.view(), arrivals: received };
    }),
  );
  return count;
}

/** `fill` puts frames into the commit's own container, and says which segments it has. */
async function storeCommits(
  { context, keyring, storeId, shape }: OpenedDisk,
  count: number,
  fill: (container: ReturnType<typeof containerWriter>, seq: number) => readonly SealedSegment[],
): Promise<void> {
  const dataKey = await keyring.current();
  const bornAt = clock.now() - count * 5000;
  let chain = NO_COMMIT;
  const puts: Promise<unknown>[] = [];
  for (let seq = 1; seq <= count; seq++) {
    const cutMs = bornAt + seq * 5000;
    const container = containerWriter({
      buffer: new Uint8Array(256 << 10),
      kind: "journal",
      cipher: keyring.cipher,
      dataKey,
      storeId,
      diskId: context.diskId,
      containerId: formatContainerId({ role: "writer", term: 1, counter: seq }),
      random,
    });
    const segments = fill(container, seq);
    const details: CommitDetails = {
      cycle: seq,
      cycleDisks: 1,
      flags: 2,
      firstWriteMs: cutMs,
      cutMs,
      rawCutMs: cutMs,
      diskSizeBytes: shape.sizeBytes,
      sectorBytes: 512,
      segments,
    };
    const sealed = container.finish({ branch: "root", epoch: 1, seq, chain, writerId }, details);
    chain = sealed.commitHash;
    puts.push(context.store.create(context.names.commit("root", seq), sealed.bytes));
    if (puts.length >= PUTS_AT_ONCE) await Promise.all(puts.splice(0));
  }
  await Promise.all(puts);
}

async function storedBytes(objects: S3ObjectStore, prefix: string): Promise<number> {
  let sum = 0;
  for await (const { size } of objects.list(prefix)) sum += size;
  return sum;
}

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const bornAt = performance.now();
  await work();
  return (performance.now() - bornAt) / 1000;
}

function print(name: string, value: number): void {
  console.log(`${name.padEnd(64)} ${value.toFixed(Number.isInteger(value) ? 0 : 3)}`);
}

function fail(what: string): void {
  console.error(`missed: ${what}`);
  process.exitCode = 1;
}
