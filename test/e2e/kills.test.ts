/** kill -9 of each process while a machine writes: the run goes on, nothing that was a point is missing, and the replica ends up equal. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { assertReplicaEqual, numberedImage, startSystem, startWriter, until } from "../support/system.ts";

const MIB = 1 << 20;
const SIZES = [96 * MIB, 32 * MIB];

const VICTIMS = [
  ["primary", "process-server"],
  ["primary", "agent"],
  ["primary", "tap"],
  ["primary", "redis"],
  ["secondary", "data-mover"],
  ["secondary", "master-target"],
  ["secondary", "s3"],
  ["secondary", "redis"],
  ["secondary", "worker"],
  ["secondary", "temporal"],
  ["secondary", "control"],
] as const;

const RECOVERY_SITE = ["worker", "master-target", "data-mover", "s3", "redis", "temporal", "control"] as const;

test(
  "every process may be killed at any moment of seeding and replication, and nothing is lost",
  { timeout: 600_000 },
  async (t) => {
    const system = await startSystem(t);
    const images = SIZES.map((_, index) => join(system.folder, `disk${index}.img`));
    for (const [index, image] of images.entries()) await numberedImage(image, SIZES[index] ?? 0, index);
    const { client } = system;
    await client.protect({
      name: "kills",
      disks: images.map((image) => `tap:${image}`),
      policy: { intervalMs: 1_000 },
    });
    const taps = await until("taps", 30_000, async () => {
      const { disks } = await client.group("kills");
      return (
        disks.length === 2 && disks.every((disk) => disk.tapUrl !== undefined) && disks.map((disk) => disk.tapUrl ?? "")
      );
    });
    const writer = startWriter(t, taps, system.folder);

    await t.test("while seeding", async () => {
      for (const [site, name] of VICTIMS) {
        await sleep(100 + Math.random() * 500);
        system.kill(site, name); // Perhaps it is down already: another's death took it along.
      }
      await until("the first point", 120_000, async () => (await client.group("kills")).phase === "protected");
    });

    for (const [site, name] of VICTIMS) {
      await t.test(`${site}/${name}`, async () => {
        const before = await client.points("kills");
        await sleep(Math.random() * 1_200);
        const killedAtMs = Date.now();
        assert.ok(system.kill(site, name) > 0, "there was nothing to kill");
        await until(
          "a point that was cut after the kill",
          60_000,
          async () => ((await client.group("kills")).newestPoint?.cutAtMs ?? 0) > killedAtMs + 500,
        );
        const after = new Set((await client.points("kills")).map((point) => point.id));
        const missing = before.filter((point) => !after.has(point.id));
        assert.deepEqual(
          missing.map((point) => point.id),
          [],
          "points that were there before the kill",
        );
      });
    }

    await t.test("the newest point equals the disks once they rest", async () => {
      await writer.stop();
      const restedAtMs = Date.now();
      await until("a point of the rested disks", 60_000, async () => {
        const group = await client.group("kills");
        return (group.rpoMs ?? Number.MAX_SAFE_INTEGER) < Date.now() - restedAtMs - 500 && group.backlogBytes === 0;
      });
      await assertReplicaEqual(system, "kills", images);
    });
  },
);

test(
  "a failover goes on when any process of the recovery site is killed in the middle of it",
  { timeout: 600_000 },
  async (t) => {
    const system = await startSystem(t);
    const { client } = system;
    for (const name of RECOVERY_SITE) {
      await t.test(name, async () => {
        const image = join(system.folder, `${name}.img`);
        await numberedImage(image, 8 * MIB, name.length);
        await client.protect({ name, disks: [`tap:${image}`], policy: { intervalMs: 1_000 } });
        const before = await until("a point", 60_000, async () => {
          const view = await client.group(name);
          return view.phase === "protected" ? view : undefined;
        });
        const { operationId } = await client.failover(name, { mode: "unplanned", sourceLost: true });
        await sleep(Math.random() * 1_500);
        assert.ok(system.kill("secondary", name) > 0, "there was nothing to kill");
        const operation = await until("the end of the failover", 240_000, async () => {
          const state = await client.operation(operationId);
          // Its steps are what a person needs to see if this never ends.
          if (state.state === "running") throw new Error(JSON.stringify(state));
          return state;
        });
        assert.equal(operation.state, "done", JSON.stringify(operation.fault ?? operation.steps));
        const view = await until("the group", 30_000, async () => client.group(name));
        assert.equal(view.activeSite, "secondary");
        assert.equal(view.epoch, before.epoch + 1, "one failover takes one epoch, however often its steps were tried");
        const all = await until("the hypervisor", 30_000, () => client.machines("secondary"));
        const machines = all.filter((machine) => machine.operationId === operationId);
        assert.deepEqual(
          machines.map((machine) => machine.power),
          ["running"],
        );
        await client.powerOffMachine("secondary", machines[0]?.id ?? "");
      });
    }
  },
);

test(
  "a test failover and its clean-up go on when any process of the recovery site is killed in the middle of them",
  { timeout: 600_000 },
  async (t) => {
    const system = await startSystem(t);
    const { client } = system;
    const image = join(system.folder, "disk.img");
    await numberedImage(image, 8 * MIB, 3);
    await client.protect({ name: "tested", disks: [`tap:${image}`], policy: { intervalMs: 1_000 } });
    await until("a point", 60_000, async () => (await client.group("tested")).phase === "protected");
    for (const name of RECOVERY_SITE) {
      await t.test(name, async () => {
        const { operationId } = await until("the order to be taken", 60_000, () =>
          client.startTestFailover("tested", { point: "latest", leaseMs: 600_000 }),
        );
        await sleep(Math.random() * 1_500);
        assert.ok(system.kill("secondary", name) > 0, "there was nothing to kill");
        await until("the test's machine", 120_000, async () => {
          const operation = await client.operation(operationId);
          assert.equal(operation.state, "running", JSON.stringify(operation));
          return (operation.machines ?? []).length === 1;
        });
        await until("the clean-up to be ordered", 60_000, () => client.cleanUpTestFailover("tested", operationId));
        await sleep(Math.random() * 300);
        assert.ok(system.kill("secondary", name) > 0, "there was nothing to kill");
        const operation = await until("the end of the clean-up", 120_000, async () => {
          const state = await client.operation(operationId);
          if (state.state === "running") throw new Error(JSON.stringify(state));
          return state;
        });
        assert.equal(operation.state, "done", JSON.stringify(operation));
        const left = await until("the hypervisor", 30_000, () => client.machines("secondary"));
        assert.deepEqual(
          left.filter((machine) => machine.operationId === operationId),
          [],
        );
        await until("the group to be as before", 30_000, async () => {
          const view = await client.group("tested");
          return view.phase === "protected" && !view.conditions.some((condition) => condition.startsWith("Test"));
        });
      });
    }
  },
);
