/**
 * The promise of the whole system: two disks under random writes, every role killed at random moments, and in the end *every* point that the store
 * offers is read back over NBD and judged against the history of the writes. The seed is printed, and LEEWARD_SEED repeats the choices (not the timing).
 * LEEWARD_SECONDS says how long it writes; without it the newest point, the oldest one and a choice between are read, to save the suite some minutes.
 */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { RecoveryPoint } from "#ports/replication.ts";
import { createHistory, type HistoryDisk } from "../capture/write-history.ts";
import { seededRandom } from "../capture/seeded-random.ts";
import { connectNbd, ConnectionLost, type NbdClient } from "../nbd/nbd-client.ts";
import { startSystem, until, type System } from "../support/system.ts";

const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));
const seconds = Number(process.env["LEEWARD_SECONDS"] ?? 25);

/** Odd sizes: the last block and the last region are partial. */
const SECTORS = [6 * 2048 + 3, 3 * 2048 + 5];
const WRITERS = 6;
const READ_BYTES = 1 << 20;
/** About as many as a few minutes of the suite are worth. */
const POINTS_READ = 16;
/** A point's time is that of its cut on the process server's clock; the history's is ours, looked at this often. */
const TICK_MS = 100;
const SLACK_MS = 1_500;

const VICTIMS = [
  ["primary", "process-server"],
  ["primary", "agent"],
  ["primary", "tap"],
  ["secondary", "data-mover"],
  ["secondary", "master-target"],
  ["secondary", "s3"],
  ["secondary", "worker"],
  ["secondary", "control"],
] as const;

test(
  "whatever is killed, every point that is offered is a prefix of the history of all writes to both disks",
  { timeout: 900_000 },
  async (t) => {
    t.diagnostic(`seed ${seed}`);
    const random = seededRandom(seed);
    const history = createHistory(SECTORS, random);
    const system = await startSystem(t);
    const { client } = system;
    const images = SECTORS.map((_, index) => join(system.folder, `disk${index}.img`));
    for (const [index, image] of images.entries()) writeFileSync(image, history.initial(index));
    await client.protect({ name: "all", disks: images.map((image) => `tap:${image}`), policy: { intervalMs: 500 } });
    const urls = await until("taps", 30_000, async () => {
      const { disks } = await client.group("all");
      const found = disks.flatMap(({ tapUrl }) => (tapUrl === undefined ? [] : [tapUrl]));
      return found.length === SECTORS.length && found;
    });

    const stop = Promise.withResolvers<void>();
    const clock = followTime(history.now);
    const disks = urls.map((url, index) => machineDisk(url, SECTORS[index]!, random));
    const writing = history.run(disks, WRITERS, stop.promise);
    writing.catch(() => undefined); // It is awaited below; a failure before that ends the test there.
    const end = performance.now() + seconds * 1_000;
    const killed: string[] = [];
    while (performance.now() < end) {
      // Now and then in close succession; mostly there is time for a few points in between.
      await sleep(random() < 0.3 ? random() * 500 : 3_000 + random() * 3_000);
      const [site, name] = VICTIMS[Math.floor(random() * VICTIMS.length)]!;
      if (system.kill(site, name) > 0) killed.push(name);
    }
    stop.resolve();
    await writing;
    for (const disk of disks) disk.close();
    const restedAtMs = Date.now();
    await until("a point of the rested disks", 120_000, async () => {
      const group = await client.group("all");
      return (group.rpoMs ?? Number.MAX_SAFE_INTEGER) < Date.now() - restedAtMs - 500 && group.backlogBytes === 0;
    });
    clock.stop();

    const points = await client.points("all");
    for (const point of chosen(points, random)) {
      history.judge(
        await readPoint(system, point.id),
        { after: clock.before(point.cutAtMs - SLACK_MS), before: clock.after(point.cutAtMs + SLACK_MS) },
        true, // A tap that is killed leaves the write it was at in part, and it was not acknowledged.
      );
    }
    t.diagnostic(`${points.length} points, ${history.changes} writes, killed: ${killed.join(" ")}`);
    assert.ok(points.length >= 5 && history.changes > 500, `${points.length} points, ${history.changes} writes`);
  },
);

function chosen<Point>(points: readonly Point[], random: () => number): readonly Point[] {
  if (process.env["LEEWARD_SECONDS"] !== undefined) return points;
  const share = POINTS_READ / points.length;
  return points.filter((_, index) => index === 0 || index === points.length - 1 || random() < share);
}

/** What QEMU does with `reconnect-delay`: a request that got no answer is sent again on the next connection. */
function machineDisk(url: string, sectors: number, random: () => number): HistoryDisk & { close(): void } {
  let connection: Promise<NbdClient> | undefined;
  const request = async (action: (connection: NbdClient) => Promise<void>): Promise<void> => {
    for (;;) {
      try {
        connection ??= dial(url);
        return await action(await connection);
      } catch (error) {
        if (!(error instanceof ConnectionLost) && (error as NodeJS.ErrnoException).code === undefined) throw error;
        connection = undefined;
        await sleep(20 + random() * 50);
      }
    }
  };
  return {
    sectors,
    write: (data, offset, fua) => request((one) => one.write(data, offset, { fua })),
    zero: (offset, length) => request((one) => one.zero(offset, length)),
    trim: (offset, length) => request((one) => one.trim(offset, length)),
    flush: () => request((one) => one.flush()),
    close: () => void connection?.then((one) => one.destroy()),
  };
}

function dial(url: string): Promise<NbdClient> {
  const { pathname, searchParams } = new URL(url);
  return connectNbd({ path: searchParams.get("socket") ?? "" }, pathname.slice(1));
}

/** Times of the history that are certainly before and after a moment. */
function followTime(now: () => number): { before(ms: number): number; after(ms: number): number; stop(): void } {
  const seen: { readonly ms: number; readonly time: number }[] = [];
  const timer = setInterval(() => seen.push({ ms: Date.now(), time: now() }), TICK_MS);
  return {
    before: (ms) => seen.findLast((one) => one.ms <= ms)?.time ?? 0,
    after: (ms) => seen.find((one) => one.ms >= ms)?.time ?? Number.POSITIVE_INFINITY,
    stop: () => clearInterval(timer),
  };
}

async function readPoint(system: System, pointId: RecoveryPoint["id"]): Promise<Buffer[]> {
  const opened = await system.client.openExport("all", { point: pointId });
  try {
    const { disks } = await system.client.group("all");
    const images: Buffer[] = [];
    for (const { id } of disks) {
      const client = await dial(opened.disks.find(({ diskId }) => diskId === id)!.url);
      const parts: Buffer[] = [];
      for (let at = 0; at < client.sizeBytes; at += READ_BYTES)
        parts.push(await client.read(at, Math.min(READ_BYTES, client.sizeBytes - at)));
      await client.disconnect();
      images.push(Buffer.concat(parts));
    }
    return images;
  } finally {
    await system.client.closeExport(opened.operationId);
  }
}
