/**
 * Reading a recovery point: an image straight from S3, against plain GETs of the same stored bytes and against `nbdkit file` with the plain disk.
 *
 * The disk is a file system with real files, stored as the initial sync stores it: frames of 256 KiB, two lanes of 16 MiB stripes
 * interleaved in containers of 32 MiB. Rates are of the disk's plain bytes, except where "stored" is said.
 *
 * `node bench/image-read.ts [--mib 1024] [--reads 300] [--rounds 3] [--cpu-prof FOLDER]`
 */
import { execFile, fork, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import { parseArgs, promisify } from "node:util";
import { setFlagsFromString } from "node:v8";
import { createFramePacker } from "#model/frame-packer.ts";
import { KIND_SWEEP } from "#model/frame-record.ts";
import { systemClock as clock } from "../src/adapters/clock/system-clock.ts";
import { systemRandom as random } from "../src/adapters/random/system-random.ts";
import { s3ObjectStore, type S3ObjectStore, type S3Settings } from "../src/adapters/s3/s3-object-store.ts";
import { createFrameTools } from "../src/agent/frame-tools.ts";
import { containerBuffers } from "../src/data-mover/container-buffers.ts";
import { createDisk } from "../src/data-mover/disk-moves.ts";
import { imageDevice, openImage, type DiskImage } from "../src/data-mover/image.ts";
import { moverDisk } from "../src/data-mover/mover-disk.ts";
import { ensureStoreRecord, openMoverStore, type MoverStore } from "../src/data-mover/mover-store.ts";
import { SEGMENT_PUTS_MAX, slots } from "../src/data-mover/segment-upload.ts";
import { serveNbd } from "../src/nbd/server.ts";
import { startVersitygw } from "../test/support/versitygw.ts";
import { benchImage } from "./image.ts";

const run = promisify(execFile);
const MIB = 1 << 20;
const STRIPE_BYTES = 16 * MIB;
const GOALS = { sequentialMibs: 250, randomP50Ms: 3 };
const DISK_ID = "bench-disk";
const DISK_KEY = Buffer.alloc(32, 9);

interface ReaderSetup {
  readonly settings: S3Settings;
  readonly sizeBytes: number;
  readonly seq: number;
  readonly socket: string;
  readonly reads: number;
}

if (process.send) await read();
else await main();

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      mib: { type: "string", default: "1024" },
      reads: { type: "string", default: "300" },
      rounds: { type: "string", default: "3" },
      "cpu-prof": { type: "string" },
    },
  });
  const sizeBytes = Number(values.mib) * MIB;
  const path = await benchImage({ sizeBytes, fileBytes: Math.round(sizeBytes * 0.7) });
  const folder = mkdtempSync(join(tmpdir(), "leeward-bench-read-"));
  const server = await startVersitygw();
  const kit = await startNbdkit(path, join(folder, "kit.sock"));
  try {
    const { endpoint, region, accessKey, secretKey } = server;
    const settings = { endpoint, region, accessKey, secretKey, bucket: "bench" };
    const seq = await fill(settings, path, sizeBytes);
    const figures: Record<string, number>[] = [];
    for (let round = 0; round < Number(values.rounds); round++) {
      const kitMibs = await copyRate(join(folder, "kit.sock"), sizeBytes);
      const setup = { settings, sizeBytes, seq, socket: join(folder, `${round}.sock`), reads: Number(values.reads) };
      const ours = await inChild(setup, values["cpu-prof"]);
      figures.push({ "nbdcopy from nbdkit file, MiB/s": kitMibs, ...ours });
      console.error(`round ${round + 1}: ${JSON.stringify(figures.at(-1))}`);
    }
    for (const name of Object.keys(figures[0]!)) {
      const values_ = figures.map((one) => one[name]!).toSorted((a, b) => a - b);
      console.log(`${name.padEnd(56)} ${values_[Math.floor(values_.length / 2)]!.toFixed(2)}`);
    }
    console.log(
      `goals: sequential ≥ ${GOALS.sequentialMibs} MiB/s, cold random 4 KiB p50 ≤ ${GOALS.randomP50Ms} ms, on a quiet machine`,
    );
  } finally {
    kit.kill("SIGTERM");
    await server.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The readers have a process of their own: its processor time and memory are theirs alone. */
async function inChild(setup: ReaderSetup, profiles: string | undefined): Promise<Record<string, number>> {
  const execArgv = profiles === undefined ? [] : ["--cpu-prof", "--cpu-prof-dir", profiles];
  const child = fork(import.meta.filename, { execArgv });
  child.send(setup);
  let answer: Record<string, number> | undefined;
  child.once("message", (message) => (answer = message as Record<string, number>)); // Its other end is this file.
  await once(child, "exit");
  if (answer === undefined) throw new Error("The reader failed");
  return answer;
}

async function read(): Promise<void> {
  setFlagsFromString("--heap-growing-percent=400"); // As in main/export.ts.
  const [setup] = (await once(process, "message")) as [ReaderSetup];
  await using objects = s3ObjectStore(setup.settings, { clock, random });
  const { sizeBytes, reads } = setup;
  const disk = await replica(objects).openDisk({ diskId: DISK_ID, sizeBytes, sectorBytes: 512 });
  const fresh = (): Promise<DiskImage> =>
    openImage(disk.context, { branch: "root", seq: setup.seq, keyring: disk.keyring, storeId: disk.storeId });
  const figures: Record<string, number> = {};

  const stored = await getAll(objects);
  figures["plain GETs of the stored bytes, stored MiB/s"] = stored.mibs;
  figures["stored / plain bytes"] = stored.bytes / sizeBytes;
  figures["plain GETs, as MiB/s of the disk"] = sizeBytes / MIB / stored.seconds;

  let image = await fresh();
  const nbd = await serveNbd({
    exports: { find: () => imageDevice(image), names: () => ["disk"] },
    listen: { path: setup.socket },
  });
  let used = processorTime();
  figures["nbdcopy from the image, MiB/s"] = await copyRate(setup.socket, sizeBytes);
  figures["  its processor time, ms per MiB"] = used() / (sizeBytes / MIB);
  figures["  GETs per MiB"] = image.statistics.requests / (sizeBytes / MIB);
  figures["  bytes fetched / stored"] = image.statistics.fetchedBytes / stored.bytes;
  await nbd.close();

  image = await fresh();
  const target = Buffer.alloc(4 * MIB);
  let bornAt = performance.now();
  for (let at = 0; at < sizeBytes; at += 32 << 10) {
    await image.read(target.subarray(0, 32 << 10), at);
    await nextTurn(); // A client's next request takes a turn to come in.
  }
  figures["32 KiB reads one after the other, MiB/s"] = sizeBytes / MIB / ((performance.now() - bornAt) / 1000);

  image = await fresh();
  bornAt = performance.now();
  used = processorTime();
  await restore(image);
  figures["4 lanes of 4 MiB (restore), MiB/s"] = sizeBytes / MIB / ((performance.now() - bornAt) / 1000);
  figures["  its processor time, ms per MiB of restore"] = used() / (sizeBytes / MIB);

  // 4 KiB where there is data, far from each other, through an image that has read nothing.
  image = await fresh();
  const places = await dataPlaces(image, reads);
  await timed(places.slice(0, 10), (at) => image.read(target.subarray(0, 4096), at));
  const cold = await timed(places.slice(10), (at) => image.read(target.subarray(0, 4096), at));
  figures["cold random 4 KiB, p50 ms"] = quantile(cold, 0.5);
  figures["cold random 4 KiB, p95 ms"] = quantile(cold, 0.95);
  const plain = await timed(places.slice(10), (at) =>
    objects.get(stored.keys[at % stored.keys.length]!, { range: { offset: (at % 30) * MIB, length: 100_000 } }),
  );
  figures["plain GET of 100 kB, p50 ms"] = quantile(plain, 0.5);
  figures["peak memory of the reader, MiB"] = process.resourceUsage().maxRSS / 1024;
  process.send!(figures);
  process.disconnect();
}

/** All threads of this process: figures that hold also on a busy machine. */
function processorTime(): () => number {
  const before = process.cpuUsage();
  return () => {
    const { user, system } = process.cpuUsage(before);
    return (user + system) / 1000;
  };
}

async function restore(image: DiskImage): Promise<void> {
  let next = 0;
  const lane = async (): Promise<void> => {
    const buffer = Buffer.alloc(4 * MIB);
    while (next < image.sizeBytes) {
      const at = next;
      next += buffer.length;
      await image.read(buffer.subarray(0, Math.min(buffer.length, image.sizeBytes - at)), at);
    }
  };
  await Promise.all([lane(), lane(), lane(), lane()]);
}

async function dataPlaces(image: DiskImage, count: number): Promise<number[]> {
  const data: { readonly at: number; readonly length: number }[] = [];
  let at = 0;
  for (const { length, zero } of await image.allocation(0, image.sizeBytes)) {
    if (!zero) data.push({ at, length });
    at += length;
  }
  return Array.from({ length: count }, () => {
    const run = data[Math.floor(Math.random() * data.length)]!;
    return run.at + Math.floor((Math.random() * run.length) / 4096) * 4096;
  });
}

async function timed(places: readonly number[], work: (at: number) => unknown): Promise<number[]> {
  const times: number[] = [];
  for (const at of places) {
    const bornAt = performance.now();
    await work(at);
    times.push(performance.now() - bornAt);
  }
  return times.toSorted((a, b) => a - b);
}

function quantile(sorted: readonly number[], share: number): number {
  return sorted[Math.floor(sorted.length * share)] ?? 0;
}

/** Every container whole, four at a time: what the line and the server give without us. */
async function getAll(
  objects: S3ObjectStore,
): Promise<{ mibs: number; seconds: number; bytes: number; keys: string[] }> {
  const keys: string[] = [];
  for await (const { key, size } of objects.list("replica/disks/")) if (size > MIB) keys.push(key);
  const queue = [...keys];
  const bornAt = performance.now();
  let bytes = 0;
  const lane = async (): Promise<void> => {
    for (let key = queue.pop(); key !== undefined; key = queue.pop()) {
      const { length } = await objects.get(key);
      bytes += length;
    }
  };
  await Promise.all([lane(), lane(), lane(), lane()]);
  const seconds = (performance.now() - bornAt) / 1000;
  return { mibs: bytes / MIB / seconds, seconds, bytes, keys };
}

async function copyRate(socket: string, sizeBytes: number): Promise<number> {
  const bornAt = performance.now();
  await run("nbdcopy", ["--connections=1", `nbd+unix:///?socket=${socket}`, "null:"]);
  return sizeBytes / MIB / ((performance.now() - bornAt) / 1000);
}

async function startNbdkit(path: string, socket: string): Promise<ChildProcess> {
  const child = spawn("nbdkit", ["--foreground", "--readonly", "--unix", socket, "file", path], { stdio: "inherit" });
  for (let tries = 0; tries < 100; tries++) {
    const answers = await run("nbdinfo", ["--size", `nbd+unix:///?socket=${socket}`]).catch(() => undefined);
    if (answers) return child;
    await sleep(50);
  }
  throw new Error("nbdkit does not answer");
}

function replica(objects: S3ObjectStore): MoverStore {
  return openMoverStore({ store: objects, root: "replica", clock, random }, { keys: () => DISK_KEY });
}

/** The disk as one commit; returns its number. */
async function fill(settings: S3Settings, path: string, sizeBytes: number): Promise<number> {
  await using objects = s3ObjectStore(settings, { clock, random });
  await objects.ensureBucket();
  const store = replica(objects);
  await ensureStoreRecord(store.context);
  const opened = await store.openDisk({ diskId: DISK_ID, sizeBytes, sectorBytes: 512 }, { create: true });
  await createDisk(opened.context, { operation: "prepare", groupEpoch: 1, activeSite: "one", holder: "bench" });
  const onTrouble = (fault: Error): void => console.error(fault.message);
  const deps = { buffers: containerBuffers(), uploads: slots(SEGMENT_PUTS_MAX), holder: "bench", onTrouble };
  const disk = moverDisk(opened, deps);
  await disk.open({ site: "one", branch: "root", sourceLife: "00000001" });
  const assembly = disk.begin(1);
  let records = 0;
  const packers = [0, 1].map(() =>
    createFramePacker({
      tools: createFrameTools(),
      kind: KIND_SWEEP,
      frameBlocks: 64,
      compress: true,
      emit: (payload, count) => ((records += count), assembly.receive(payload)),
    }),
  );
  const file = await open(path);
  const buffer = Buffer.alloc(MIB);
  for (let pair = 0; pair < sizeBytes; pair += 2 * STRIPE_BYTES) {
    for (let at = 0; at < STRIPE_BYTES; at += MIB) {
      for (const [lane, packer] of packers.entries()) {
        const offset = pair + lane * STRIPE_BYTES + at;
        if (offset >= sizeBytes) continue;
        await file.read(buffer, 0, MIB, offset);
        await packer.add(buffer, offset / 4096);
      }
    }
  }
  for (const packer of packers) await packer.flush();
  await file.close();
  await assembly.complete(records);
  const now = clock.now();
  const details = { cycle: 1, cycleDisks: 1, flags: 0, cutMs: now, rawCutMs: now };
  const { seq } = await disk.commit(assembly, { cutAtMs: now, giveUpAtMs: clock.monotonic() + 60_000, details });
  return seq;
}
