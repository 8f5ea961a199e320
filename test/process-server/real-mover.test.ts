/**
 * The whole way, from the writes of two machines to the points in a store: real taps, agents, process server and mover, over a store that loses
 * requests and replies. Every point that the store lists at the end is judged. LEEWARD_SEED repeats a run.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { faultyStore } from "../../src/adapters/faulty/faulty-store.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import type { StoreContext } from "../../src/data-mover/disk-context.ts";
import { createDisk } from "../../src/data-mover/disk-moves.ts";
import { claimGroupEpoch, fenceGroup } from "../../src/data-mover/group-fence.ts";
import { openImage } from "../../src/data-mover/image.ts";
import { ensureStoreRecord, openMoverStore } from "../../src/data-mover/mover-store.ts";
import { listPoints } from "../../src/data-mover/points.ts";
import { startReceiver, type Receiver } from "../../src/data-mover/receiver.ts";
import { createHistory, SECTOR } from "../capture/write-history.ts";
import { seededRandom } from "../capture/seeded-random.ts";
import { eventually, startSourceSite, testLog, testOrder } from "../support/source-site.ts";

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
    const context: StoreContext = {
      store,
      root: "site",
      clock: systemClock,
      random: systemRandom,
      retry: { attempts: 6, firstMs: 10, mostMs: 100 },
    };
    await ensureStoreRecord(context);
    const keys = (diskId: string): Uint8Array => new Uint8Array(32).fill(diskId.charCodeAt(5));
    const shapes = DISKS.map((diskId, index) => ({ diskId, sizeBytes: SECTORS[index]! * SECTOR, sectorBytes: 512 }));
    const target = openMoverStore(context, { keys });
    for (const shape of shapes) await target.openDisk(shape, { create: true });
    const group = await target.group("group", DISKS);
    await claimGroupEpoch(group, {
      operation: "prepare",
      activeSite: "primary",
      disks: DISKS,
      holder: "test",
      branch: "root",
    });
    for (const diskId of DISKS)
      await createDisk(group.disk(diskId), {
        operation: "prepare",
        groupEpoch: 1,
        activeSite: "primary",
        holder: "test",
      });

    /** Another process: it knows what the store says now, keys too. */
    const reader = async () => {
      const fresh = openMoverStore(context, { keys });
      const opened = await Promise.all(shapes.map((shape) => fresh.openDisk(shape)));
      return { opened, group: await fresh.group("group", DISKS) };
    };

    const link = await site.authority.link("secondary", "master-target", "mt");
    let port = 0;
    let receiver: Receiver | undefined;
    const startMover = async (): Promise<void> => {
      receiver = await startReceiver({
        link,
        listen: { host: "127.0.0.1", port },
        store: openMoverStore(context, { keys }),
        log: testLog.child({ role: "mover" }),
        onProgress: () => undefined,
      });
      port = receiver.address.port;
      receiver.putGroup({ groupId: "group", sourceSite: "primary", disks: shapes });
    };
    await startMover();
    t.after(() => receiver?.close());

    const machines = [
      await site.addMachine("machine-0", [{ diskId: "disk-0", image: history.initial(0) }]),
      await site.addMachine("machine-1", [{ diskId: "disk-1", image: history.initial(1) }]),
    ];
    for (const machine of machines) machine.startAgent();
    const members = machines.map((machine, index) => ({
      machine: machine.name,
      disks: [{ diskId: DISKS[index]!, source: machine.sources[0]! }],
    }));
    await site.processServer.putOrder({ signed: site.sign(testOrder("group", port, members)) });
    await eventually(
      "the disks are tapped",
      async () => (await site.processServer.listAgents({})).filter((agent) => agent.disks.length === 1).length === 2,
    );
    const disks = (await Promise.all(machines.map((machine) => machine.attach()))).flat();

    const pointsNow = async (): Promise<number> => (await listPoints((await reader()).group)).length;
    await eventually("the first point", async () => (await pointsNow()) > 0, 40_000);
    faults = true;
    const losses: Record<string, () => Promise<void>> = {
      mover: async () => {
        await receiver!.close();
        await startMover();
      },
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
    const now = await reader();
    const points = (await listPoints(now.group)).toSorted((a, b) => a.barrier - b.barrier);
    for (const point of points) {
      const images = await Promise.all(
        DISKS.map(async (diskId, index) => {
          const member = point.members.find((one) => one.diskId === diskId)!;
          const disk = now.opened[index]!;
          const image = await openImage(disk.context, { ...member, keyring: disk.keyring, storeId: disk.storeId });
          const bytes = Buffer.alloc(image.sizeBytes);
          await image.read(bytes, 0);
          return bytes;
        }),
      );
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

    const fenced = await fenceGroup(now.group, {
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
