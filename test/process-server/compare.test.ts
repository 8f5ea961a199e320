/**
 * A resync compares with the replica and ships what differs: over a line that counts every byte, from real taps to a real mover. LEEWARD_SEED
 * repeats a run.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { closeSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { BLOCK_SIZE } from "#model/units.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { createHistory } from "../capture/write-history.ts";
import { seededRandom } from "../capture/seeded-random.ts";
import { startMoverTarget, type MoverTarget } from "../support/mover-target.ts";
import { eventually, startSourceSite, testOrder, type Machine, type SourceSite } from "../support/source-site.ts";
import { startWan, type Wan } from "../support/wan.ts";

const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));

interface Stage {
  readonly site: SourceSite;
  readonly target: MoverTarget;
  readonly wan: Wan;
  readonly machines: readonly Machine[];
}

/** A machine for each image, in one group that has made its first point. */
async function stage(t: TestContext, images: readonly Buffer[]): Promise<Stage> {
  const site = await startSourceSite();
  t.after(() => site.close());
  const target = await startMoverTarget({
    authority: site.authority,
    store: memoryStore(),
    diskBytes: images.map((image) => image.length),
  });
  t.after(() => target.close());
  const wan = await startWan(() => target.port);
  t.after(() => wan.close());
  const machines: Machine[] = [];
  for (const [index, image] of images.entries())
    machines.push(await site.addMachine(`machine-${index}`, [{ diskId: `disk-${index}`, image }]));
  for (const machine of machines) machine.startAgent();
  const members = machines.map((machine, index) => ({
    machine: machine.name,
    disks: [{ diskId: `disk-${index}`, source: machine.sources[0]! }],
  }));
  await site.processServer.putOrder({ signed: site.sign(testOrder("group", wan.port, members)) });
  await eventually("the first point", async () => (await target.points()).length > 0, 120_000);
  return { site, target, wan, machines };
}

/** The tap dies, and what it kept about the disk is gone: everything is compared. `change` is done to the image meanwhile. */
async function forgetTap({ site }: Stage, machine: Machine, change: () => void = () => undefined): Promise<void> {
  await machine.loseAgent();
  await machine.killTap();
  rmSync(join(site.folder, machine.name, "intent"), { recursive: true });
  change();
  machine.startAgent();
}

const state = ({ site }: Stage) => site.processServer.groupState({ groupId: "group" });

/** Until nothing is left to sweep. */
async function synced(made: Stage, count = 1): Promise<void> {
  await eventually(
    "all is swept",
    async () => {
      const { disks, state: now, sync } = await state(made);
      const tapped = disks.filter((disk) => disk.sizeBytes > 0);
      return (
        now === "live" &&
        sync === undefined &&
        tapped.length === count &&
        tapped.every((disk) => disk.unsyncedBytes === 0)
      );
    },
    120_000,
  );
}

async function lastPoint(made: Stage): Promise<readonly Buffer[]> {
  let cut: { readonly barrier: number } | undefined;
  await eventually(
    "a last point",
    async () => {
      try {
        const operationId = `cut-${randomBytes(4).toString("hex")}`;
        cut = await made.site.processServer.cutNow({ groupId: "group", operationId, timeoutMs: 20_000 });
      } catch (error) {
        if (!["NO_POINT", "TIMED_OUT"].includes((error as { code: string }).code)) throw error;
      }
      return cut !== undefined;
    },
    120_000,
  );
  const points = await made.target.points();
  const point = points.find((one) => one.barrier === cut?.barrier);
  assert.ok(point !== undefined, `point ${cut?.barrier} of ${points.map((one) => one.barrier).join(", ")}`);
  return made.target.read(point);
}

async function assertNewestIsSource(made: Stage): Promise<void> {
  for (const [index, image] of (await lastPoint(made)).entries())
    assert.ok(
      image.equals(readFileSync(made.machines[index]!.images[0]!)),
      `disk ${index}: the newest point is the source`,
    );
}

test(
  `after one block in a hundred has changed, a resync ships little more than those (seed ${seed})`,
  { timeout: 300_000 },
  async (t) => {
    const random = seededRandom(seed);
    const blocks = (256 << 20) / BLOCK_SIZE;
    const made = await stage(t, [randomBytes(blocks * BLOCK_SIZE)]);
    const machine = made.machines[0]!;
    const before = made.wan.bytes;
    assert.ok(before > blocks * BLOCK_SIZE, "the first sync ships everything");
    const changed = new Set<number>();
    while (changed.size < blocks / 100) changed.add(Math.floor(random() * blocks));
    await forgetTap(made, machine, () => {
      const descriptor = openSync(machine.images[0]!, "r+");
      for (const block of changed) writeSync(descriptor, randomBytes(BLOCK_SIZE), 0, BLOCK_SIZE, block * BLOCK_SIZE);
      closeSync(descriptor);
    });
    await assertNewestIsSource(made);
    const { compared } = await state(made);
    assert.deepEqual(
      compared,
      { comparedBytes: blocks * BLOCK_SIZE, sameBytes: (blocks - changed.size) * BLOCK_SIZE },
      "what was compared is told",
    );
    const shipped = made.wan.bytes - before;
    const different = changed.size * BLOCK_SIZE;
    t.diagnostic(`${shipped} bytes crossed the line for ${different} that differ: ${(shipped / different).toFixed(3)}`);
    assert.ok(shipped <= different * 1.15, `${shipped} bytes for ${different}`);
  },
);

test("a disk that is compared and the same ships nothing, and makes points again", { timeout: 180_000 }, async (t) => {
  const image = randomBytes(24 << 20);
  image.fill(0, 3 << 20, 11 << 20);
  const made = await stage(t, [image]);
  const before = await made.target.points();
  const shippedBefore = made.wan.bytes;
  await forgetTap(made, made.machines[0]!);
  await eventually("it is compared", async () => (await state(made)).compared !== undefined, 60_000);
  await synced(made);
  await assertNewestIsSource(made);
  const { compared } = await state(made);
  assert.deepEqual(compared, { comparedBytes: image.length, sameBytes: image.length });
  assert.deepEqual(
    (await made.target.points()).map((point) => point.id),
    before.map((point) => point.id),
    "the point of before stands for it",
  );
  assert.ok(made.wan.bytes - shippedBefore < 64 << 10, `${made.wan.bytes - shippedBefore} bytes crossed the line`);
});

test(
  "a tap that is killed costs what was written, not the regions that its intent names",
  { timeout: 180_000 },
  async (t) => {
    const random = seededRandom(seed);
    const blocks = (64 << 20) / BLOCK_SIZE;
    const made = await stage(t, [randomBytes(blocks * BLOCK_SIZE)]);
    const machine = made.machines[0]!;
    await synced(made);
    const [disk] = await machine.attach();
    const places = new Set<number>();
    while (places.size < 40) places.add(Math.floor(random() * blocks));
    const before = made.wan.bytes;
    const began = (await state(made)).compared;
    assert.equal(began, undefined, "an initial sync compares nothing");
    for (const block of places) await disk!.write(randomBytes(BLOCK_SIZE), block * BLOCK_SIZE, true);
    await machine.killTap();
    await eventually("it is compared", async () => (await state(made)).compared !== undefined, 60_000);
    await synced(made);
    await assertNewestIsSource(made);
    const shipped = made.wan.bytes - before;
    const { comparedBytes } = (await state(made)).compared!;
    t.diagnostic(
      `${comparedBytes} bytes compared, ${shipped} crossed the line for ${places.size * BLOCK_SIZE} written`,
    );
    assert.ok(comparedBytes > 4 << 20, "its regions were compared");
    // Twice: some were in the cut of a cycle that died with the tap.
    assert.ok(shipped < 2 * places.size * BLOCK_SIZE + (512 << 10), `${shipped} bytes`);
  },
);

test(
  `every point is a prefix while taps forget, lines are cut and roles are lost in the middle of comparing (seed ${seed})`,
  { timeout: 300_000 },
  async (t) => {
    const random = seededRandom(seed);
    const sectors = [8 * 5_001 + 5, 8 * 9_000];
    const history = createHistory(sectors, random);
    const made = await stage(t, [history.initial(0), history.initial(1)]);
    const disks = (await Promise.all(made.machines.map((machine) => machine.attach()))).flat();
    const losses: Record<string, () => Promise<void>> = {
      forget: () => forgetTap(made, made.machines[Math.floor(random() * 2)]!),
      tap: () => made.machines[1]!.killTap(),
      line: async () => made.wan.cut(),
      mover: () => made.target.restart(),
      async agent() {
        await made.machines[0]!.loseAgent();
        made.machines[0]!.startAgent();
      },
      async processServer() {
        await made.site.loseProcessServer();
        await made.site.startProcessServer();
      },
    };
    let compared = 0;
    const lose = async (): Promise<void> => {
      for (const what of ["forget", "line", "processServer", "forget", "tap", "agent", "forget", "mover"]) {
        await losses[what]!();
        // Sometimes the next comes while this one is being compared, sometimes after a few cuts.
        const until = Date.now() + (random() < 0.5 ? 200 + random() * 1_000 : 4_000);
        while (Date.now() < until) {
          compared = Math.max(compared, (await state(made)).compared?.comparedBytes ?? 0);
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      }
    };
    await history.run(disks, 4, lose());
    const last = await lastPoint(made);
    last.forEach((image, index) => {
      assert.ok(
        image.equals(readFileSync(made.machines[index]!.images[0]!)),
        `disk ${index}: the last point is the source`,
      );
    });
    const points = await made.target.points();
    for (const point of points)
      history.judge([...(await made.target.read(point))], { after: 0, before: Number.POSITIVE_INFINITY });
    t.diagnostic(`${points.length} points, ${history.changes} writes, up to ${compared} bytes compared in one sync`);
    assert.ok(compared > 0, "something was compared");
  },
);
