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
import { seededRandom } from "../capture/seeded-random.ts";
import { startMoverTarget, type MoverTarget } from "../support/mover-target.ts";
import { eventually, startSourceSite, testOrder, type Machine, type SourceSite } from "../support/source-site.ts";
import { startWan, type Wan } from "../support/wan.ts";

const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));

interface Stage {
  readonly site: SourceSite;
  readonly target: MoverTarget;
  readonly wan: Wan;
  readonly machine: Machine;
}

/** One machine with one disk that holds `image`, protected, with its first point made. */
async function stage(t: TestContext, image: Buffer, options: { readonly delayMs?: number } = {}): Promise<Stage> {
  const site = await startSourceSite();
  t.after(() => site.close());
  const target = await startMoverTarget({
    authority: site.authority,
    store: memoryStore(),
    diskBytes: [image.length],
  });
  t.after(() => target.close());
  const wan = await startWan(() => target.port, options.delayMs);
  t.after(() => wan.close());
  const machine = await site.addMachine("machine-0", [{ diskId: "disk-0", image }]);
  machine.startAgent();
  const members = [{ machine: machine.name, disks: [{ diskId: "disk-0", source: machine.sources[0]! }] }];
  await site.processServer.putOrder({ signed: site.sign(testOrder("group", wan.port, members)) });
  const made = { site, target, wan, machine };
  await eventually("the first point", async () => (await target.points()).length > 0, 120_000);
  return made;
}

/** The tap dies, and what it kept about the disk is gone: everything is compared. `change` is done to the image meanwhile. */
async function forgetTap({ site, machine }: Stage, change: () => void): Promise<void> {
  await machine.loseAgent();
  await machine.killTap();
  rmSync(join(site.folder, machine.name, "intent"), { recursive: true });
  change();
  machine.startAgent();
}

async function cutNow({ site }: Stage, timeoutMs = 120_000): Promise<{ readonly barrier: number }> {
  let cut: { readonly barrier: number } | undefined;
  await eventually(
    "a point after the resync",
    async () => {
      try {
        const operationId = `cut-${randomBytes(4).toString("hex")}`;
        cut = await site.processServer.cutNow({ groupId: "group", operationId, timeoutMs: 20_000 });
      } catch (error) {
        if (!["NO_POINT", "TIMED_OUT"].includes((error as { code: string }).code)) throw error;
      }
      return cut !== undefined;
    },
    timeoutMs,
  );
  return cut!;
}

async function assertNewestIsSource(made: Stage): Promise<void> {
  const { barrier } = await cutNow(made);
  const points = await made.target.points();
  const point = points.find((one) => one.barrier === barrier);
  assert.ok(point !== undefined, `point ${barrier} of ${points.map((one) => one.barrier).join(", ")}`);
  const [image] = await made.target.read(point);
  assert.ok(image!.equals(readFileSync(made.machine.images[0]!)), "the newest point is the source");
}

test(
  `after one block in a hundred has changed, a resync ships little more than those (seed ${seed})`,
  { timeout: 300_000 },
  async (t) => {
    const random = seededRandom(seed);
    const blocks = (256 << 20) / BLOCK_SIZE;
    const made = await stage(t, randomBytes(blocks * BLOCK_SIZE));
    const before = made.wan.bytes;
    assert.ok(before > blocks * BLOCK_SIZE, "the first sync ships everything");
    const changed = new Set<number>();
    while (changed.size < blocks / 100) changed.add(Math.floor(random() * blocks));
    await forgetTap(made, () => {
      const descriptor = openSync(made.machine.images[0]!, "r+");
      for (const block of changed) writeSync(descriptor, randomBytes(BLOCK_SIZE), 0, BLOCK_SIZE, block * BLOCK_SIZE);
      closeSync(descriptor);
    });
    await assertNewestIsSource(made);
    const shipped = made.wan.bytes - before;
    const different = changed.size * BLOCK_SIZE;
    t.diagnostic(`${shipped} bytes crossed the line for ${different} that differ: ${(shipped / different).toFixed(3)}`);
    assert.ok(shipped <= different * 1.15, `${shipped} bytes for ${different}`);
  },
);
