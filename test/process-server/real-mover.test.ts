/**
 * The whole way, from the writes of two machines to the points in a store: real taps, agents, process server and mover, over a store that loses
 * requests and replies. Every point that the store lists at the end is judged. LEEWARD_SEED repeats a run.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { faultyStore } from "../../src/adapters/faulty/faulty-store.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { fenceGroup } from "../../src/data-mover/group-fence.ts";
import { createHistory, SECTOR } from "../capture/write-history.ts";
import { seededRandom } from "../capture/seeded-random.ts";
import { startMoverTarget } from "../support/mover-target.ts";
import { eventually, startSourceSite, testOrder } from "../support/source-site.ts";

const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));
const SECTORS = [8 * 3_001 + 5, 8 * 2_000];
const DISKS = ["disk-0", "disk-1"];

test(
  `every point in the store is a prefix, whatever was lost on the way; then a failover fences us (seed ${seed})`,
  { timeout: 240_000 },
  async (t) => {
    const random = seededRandom(seed);
    const history = createHistory(SECTORS, random);
    const site = await startSourceSite();
    t.after(() => site.close());

    let faults = false;
    const store = faultyStore(memoryStore(), {
      create: () =>
        faults && random() < 0.05
          ? (["lost-request", "lost-reply", "late", "doubled"] as const)[Math.floor(random() * 4)]!
          : "pass",
      fails: () => faults && random() < 0.01,
    });
    const target = await startMoverTarget({
      authority: site.authority,
      store,
      diskBytes: SECTORS.map((sectors) => sectors * SECTOR),
    });
    t.after(() => target.close());

    const machines = [
      await site.addMachine("machine-0", [{ diskId: "disk-0", image: history.initial(0) }]),
      await site.addMachine("machine-1", [{ diskId: "disk-1", image: history.initial(1) }]),
    ];
    for (const machine of machines) machine.startAgent();
    const members = machines.map((machine, index) => ({
      machine: machine.name,
      disks: [{ diskId: DISKS[index]!, source: machine.sources[0]! }],
    }));
    await site.processServer.putOrder({ signed: site.sign(testOrder("group", target.port, members)) });
    await eventually(
      "the disks are tapped",
      async () => (await site.processServer.listAgents({})).filter((agent) => agent.disks.length === 1).length === 2,
    );
    const disks = (await Promise.all(machines.map((machine) => machine.attach()))).flat();

    await eventually("the first point", async () => (await target.points()).length > 0, 40_000);
    faults = true;
    const losses: Record<string, () => Promise<void>> = {
      mover: () => target.restart(),
      processServer: async () => {
        await site.loseProcessServer();
        await site.startProcessServer();
      },
      agent: async () => {
        await machines[0]!.loseAgent();
        machines[0]!.startAgent();
      },
      tap: () => machines[1]!.killTap(),
    };
    const lose = async (): Promise<void> => {
      for (const what of ["mover", "processServer", "agent", "tap", "mover"]) {
        const before = await site.processServer.groupState({ groupId: "group" });
        await eventually(
          "cuts go on",
          async () => (await site.processServer.groupState({ groupId: "group" })).lastCutAtMs > before.lastCutAtMs,
          40_000,
        );
        await new Promise((resolve) => setTimeout(resolve, random() * 800));
        await losses[what]!();
      }
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    };
    await history.run(disks, 5, lose());
    faults = false;

    await eventually(
      "a last point",
      async () => {
        try {
          await site.processServer.cutNow({ groupId: "group", operationId: `last-${random()}`, timeoutMs: 5_000 });
          return true;
        } catch {
          return false; // Sweeping still, or the stream is being opened again.
        }
      },
      60_000,
    );
    const points = await target.points();
    for (const point of points) {
      const images = await target.read(point);
      history.judge(images, { after: 0, before: Number.POSITIVE_INFINITY });
      if (point === points.at(-1))
        images.forEach((image, index) =>
          assert.ok(
            image.equals(readFileSync(machines[index]!.images[0]!)),
            `disk ${index}: the last point is the source`,
          ),
        );
    }
    t.diagnostic(`${points.length} points, ${history.changes} writes`);

    const fenced = await fenceGroup((await target.reader()).group, {
      operation: "failover",
      activeSite: "secondary",
      disks: DISKS,
      holder: "test",
    });
    assert.ok(fenced.groupEpoch > 1);
    await disks[0]!.write(Buffer.alloc(SECTOR, 0x77), 0, false);
    await eventually(
      "the group is fenced",
      async () => (await site.processServer.groupState({ groupId: "group" })).state === "fenced",
      40_000,
    );
  },
);
