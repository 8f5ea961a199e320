/** Change tracking over devices that answer late and in pieces, crashed and started again from the write intent. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Fault, isFault } from "#model/fault.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { createCaptureDevice } from "../../src/capture/tap/capture-device.ts";
import type { CaptureDevice } from "../../src/capture/tap/capture-device.ts";
import { openWriteIntent } from "../../src/capture/tap/write-intent.ts";
import type { WriteIntent } from "../../src/capture/tap/write-intent.ts";
import { commit, cutTogether, discardAll, readOut } from "./replica.ts";
import type { ReadCycle, Tracked } from "./replica.ts";
import { seededRandom } from "./seeded-random.ts";
import { createSlowDevice } from "./slow-device.ts";
import type { SlowDevice } from "./slow-device.ts";
import { createHistory, SECTOR } from "./write-history.ts";
import type { HistoryDisk } from "./write-history.ts";

const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));

interface Life {
  readonly device: SlowDevice;
  readonly intent: WriteIntent;
  readonly capture: CaptureDevice;
  readonly died: PromiseWithResolvers<never>;
}

/** A tracked disk that can die and live again, as a tap process does. */
function createMortalDisk(options: {
  backing: Buffer;
  intentFile: string;
  random: () => number;
  frozenBytesMax: number;
}): { tracked: Tracked; disk: HistoryDisk; life(): Life; crash(): Promise<void> } {
  const { backing, intentFile, random } = options;
  let life = begin();
  let reborn: Promise<void> = Promise.resolve();

  function begin(): Life {
    const device = createSlowDevice(backing, random);
    const intent = openWriteIntent(intentFile, {
      diskId: "disk",
      imageBytes: backing.length,
      bootId: "11111111-2222-3333-4444-555555555555",
      imageMtimeNs: 0n,
    });
    const capture = createCaptureDevice({
      device,
      clock: systemClock,
      intent,
      frozenBytesMax: options.frozenBytesMax,
      intentClearMs: 15,
    });
    const died = Promise.withResolvers<never>();
    died.promise.catch(() => undefined);
    return { device, intent, capture, died };
  }

  /** A client sends its request again after a crash, like QEMU with `reconnect-delay`. */
  async function request(action: (capture: CaptureDevice) => void | Promise<void>): Promise<void> {
    for (;;) {
      await reborn;
      const { capture, died } = life;
      try {
        await Promise.race([action(capture), died.promise]);
        return;
      } catch (error) {
        // A crash, or a bad sector: in both cases the request is sent again.
        if (!isFault(error)) throw error;
      }
    }
  }

  async function call<T>(action: (capture: CaptureDevice) => T | Promise<T>): Promise<T> {
    const { capture, died } = life;
    return Promise.race([Promise.resolve(action(capture)), died.promise]);
  }

  const into = (runs: readonly { count: number }[]): Buffer =>
    Buffer.alloc(runs.reduce((sum, run) => sum + run.count, 0) * BLOCK_SIZE);
  return {
    life: () => life,
    async crash() {
      const before = life;
      const rebirth = Promise.withResolvers<void>();
      reborn = rebirth.promise;
      before.device.die();
      // Its writes to the state file end first: in another process the kernel would see to that.
      await before.intent.close(undefined);
      life = begin();
      before.died.reject(new Fault("PEER_UNREACHABLE", "The tap has died"));
      rebirth.resolve();
    },
    disk: {
      sectors: backing.length / SECTOR,
      write: (data, offset, fua) => request((capture) => capture.write(data, offset, { fua })),
      zero: (offset, length) => request((capture) => capture.zero(offset, length)),
      trim: (offset, length) => request((capture) => capture.trim(offset, length)),
      flush: () => request((capture) => capture.flush()),
    },
    tracked: {
      hold: (cutId) => call((capture) => capture.hold(cutId, 250)),
      mark: (cutId) => call((capture) => void capture.mark(cutId)),
      release: (cutId) => call((capture) => capture.release(cutId).heldThroughout),
      cutExtents: (cutId) => call((capture) => [...capture.cutRuns(cutId)]),
      readCut: (cutId, runs) =>
        call(async (capture) => {
          const target = into(runs);
          await capture.readCut(cutId, runs, target);
          return target;
        }),
      shipped: (cutId) => call((capture) => capture.shipped(cutId)),
      committed: (cutId, swept) => call((capture) => capture.committed(cutId, swept)),
      discard: (cutId) => call((capture) => capture.discard(cutId)),
      unsynced: () => call((capture) => [...capture.unsyncedRuns()]),
      readLive: (runs) =>
        call(async (capture) => {
          const target = into(runs);
          await capture.readLive(runs, target);
          return target;
        }),
    },
  };
}

/** Enough on a busy machine; on an idle one the points are there in a few seconds. */
const SECONDS_MAX = 40;

async function runHistory(options: {
  points: number;
  overflows: number;
  crashes: number;
  badSectors: boolean;
  frozenBytesMax: number;
  writers: number;
  seed: number;
}): Promise<{
  points: number;
  cuts: number;
  lost: number;
  overflows: number;
  changes: number;
  sweptAfterCrash: number[];
}> {
  const random = seededRandom(options.seed);
  const folder = mkdtempSync(join(tmpdir(), "leeward-capture-"));
  const sectors = [9 * 2048 + 3, 2 * 2048 + 5];
  const history = createHistory(sectors, random);
  const backings = sectors.map((_, index) => history.initial(index));
  const disks = backings.map((backing, index) =>
    createMortalDisk({
      backing,
      intentFile: join(folder, `${index}.intent`),
      random,
      frozenBytesMax: options.frozenBytesMax,
    }),
  );
  const tracked = disks.map((disk) => disk.tracked);
  const replicas = sectors.map((count) => Buffer.alloc(count * SECTOR));
  const stop = Promise.withResolvers<void>();
  const writing = history.run(
    disks.map((disk) => disk.disk),
    options.writers,
    stop.promise,
  );
  writing.catch(() => undefined);
  const counts = { points: 0, cuts: 0, lost: 0, overflows: 0 };
  const sweptAfterCrash: number[] = [];
  let brokenAt = 0;
  const open: Promise<ReadCycle | undefined>[] = [];
  const pause = async (): Promise<void> => {
    if (random() < 0.5) await new Promise((resolve) => setTimeout(resolve, random() * 5));
  };

  async function settleOldest(): Promise<void> {
    const cycle = await open.shift()!;
    if (cycle === undefined || random() < 0.1) {
      if (cycle !== undefined) await discardAll(tracked, cycle.cutId);
      counts.lost++;
      brokenAt = history.now();
      return;
    }
    await commit(tracked, cycle, replicas);
    if (!cycle.wasSynced || !cycle.held || cycle.after <= brokenAt) return;
    history.judge(replicas, cycle, options.badSectors);
    counts.points++;
  }

  try {
    const end = performance.now() + SECONDS_MAX * 1000;
    let crashesLeft = options.crashes;
    for (
      let cutId = 1;
      performance.now() < end &&
      (counts.points < options.points || crashesLeft > 0 || counts.overflows < options.overflows);
      cutId++
    ) {
      if (crashesLeft > 0 && counts.points > 2 * (options.crashes - crashesLeft) && random() < 0.2) {
        const victim = disks[crashesLeft-- % disks.length]!;
        await victim.crash();
        sweptAfterCrash.push(victim.life().capture.numbers().unsyncedBytes);
        brokenAt = history.now();
      }
      if (options.badSectors && random() < 0.3) disks[cutId % 2]!.life().device.failNext("write");
      const cycle = await cutTogether(tracked, cutId, history.now, 3000, pause);
      counts.cuts++;
      if (cycle === undefined) brokenAt = history.now();
      else
        open.push(
          readOut(tracked, cycle, pause, (fault) => (counts.overflows += fault.code === "CUT_OVERFLOWED" ? 1 : 0)),
        );
      while (open.length > (random() < 0.5 ? 3 : 1)) await settleOldest();
      if (random() < 0.3) await new Promise((resolve) => setTimeout(resolve, random() * 60));
    }
    while (open.length > 0) await settleOldest();
    stop.resolve();
    await writing;
    for (let cutId = 1_000_000; ; cutId++) {
      const cycle = await cutTogether(tracked, cutId, history.now, 1e9, () => Promise.resolve());
      const read = cycle === undefined ? undefined : await readOut(tracked, cycle, () => Promise.resolve());
      if (read === undefined) continue;
      await commit(tracked, read, replicas);
      if (read.wasSynced) break;
    }
    for (const [index, backing] of backings.entries())
      assert.ok(backing.equals(replicas[index]!), `disk ${index} differs in the end`);
    return { ...counts, changes: history.changes, sweptAfterCrash };
  } finally {
    for (const disk of disks) {
      disk.life().device.die();
      await disk.life().intent.close(undefined);
    }
    rmSync(folder, { recursive: true, force: true });
  }
}

test(
  "points are prefixes of the history when the devices answer late and writes land in pieces",
  { timeout: 100_000 },
  async (context) => {
    context.diagnostic(`seed ${seed}`);
    const result = await runHistory({
      points: 25,
      overflows: 0,
      crashes: 0,
      badSectors: false,
      frozenBytesMax: 64 << 20,
      writers: 16,
      seed,
    });
    context.diagnostic(JSON.stringify(result));
    assert.ok(result.points >= 5, JSON.stringify(result));
  },
);

test(
  "after a crash the write intent names every region that the replica may lack",
  { timeout: 100_000 },
  async (context) => {
    context.diagnostic(`seed ${seed}`);
    const result = await runHistory({
      points: 12,
      overflows: 0,
      crashes: 5,
      badSectors: false,
      frozenBytesMax: 64 << 20,
      writers: 2,
      seed,
    });
    context.diagnostic(JSON.stringify(result));
    assert.equal(result.sweptAfterCrash.length, 5);
  },
);

test(
  "a write that fails half-way is read again, and the client's retry is tracked like any write",
  { timeout: 100_000 },
  async (context) => {
    context.diagnostic(`seed ${seed}`);
    const result = await runHistory({
      points: 10,
      overflows: 0,
      crashes: 0,
      badSectors: true,
      frozenBytesMax: 64 << 20,
      writers: 8,
      seed,
    });
    context.diagnostic(JSON.stringify(result));
    assert.ok(result.points >= 2, JSON.stringify(result));
  },
);

test(
  "cuts become void, and nothing else happens, when there is little room for old data",
  { timeout: 100_000 },
  async (context) => {
    context.diagnostic(`seed ${seed}`);
    const result = await runHistory({
      points: 0,
      overflows: 3,
      crashes: 0,
      badSectors: false,
      frozenBytesMax: 160 << 10,
      writers: 12,
      seed,
    });
    context.diagnostic(JSON.stringify(result));
    assert.ok(result.overflows > 0, JSON.stringify(result));
  },
);

function quickCapture(blocks = 64): { capture: CaptureDevice; backing: Buffer } {
  const backing = Buffer.alloc(blocks * BLOCK_SIZE, 1);
  const capture = createCaptureDevice({
    device: createSlowDevice(backing, seededRandom(5)),
    clock: systemClock,
    unsynced: { runs: [], reason: "" },
    frozenBytesMax: 4 * BLOCK_SIZE,
  });
  return { capture, backing };
}

test("a hold ends at its bound by itself, and what follows it is refused", async () => {
  const { capture } = quickCapture();
  await capture.write(Buffer.alloc(100, 2), 5000);
  const before = performance.now();
  await capture.hold(7, 60);
  const written = Promise.resolve(capture.write(Buffer.alloc(100, 3), 5000));
  await written;
  assert.ok(performance.now() - before >= 55);
  assert.throws(
    () => capture.mark(7),
    (error) => isFault(error, "HOLD_EXPIRED"),
  );
  const released = capture.release(7);
  assert.equal(released.heldThroughout, false);
  assert.ok(released.heldMs >= 55, String(released.heldMs));
  assert.ok(capture.numbers(true).holdMsMax >= 55);
  assert.equal(capture.numbers().holdMsMax, 0);
});

test("a cut that was marked before the bound is kept, but does not count for the group", async () => {
  const { capture } = quickCapture();
  await capture.write(Buffer.alloc(10, 2), 0);
  await capture.hold(7, 30);
  assert.equal(capture.mark(7), 1);
  await new Promise((resolve) => setTimeout(resolve, 60));
  assert.equal(capture.release(7).heldThroughout, false);
  assert.deepEqual([...capture.cutRuns(7)], [{ start: 0, count: 1 }]);
});

test("a partial overwrite keeps the whole old block, once, and the newest cut that has it", async () => {
  const { capture } = quickCapture();
  await capture.write(Buffer.alloc(BLOCK_SIZE, 2), 0);
  await capture.hold(1, 1000);
  capture.mark(1);
  capture.release(1);
  await capture.write(Buffer.alloc(10, 3), 20);
  await capture.hold(2, 1000);
  capture.mark(2);
  capture.release(2);
  await capture.write(Buffer.alloc(10, 4), 4000);
  await capture.write(Buffer.alloc(10, 5), 3000);
  assert.equal(capture.numbers().frozenBytes, 2 * BLOCK_SIZE);
  const target = Buffer.alloc(BLOCK_SIZE);
  await capture.readCut(1, [{ start: 0, count: 1 }], target);
  assert.deepEqual(target, Buffer.alloc(BLOCK_SIZE, 2));
  await capture.readCut(2, [{ start: 0, count: 1 }], target);
  assert.deepEqual(target, Buffer.alloc(BLOCK_SIZE, 2).fill(3, 20, 30));
  capture.shipped(1);
  assert.equal(capture.numbers().frozenBytes, BLOCK_SIZE);
  await assert.rejects(capture.readCut(1, [{ start: 0, count: 1 }], target), (error) =>
    isFault(error, "PROTOCOL_INVALID"),
  );
  capture.committed(1, []);
  assert.throws(
    () => capture.committed(1, []),
    (error) => isFault(error, "NOT_FOUND"),
  );
  capture.discard(2);
  capture.discard(2);
  assert.equal(capture.numbers().frozenBytes, 0);
  assert.equal(capture.numbers().dirtyBytes, BLOCK_SIZE);
});

test("old data that does not fit makes the cut void and lets the write go on", async () => {
  const { capture, backing } = quickCapture();
  await capture.write(Buffer.alloc(10 * BLOCK_SIZE, 2), 0);
  await capture.hold(1, 1000);
  capture.mark(1);
  capture.release(1);
  assert.equal(capture.numbers().dirtyBytes, 0);
  await capture.write(Buffer.alloc(5 * BLOCK_SIZE, 3), 0);
  assert.equal(backing[5 * BLOCK_SIZE - 1], 3);
  assert.equal(capture.numbers().cuts[0]?.state, "void");
  assert.equal(capture.numbers().dirtyBytes, 10 * BLOCK_SIZE);
  assert.throws(
    () => capture.cutRuns(1),
    (error) => isFault(error, "CUT_OVERFLOWED"),
  );
  await assert.rejects(capture.readCut(1, [{ start: 0, count: 1 }], Buffer.alloc(BLOCK_SIZE)), (error) =>
    isFault(error, "CUT_OVERFLOWED"),
  );
  assert.throws(
    () => capture.committed(1, []),
    (error) => isFault(error, "CUT_OVERFLOWED"),
  );
  capture.discard(1);
  assert.deepEqual(capture.numbers().cuts, []);
});

test("a resync discards the cuts, so that no earlier sweep counts", async () => {
  const { capture } = quickCapture();
  await capture.write(Buffer.alloc(10, 2), 0);
  await capture.hold(1, 1000);
  capture.mark(1);
  capture.release(1);
  await capture.markAllUnsynced("resync: asked for");
  assert.throws(
    () => capture.committed(1, [{ start: 0, count: 64 }]),
    (error) => isFault(error, "NOT_FOUND"),
  );
  assert.deepEqual(
    [capture.numbers().unsyncedBytes, capture.numbers().sweepReason],
    [64 * BLOCK_SIZE, "resync: asked for"],
  );
});
