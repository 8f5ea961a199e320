/**
 * Initial sync of a realistic 6 GiB image through the whole system (tap, agent, process server over mTLS, mover, S3), against `restic backup` of the
 * same image to the same S3 server. Prints time, stored bytes and memory as ratios of the medians of interleaved runs.
 *
 * `node bench/initial-sync.ts [--runs N] [--size-gib G]`
 */
import { execFile, spawn } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs, promisify } from "node:util";
import * as minio from "minio";
import { siteFolder } from "../src/embedded/layout.ts";
import { siteProcessesAlive } from "../src/embedded/site-processes.ts";
import { cacheFolder } from "../src/embedded/tools.ts";
import { benchImage } from "./image.ts";
import { sampleMemory } from "./memory.ts";
import { median, startBenchSystem, verdict } from "./system.ts";

const run = promisify(execFile);
const GIB = 2 ** 30;
const { values } = parseArgs({
  options: {
    runs: { type: "string", default: "3" },
    "size-gib": { type: "string", default: "6" },
    "ours-only": { type: "boolean", default: false },
  },
});
const sizeGib = Number(values["size-gib"]);
const RESTIC = join(cacheFolder(), "tools", "restic-0.18.1-linux-x64", "restic");

const image = await benchImage({ sizeBytes: sizeGib * GIB, fileBytes: Math.round(sizeGib * GIB * (5.3 / 6)) });
await using system = await startBenchSystem();
const { state } = system;

interface Run {
  readonly seconds: number;
  readonly storedBytes: number;
  readonly memoryMiB?: number;
  readonly memoryByName?: Readonly<Record<string, number>>;
  /** Seconds of processor time by role, and of the S3 server. */
  readonly processor?: Readonly<Record<string, number>>;
}

const store = storeAccess();
const ours: Run[] = [];
const theirs: Run[] = [];
for (let round = 0; round < Number(values.runs); round += 1) {
  if (!values["ours-only"]) theirs.push(await resticBackup(store, round));
  ours.push(await initialSync(store, round));
  console.error(`run ${round + 1}: ours ${JSON.stringify(ours.at(-1))}, restic ${JSON.stringify(theirs.at(-1))}`);
}
const seconds = (runs: readonly Run[]): number => median(runs.map((one) => one.seconds));
const storedBytes = (runs: readonly Run[]): number => median(runs.map((one) => one.storedBytes));
verdict(
  "initial sync / restic, time",
  seconds(ours) / seconds(theirs),
  { atMost: 0.5 },
  `ours ${list(ours)} s, restic ${list(theirs)} s`,
);
verdict("initial sync / restic, stored bytes", storedBytes(ours) / storedBytes(theirs), { atMost: 1.05 });
verdict("peak memory of the data path, MB", Math.max(...ours.map((one) => one.memoryMiB ?? 0)) * 1.048576, {
  atMost: 600,
});

function list(runs: readonly Run[]): string {
  return runs.map((one) => one.seconds.toFixed(1)).join(" ");
}

interface StoreAccess {
  readonly endpoint: URL;
  readonly accessKey: string;
  readonly secretKey: string;
  readonly client: minio.Client;
}

function storeAccess(): StoreAccess {
  const config = JSON.parse(
    readFileSync(join(siteFolder(state, "secondary"), "master-target", "config.json"), "utf8"),
  ) as { store: { endpoint: string; credentialsFile: string } };
  const { accessKey, secretKey } = JSON.parse(readFileSync(config.store.credentialsFile, "utf8")) as {
    accessKey: string;
    secretKey: string;
  };
  const endpoint = new URL(config.store.endpoint);
  const client = new minio.Client({
    endPoint: endpoint.hostname,
    port: Number(endpoint.port),
    useSSL: false,
    accessKey,
    secretKey,
    region: "us-east-1",
  });
  return { endpoint, accessKey, secretKey, client };
}

async function bucketBytes(store: StoreAccess, bucket: string, prefix = ""): Promise<number> {
  let sum = 0;
  for await (const entry of store.client.listObjectsV2(bucket, prefix, true) as AsyncIterable<{ size?: number }>)
    sum += entry.size ?? 0;
  return sum;
}

async function emptyBucket(store: StoreAccess, bucket: string, prefix: string): Promise<void> {
  const names: string[] = [];
  for await (const entry of store.client.listObjectsV2(bucket, prefix, true) as AsyncIterable<{ name?: string }>)
    if (entry.name !== undefined) names.push(entry.name);
  if (names.length > 0) await store.client.removeObjects(bucket, names);
}

async function resticBackup(store: StoreAccess, round: number): Promise<Run> {
  const bucket = `restic-${round}`;
  await store.client.makeBucket(bucket, "us-east-1");
  const cache = join(state, `restic-cache-${round}`);
  mkdirSync(cache, { recursive: true });
  const options = {
    maxBuffer: 1 << 24,
    env: {
      ...process.env,
      RESTIC_REPOSITORY: `s3:${store.endpoint.origin}/${bucket}`,
      RESTIC_PASSWORD: "a bench",
      RESTIC_CACHE_DIR: cache,
      AWS_ACCESS_KEY_ID: store.accessKey,
      AWS_SECRET_ACCESS_KEY: store.secretKey,
    },
  };
  await run(RESTIC, ["init"], options);
  await readThrough(image);
  const bornAt = performance.now();
  await run(RESTIC, ["backup", "--quiet", image], options);
  const seconds = (performance.now() - bornAt) / 1000;
  const storedBytes = await bucketBytes(store, bucket);
  await emptyBucket(store, bucket, "");
  return { seconds, storedBytes };
}

async function initialSync(store: StoreAccess, round: number): Promise<Run> {
  const group = `bench-${round}`;
  const { client } = system;
  const before = await bucketBytes(store, "leeward").catch(() => 0);
  await readThrough(image);
  const bornAt = performance.now();
  const sampler = sampleMemory(dataPath);
  const s3Server = sampleMemory(() => processesOf("secondary").filter(({ name }) => name === "s3"));
  await client.protect({ name: group, disks: [`tap:${image}`], policy: { intervalMs: 5_000, rpoThresholdMs: 60_000 } });
  for (;;) {
    const view = await client.group(group);
    if (view.phase === "protected") break;
    await sleep(500); // Each look goes through Temporal, and would take the time that is measured.
  }
  const seconds = (performance.now() - bornAt) / 1000;
  const usage = sampler.stop();
  const s3 = s3Server.stop().processorByName;
  const storedBytes = (await bucketBytes(store, "leeward")) - before;
  await client.unprotect(group);
  await sleep(3_000);
  await emptyBucket(store, "leeward", "leeward/disks/");
  return {
    seconds,
    storedBytes,
    memoryMiB: usage.residentBytesMax / 2 ** 20,
    memoryByName: mebibytes(usage.residentByName),
    processor: rounded({ ...usage.processorByName, ...s3 }),
  };
}

function rounded(byName: Readonly<Record<string, number>>): Record<string, number> {
  return Object.fromEntries(Object.entries(byName).map(([name, value]) => [name, Math.round(value * 10) / 10]));
}

function mebibytes(byName: Readonly<Record<string, number>>): Record<string, number> {
  return Object.fromEntries(Object.entries(byName).map(([name, bytes]) => [name, Math.round(bytes / 2 ** 20)]));
}

/** Agent, tap, process server, master target and mover: everything of ours between the disk and S3. */
function dataPath(): { name: string; pid: number }[] {
  return (["primary", "secondary"] as const).flatMap((site) => {
    const used = site === "primary" ? ["agent", "tap", "process-server"] : ["master-target", "data-mover"];
    return processesOf(site).filter(({ name }) => used.includes(name));
  });
}

function processesOf(site: "primary" | "secondary"): { name: string; pid: number }[] {
  return siteProcessesAlive(siteFolder(state, site)).map(({ pid }) => ({ name: roleOf(pid), pid }));
}

function roleOf(pid: number): string {
  try {
    const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    if (words[0]?.endsWith("/versitygw") === true) return "s3";
    const script = words.find((word) => /\/main\/[a-z-]+\.[jt]s$/.test(word)) ?? "";
    const name = /\/main\/([a-z-]+)\.[jt]s$/.exec(script)?.[1] ?? "";
    return name === "leeward" ? (words[words.indexOf(script) + 1] ?? "") : name;
  } catch {
    return "";
  }
}

/** Both sides read a warm image: what is compared is the path, not the disk of this machine. */
async function readThrough(path: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    spawn("cat", [path], { stdio: ["ignore", "ignore", "ignore"] }).once("exit", (code) =>
      code === 0 ? resolve() : reject(new Error(`cat ended with ${code}`)),
    );
  });
}
