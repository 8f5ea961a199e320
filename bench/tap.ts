/**
 * The tap against `nbdkit file`, on the same image, in one run: sequential through nbdcopy, 4 KiB random through fio's nbd engine.
 *
 * Ratios, not rates: machines differ. The two servers take turns within each round, and the median of the rounds counts. The tap
 * tracks changes as in service (initial sync done, intent bits set), and an agent's cuts run every half second.
 *
 * `node bench/tap.ts [--mib 512] [--rounds 3] [--seconds 3]`; exit code 1 when a ratio is below the goal of 0.5.
 */
import { execFile, spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs, promisify } from "node:util";
import { connectTap } from "../src/capture/tap/tap-client.ts";

const run = promisify(execFile);
const GOAL = 0.5;
const { values } = parseArgs({
  options: {
    mib: { type: "string", default: "512" },
    rounds: { type: "string", default: "3" },
    seconds: { type: "string", default: "3" },
  },
});
const mib = Number(values.mib);
const rounds = Number(values.rounds);
const seconds = Number(values.seconds);

const folder = mkdtempSync(join(tmpdir(), "leeward-bench-tap-"));
const children: ChildProcess[] = [];
try {
  await main();
} finally {
  for (const child of children) {
    child.kill("SIGTERM");
    if (child.exitCode === null) await once(child, "exit");
  }
  rmSync(folder, { recursive: true, force: true });
}

async function main(): Promise<void> {
  const image = join(folder, "disk.img");
  const kitImage = join(folder, "kit.img");
  for (const path of [image, kitImage]) await fill(path);
  const tap = await startTap(image);
  const kit = await startNbdkit(kitImage);
  const measures: [string, (uri: string) => Promise<number>][] = [
    ["sequential read", (uri) => rate(["nbdcopy", "--connections=1", uri, "null:"])],
    ["sequential write", (uri) => rate(["nbdcopy", "--connections=1", join(folder, "source.img"), uri])],
    ...["randread", "randwrite"].flatMap((mode) =>
      [1, 16].map((depth): [string, (uri: string) => Promise<number>] => [
        `4 KiB ${mode}, depth ${depth}`,
        (uri) => fio(uri, mode, depth),
      ]),
    ),
  ];
  await fill(join(folder, "source.img"));
  let missed = false;
  process.stdout.write(`${"".padEnd(28)}${"tap".padStart(12)}${"nbdkit".padStart(12)}${"ratio".padStart(8)}\n`);
  for (const [name, measure] of measures) {
    const results: { tap: number; kit: number }[] = [];
    for (let round = 0; round < rounds; round++) {
      // Who goes first alternates.
      const first = round % 2 === 0 ? tap.uri : kit;
      const a = await measure(first);
      const b = await measure(first === kit ? tap.uri : kit);
      results.push(first === kit ? { kit: a, tap: b } : { tap: a, kit: b });
    }
    const ratio = median(results.map((result) => result.tap / result.kit));
    if (ratio < GOAL) missed = true;
    const unit = name.startsWith("sequential") ? "MB/s" : "IOPS";
    process.stdout.write(
      `${name.padEnd(28)}${`${median(results.map((result) => result.tap)).toFixed(0)} ${unit}`.padStart(12)}${`${median(results.map((result) => result.kit)).toFixed(0)} ${unit}`.padStart(12)}${ratio.toFixed(2).padStart(8)}\n`,
    );
  }
  const cuts = await tap.stop();
  process.stdout.write(`${cuts.count} cuts, longest hold ${cuts.longestMs.toFixed(1)} ms\n`);
  if (missed) process.exitCode = 1;
}

/** Blocks that say which they are, not compressible to nothing and never zero. */
async function fill(path: string): Promise<void> {
  const file = await open(path, "w");
  const chunk = Buffer.alloc(1 << 20);
  for (let index = 0; index < mib; index++) {
    for (let at = 0; at < chunk.length; at += 4)
      chunk.writeUInt32LE((Math.imul(index * chunk.length + at, 2654435761) | 1) >>> 0, at);
    await file.write(chunk);
  }
  await file.close();
}

async function startTap(
  image: string,
): Promise<{ uri: string; stop(): Promise<{ count: number; longestMs: number }> }> {
  const config = join(folder, "tap.json");
  const controlSocket = join(folder, "control.sock");
  const socket = join(folder, "tap.sock");
  writeFileSync(
    config,
    JSON.stringify({
      controlSocket,
      disks: [{ diskId: "disk", image, socket, stateDir: folder }],
      logFile: join(folder, "tap.log"),
    }),
  );
  const child = spawn(process.execPath, [new URL("../src/main/tap.ts", import.meta.url).pathname, "--config", config], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  children.push(child);
  await once(child.stdout, "data");
  const client = await connectTap(controlSocket);
  let count = 0;
  let stopped = false;
  const cutting = (async () => {
    while (!stopped) {
      await new Promise((resolve) => setTimeout(resolve, 500));
      const cutId = ++count;
      await client.hold(["disk"], cutId);
      await client.mark(["disk"], cutId);
      await client.release(["disk"], cutId);
      await client.shipped("disk", cutId);
      await client.committed("disk", cutId, [{ start: 0, count: (mib << 20) / 4096 }]);
    }
  })();
  return {
    uri: `nbd+unix:///disk?socket=${socket}`,
    async stop() {
      stopped = true;
      await cutting;
      const [status] = await client.report();
      client.close();
      return { count, longestMs: status!.holdMsMax };
    },
  };
}

async function startNbdkit(image: string): Promise<string> {
  const socket = join(folder, "kit.sock");
  const child = spawn("nbdkit", ["--foreground", "--unix", socket, "file", image], { stdio: "ignore" });
  children.push(child);
  const uri = `nbd+unix:///?socket=${socket}`;
  for (let attempt = 0; ; attempt++) {
    try {
      await run("nbdinfo", ["--size", uri]);
      return uri;
    } catch (error) {
      if (attempt > 50) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

/** MB/s of a command that moves the whole image. */
async function rate([program, ...rest]: string[]): Promise<number> {
  const before = performance.now();
  await run(program!, rest);
  return (mib << 20) / 1e3 / (performance.now() - before);
}

async function fio(uri: string, mode: string, depth: number): Promise<number> {
  const { stdout } = await run(
    "fio",
    [
      "--name=bench",
      "--ioengine=nbd",
      `--uri=${uri}`,
      `--rw=${mode}`,
      "--bs=4k",
      `--iodepth=${depth}`,
      `--size=${mib}m`,
      "--time_based",
      `--runtime=${seconds}`,
      "--norandommap",
      "--output-format=json",
    ],
    { cwd: folder },
  );
  const [job] = (
    JSON.parse(stdout.slice(stdout.indexOf("{"))) as { jobs: { read: { iops: number }; write: { iops: number } }[] }
  ).jobs;
  return mode === "randread" ? job!.read.iops : job!.write.iops;
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)]!;
}
