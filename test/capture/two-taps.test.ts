/**
 * The promise of the tap, through everything that is real: two tap processes, NBD connections, control sockets, `kill -9`.
 * The judge is write-history.ts; the seed is printed, and LEEWARD_SEED repeats it.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { connectTap } from "../../src/capture/tap/tap-client.ts";
import type { TapClient } from "../../src/capture/tap/tap-client.ts";
import { connectNbd, ConnectionLost } from "../nbd/nbd-client.ts";
import type { NbdClient } from "../nbd/nbd-client.ts";
import { commit, cutTogether, discardAll, readOut } from "./replica.ts";
import type { ReadCycle, Tracked } from "./replica.ts";
import { seededRandom } from "./seeded-random.ts";
import { createHistory, SECTOR } from "./write-history.ts";
import type { HistoryDisk } from "./write-history.ts";

const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));
const TAP = new URL("../../src/main/tap.ts", import.meta.url).pathname;

/** One tap process with one disk, its agent's connection, and its machine's NBD connections, all of which come back after a kill. */
interface TapUnderTest {
  readonly tracked: Tracked;
  readonly disk: HistoryDisk;
  readonly image: string;
  client(): Promise<TapClient>;
  kill(): Promise<void>;
  stop(): Promise<void>;
  /** Ms from the kill to the first answer, each. */
  readonly gapsMs: number[];
}

async function startTapUnderTest(
  folder: string,
  name: string,
  sectors: number,
  initial: Buffer,
  frozenBytesMax: number,
): Promise<TapUnderTest> {
  const home = join(folder, name);
  mkdirSync(home);
  const image = join(home, "disk.img");
  writeFileSync(image, initial);
  const socket = join(home, "nbd.sock");
  const controlSocket = join(home, "control.sock");
  const configFile = join(home, "tap.json");
  writeFileSync(
    configFile,
    JSON.stringify({
      controlSocket,
      frozenBytesMax,
      disks: [{ diskId: name, image, socket, stateDir: home }],
      logFile: join(home, "log"),
    }),
  );
  let child: ChildProcess;
  let control: Promise<TapClient>;
  let machine: Promise<NbdClient[]>;
  let next = 0;
  let ended = false;
  const gapsMs: number[] = [];

  async function start(): Promise<void> {
    child = spawn(process.execPath, [TAP, "--config", configFile], { stdio: ["ignore", "pipe", "inherit"] });
    await once(child.stdout!, "data");
    control = connectTap(controlSocket);
    machine = Promise.all([connectNbd({ path: socket }, name), connectNbd({ path: socket }, name)]);
    await Promise.all([control, machine]);
  }
  await start();

  /** What QEMU does with `reconnect-delay`: the request is sent again on the next connection. */
  async function request(action: (connection: NbdClient) => Promise<void>): Promise<void> {
    for (;;) {
      try {
        const connections = await machine;
        return await action(connections[next++ % connections.length]!);
      } catch (error) {
        if (!(error instanceof ConnectionLost) || ended) throw error;
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    }
  }

  return {
    image,
    gapsMs,
    client: () => control,
    disk: {
      sectors,
      write: (data, offset, fua) => request((connection) => connection.write(data, offset, { fua })),
      zero: (offset, length) => request((connection) => connection.zero(offset, length)),
      trim: (offset, length) => request((connection) => connection.trim(offset, length)),
      flush: () => request((connection) => connection.flush()),
    },
    tracked: {
      hold: async (cutId) => (await control).hold([name], cutId),
      mark: async (cutId) => void (await (await control).mark([name], cutId)),
      release: async (cutId) => (await (await control).release([name], cutId)).heldThroughout,
      cutExtents: async (cutId) => (await control).cutExtents(name, cutId),
      readCut: async (cutId, runs) => (await control).readCut(name, cutId, runs),
      shipped: async (cutId) => (await control).shipped(name, cutId),
      committed: async (cutId, swept) => (await control).committed(name, cutId, swept),
      discard: async (cutId) => (await control).discard(name, cutId),
      unsynced: async () => (await control).unsynced(name),
      readLive: async (runs) => (await control).readLive(name, runs),
    },
    async kill() {
      const at = performance.now();
      child.kill("SIGKILL");
      await once(child, "exit");
      await start();
      gapsMs.push(performance.now() - at);
    },
    async stop() {
      ended = true;
      for (const connection of await machine) connection.destroy();
      (await control).close();
      child.kill("SIGTERM");
      if (child.exitCode === null) await once(child, "exit");
    },
  };
}

/** Enough on a busy machine; on an idle one the points are there in a few seconds. */
const SECONDS_MAX = 40;

async function runHistory(options: {
  points: number;
  overflows: number;
  frozenBytesMax: number;
  kills: number;
  seed: number;
}): Promise<{ points: number; cuts: number; lost: number; overflows: number; changes: number; gapsMs: number[] }> {
  const random = seededRandom(options.seed);
  const folder = mkdtempSync(join(tmpdir(), "leeward-taps-"));
  // Odd sizes: the last block and the last region are partial.
  const sectors = [6 * 2048 + 3, 3 * 2048 + 5];
  const history = createHistory(sectors, random);
  const taps: TapUnderTest[] = [];
  try {
    for (const [index, count] of sectors.entries())
      taps.push(await startTapUnderTest(folder, `disk${index}`, count, history.initial(index), options.frozenBytesMax));
    const tracked = taps.map((tap) => tap.tracked);
    const replicas = sectors.map((count) => Buffer.alloc(count * SECTOR));
    const stop = Promise.withResolvers<void>();
    const writing = history.run(
      taps.map((tap) => tap.disk),
      12,
      stop.promise,
    );
    writing.catch(() => undefined); // When the judge has failed, the disks go away under the writers.
    const end = performance.now() + SECONDS_MAX * 1000;
    const counts = { points: 0, cuts: 0, lost: 0, overflows: 0 };
    // A cut that is not committed breaks the chain: points begin again with the first cycle that was begun after it came back to dirty.
    let brokenAt = 0;
    let open: Promise<ReadCycle | undefined>[] = [];
    const pause = async (): Promise<void> => {
      if (random() < 0.5) await new Promise((resolve) => setTimeout(resolve, random() * 8));
    };

    async function settleOldest(): Promise<void> {
      const cycle = await open.shift()!;
      if (cycle === undefined || random() < 0.12) {
        if (cycle !== undefined) await discardAll(tracked, cycle.cutId);
        counts.lost++;
        brokenAt = history.now();
        return;
      }
      await commit(tracked, cycle, replicas);
      if (cycle.wasSynced && cycle.held && cycle.after > brokenAt) {
        history.judge(replicas, cycle);
        counts.points++;
      }
    }

    let killsLeft = options.kills;
    for (
      let cutId = 1;
      performance.now() < end &&
      (counts.points < options.points || killsLeft > 0 || counts.overflows < options.overflows);
      cutId++
    ) {
      if (killsLeft > 0 && random() < 0.08) {
        killsLeft--;
        await taps[killsLeft % taps.length]!.kill();
        brokenAt = history.now();
      }
      const cycle = await cutTogether(tracked, cutId, history.now, 2000, pause);
      counts.cuts++;
      if (cycle === undefined) brokenAt = history.now();
      else
        open.push(
          readOut(tracked, cycle, pause, (fault) => (counts.overflows += fault.code === "CUT_OVERFLOWED" ? 1 : 0)),
        );
      while (open.length > (random() < 0.5 ? 3 : 1)) await settleOldest();
      if (random() < 0.5) await new Promise((resolve) => setTimeout(resolve, random() * 30));
    }
    while (open.length > 0) await settleOldest();
    open = [];
    stop.resolve();
    await writing;
    // In the end nothing is left out: once all is swept and cut, the replicas equal the images, byte for byte.
    for (let cutId = 1_000_000; ; cutId++) {
      const cycle = await cutTogether(tracked, cutId, history.now, 1e9, () => Promise.resolve());
      const read = cycle === undefined ? undefined : await readOut(tracked, cycle, () => Promise.resolve());
      if (read === undefined) continue;
      await commit(tracked, read, replicas);
      if (read.wasSynced) break;
    }
    for (const [index, tap] of taps.entries())
      assert.ok(readFileSync(tap.image).equals(replicas[index]!), `disk ${index} differs in the end`);
    return { ...counts, changes: history.changes, gapsMs: taps.flatMap((tap) => tap.gapsMs) };
  } finally {
    for (const tap of taps) await tap.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

test(
  "every point of two disks is a prefix of their common write history, in real-time order",
  { timeout: 120_000 },
  async (context) => {
    context.diagnostic(`seed ${seed}`);
    const result = await runHistory({ points: 25, overflows: 0, frozenBytesMax: 64 << 20, kills: 0, seed });
    context.diagnostic(JSON.stringify(result));
    assert.ok(result.points >= 5 && result.changes > 500, JSON.stringify(result));
  },
);

test(
  "the same holds when taps are killed, and a replaced tap knows what it has to read again",
  { timeout: 120_000 },
  async (context) => {
    context.diagnostic(`seed ${seed}`);
    const result = await runHistory({ points: 8, overflows: 0, frozenBytesMax: 64 << 20, kills: 4, seed });
    context.diagnostic(JSON.stringify(result));
    assert.ok(result.points >= 2, JSON.stringify(result));
    assert.equal(result.gapsMs.length, 4);
  },
);

test(
  "the same holds when there is little room for old data and cuts become void",
  { timeout: 120_000 },
  async (context) => {
    context.diagnostic(`seed ${seed}`);
    const result = await runHistory({ points: 0, overflows: 3, frozenBytesMax: 160 << 10, kills: 0, seed });
    context.diagnostic(JSON.stringify(result));
    assert.ok(result.overflows > 0, JSON.stringify(result));
  },
);

test("an agent that goes away while it holds lets go of the disks, and its cuts wait for the next one", async () => {
  const folder = mkdtempSync(join(tmpdir(), "leeward-taps-"));
  const history = createHistory([2048], seededRandom(1));
  const tap = await startTapUnderTest(folder, "disk0", 2048, history.initial(0), 64 << 20);
  try {
    const first = await tap.client();
    await tap.disk.write(Buffer.alloc(4096, 7), 8192, false);
    await first.hold(["disk0"], 1, 60_000);
    await first.mark(["disk0"], 1);
    const written = tap.disk.write(Buffer.alloc(4096, 8), 8192, false);
    let acknowledged = false;
    void written.then(() => (acknowledged = true));
    const second = await connectTap(join(folder, "disk0", "control.sock"));
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(acknowledged, false);
    first.close();
    await written;
    const [status] = await second.disks();
    assert.deepEqual(
      status?.cuts.map(({ cutId, state, blocks }) => ({ cutId, state, blocks })),
      [{ cutId: 1, state: "open", blocks: 1 }],
    );
    assert.deepEqual(await second.cutExtents("disk0", 1), [{ start: 2, count: 1 }]);
    assert.deepEqual(Buffer.from(await second.readCut("disk0", 1, [{ start: 2, count: 1 }])), Buffer.alloc(4096, 7));
    assert.equal((await second.release(["disk0"], 1)).heldThroughout, false);
    await assert.rejects(second.readCut("disk0", 1, [{ start: 3, count: 1 }]), (error) =>
      isFault(error, "PROTOCOL_INVALID"),
    );
    await second.discard("disk0", 1);
    assert.equal((await second.disks())[0]?.dirtyBytes, 4096);
    second.close();
  } finally {
    await tap.stop();
    rmSync(folder, { recursive: true, force: true });
  }
});
