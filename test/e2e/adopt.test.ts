/**
 * The control plane is gone: Temporal's database, Redis and control's whole folder, with every process of the recovery site killed. From the bucket
 * and the recovery key it comes back, and protection goes on without a new full copy.
 */
import assert from "node:assert/strict";
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import type { ApiClient } from "../../src/api/contract.ts";
import { createApiClient } from "../../src/api/client.ts";
import type { AdoptAnswer, StoreAnswer } from "../../src/cli/context.ts";
import { apiAccess } from "../../src/embedded/installation.ts";
import { siteFolder } from "../../src/embedded/layout.ts";
import { ended } from "../support/protected-guest.ts";
import { assertReplicaEqual, numberedImage, startSystem, startWriter, until } from "../support/system.ts";

const MIB = 1 << 20;
const SIZE = 96 * MIB;

test(
  "control, Temporal and Redis are lost with all they knew, and the groups come back from the bucket",
  { timeout: 600_000 },
  async (t) => {
    const system = await startSystem(t);
    const { state, folder } = system;
    const secondary = siteFolder(state, "secondary");
    const store = join(secondary, "master-target", "config.json");
    let { client } = system;

    const image = join(folder, "kept.img");
    await numberedImage(image, SIZE, 1);
    await client.protect({
      name: "kept",
      disks: [`tap:${image}`],
      policy: { intervalMs: 1_000, rpoThresholdMs: 20_000 },
    });
    const movedImage = join(folder, "moved.img");
    await numberedImage(movedImage, 16 * MIB, 2);
    await client.protect({ name: "moved", disks: [`tap:${movedImage}`], policy: { intervalMs: 1_000 } });
    for (const name of ["kept", "moved"])
      await until(`a point of ${name}`, 120_000, async () => (await client.group(name)).phase === "protected");
    await client.bookmark("kept", "before");
    const { operationId } = await client.failover("moved", { mode: "unplanned", sourceLost: true });
    const failover = await ended(client, operationId);
    const tapUrl = (await client.group("kept")).disks[0]?.tapUrl ?? "";
    const writer = startWriter(t, [tapUrl], folder);
    await freshPoint(client, "kept");
    const before = { kept: await client.group("kept"), moved: await client.group("moved") };
    const pointsBefore = await client.points("kept");
    const lostControl = join(folder, "lost-control");

    await t.test("everything that it knew is destroyed; only control's folder had the keys", async () => {
      assert.equal((await system.leeward("site", "lose", "secondary", "--yes")).code, 0);
      cpSync(join(secondary, "control"), lostControl, { recursive: true });
      for (const name of ["control", "temporal", "redis", "worker"]) {
        assert.ok(existsSync(join(secondary, name)), name);
        if (name === "worker") rmSync(join(secondary, name, "bundles"), { recursive: true, force: true });
        else rmSync(join(secondary, name), { recursive: true });
      }
      await system.leeward("site", "start", "secondary");
    });

    await t.test("a dry run says what would come back, and changes nothing", async () => {
      const answer = await until("the store", 60_000, async () => {
        const tried = await system.leeward("control", "adopt", store, "--dry-run", "--json");
        return tried.code === 0 && (JSON.parse(tried.stdout) as AdoptAnswer);
      });
      assert.deepEqual([answer.controlEpoch, answer.keys, answer.former?.controlEpoch], [2, "unsealed", 1]);
      assert.deepEqual(
        answer.groups.map(({ group, phase, activeSite }) => [group, phase, activeSite]),
        [
          ["kept", "protected", "primary"],
          ["moved", "failed-over", "secondary"],
        ],
      );
      assert.ok(answer.groups.every(({ newestPoint }) => newestPoint !== undefined));
      assert.equal(existsSync(join(secondary, "control", "control.json")), false);
      const status = await system.leeward("status", "--store", store, "--json");
      assert.equal((JSON.parse(status.stdout) as StoreAnswer).groups.length, 2);
    });

    await t.test("without the right recovery key nothing is adopted", async () => {
      const wrong = join(folder, "wrong-key");
      writeFileSync(wrong, `leeward-recovery-${Buffer.alloc(32, 7).toString("base64url")}\n`);
      const refused = await system.leeward("control", "adopt", store, "--yes", "--recovery-key", wrong);
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /KEY_REJECTED/);
      const missing = await system.leeward(
        "control",
        "adopt",
        store,
        "--yes",
        "--recovery-key",
        join(folder, "nothing"),
      );
      assert.match(missing.stderr, /KEY_MISSING/);
    });

    await t.test("adopted, the groups are back", async () => {
      const answer = await system.leeward("control", "adopt", store, "--yes", "--json");
      assert.equal(answer.code, 0, answer.stderr);
      const { controlEpoch, adoption } = JSON.parse(answer.stdout) as AdoptAnswer;
      assert.equal(controlEpoch, 2);
      assert.deepEqual(
        adoption?.groups.map(({ group, outcome }) => [group, outcome]),
        [
          ["kept", "rebuilt"],
          ["moved", "rebuilt"],
        ],
      );
      client = createApiClient(apiAccess(state));
      const kept = await until("the group", 60_000, () => client.group("kept"));
      assert.deepEqual([kept.phase, kept.epoch, kept.branch], ["protected", before.kept.epoch, "root"]);
      assert.deepEqual(kept.disks, before.kept.disks);
      const ids = (await until("points", 60_000, () => client.points("kept"))).map(({ id }) => id);
      assert.deepEqual(
        pointsBefore.filter(({ id }) => !ids.includes(id)),
        [],
      );
      assert.ok((await client.points("kept")).some(({ name }) => name === "before"));
    });

    await t.test("replication goes on, and nothing is copied anew", async () => {
      await freshPoint(client, "kept");
      const view = await client.group("kept");
      assert.deepEqual([view.syncRemainingBytes, view.syncTotalBytes], [0, 0]);
      // The mover counts from its start. What the writer has changed meanwhile is there, a full copy would be all of it.
      assert.ok(view.shippedBytes < SIZE / 2, `${view.shippedBytes} bytes were shipped`);
      assert.ok(await writer.stop());
      await freshPoint(client, "kept");
      await assertReplicaEqual({ ...system, client }, "kept", [image]);
    });

    await t.test("the machine that ran at the recovery site is started again, on its own disks", async () => {
      const moved = await until("the machine", 120_000, async () => {
        const view = await client.group("moved");
        const [machine] = await client.machines("secondary");
        return machine?.power === "running" && machine.operationId === operationId && view;
      });
      assert.deepEqual([moved.phase, moved.branch], ["failed-over", before.moved.branch]);
      assert.equal((await client.machines("secondary"))[0]?.id, failover.machines?.[0]?.machineId);
      await client.powerOffMachine("secondary", failover.machines?.[0]?.machineId ?? "");
      const undone = await until("a source that answers", 60_000, () => client.undo("moved"));
      await ended(client, undone.operationId);
      await freshPoint(client, "moved");
    });

    await t.test("a second adoption changes nothing", async () => {
      const answer = await system.leeward("control", "adopt", store, "--yes", "--json");
      assert.equal(answer.code, 0, answer.stderr);
      const { controlEpoch, already, adoption } = JSON.parse(answer.stdout) as AdoptAnswer;
      assert.deepEqual([controlEpoch, already], [2, true]);
      assert.deepEqual(
        adoption?.groups.map(({ outcome }) => outcome),
        ["there", "there"],
      );
    });

    await t.test("a failover works", async () => {
      const { operationId: second } = await until("an accepted failover", 60_000, () =>
        client.failover("kept", { mode: "unplanned", sourceLost: true }),
      );
      await ended(client, second);
      assert.equal((await client.group("kept")).phase, "failed-over");
    });

    await t.test(
      "the old control that comes back is told that it is not the one any more, until a person makes it so",
      async () => {
        const folderNow = join(secondary, "control");
        rmSync(folderNow, { recursive: true });
        cpSync(lostControl, folderNow, { recursive: true });
        system.kill("secondary", "control");
        client = createApiClient(apiAccess(state));
        const problem = await until("the fault", 60_000, async () =>
          (await client.status()).problems.find(({ code }) => code === "CONTROL_SUPERSEDED"),
        );
        assert.match(problem.message, /epoch 2/);
        const refused = await system.leeward("group", "protect", "more", "--disk", `tap:${movedImage}.2`);
        assert.notEqual(refused.code, 0);
        // The site's master target may still be on its way to this control.
        await until("the refusal", 60_000, async () => {
          try {
            await client.openExport("moved", {});
          } catch (error) {
            return isFault(error, "CONTROL_SUPERSEDED");
          }
          throw new Error("An old control opened an export");
        });

        const again = await system.leeward("control", "adopt", store, "--yes", "--json");
        assert.equal(again.code, 0, again.stderr);
        const { controlEpoch, keys } = JSON.parse(again.stdout) as AdoptAnswer;
        assert.deepEqual([controlEpoch, keys], [3, "kept"]);
        await freshPoint(client, "moved");
      },
    );
  },
);

/** Wait until the replica is known to equal the source as of some moment from now on. */
async function freshPoint(client: ApiClient, name: string): Promise<void> {
  const nowMs = Date.now();
  await until(`a new point of ${name}`, 120_000, async () => {
    const group = await client.group(name);
    if (group.rpoMs === null || Date.now() - group.rpoMs <= nowMs) throw new Error(JSON.stringify(group));
    return true;
  });
}

test(
  "control's state and the recovery key are lost: new keys, every role enrolled again, and no new full copy",
  { timeout: 600_000 },
  async (t) => {
    const system = await startSystem(t);
    const { state, folder } = system;
    const secondary = siteFolder(state, "secondary");
    const store = join(secondary, "master-target", "config.json");
    const image = join(folder, "disk.img");
    await numberedImage(image, SIZE, 3);
    await system.client.protect({ name: "web", disks: [`tap:${image}`], policy: { intervalMs: 1_000 } });
    await until("a point", 120_000, async () => (await system.client.group("web")).phase === "protected");
    const points = await system.client.points("web");
    assert.equal((await system.leeward("down")).code, 0);
    for (const name of ["control", "temporal", "redis"])
      rmSync(join(secondary, name), { recursive: true, force: true });
    rmSync(join(state, "recovery-key"));

    const up = await system.leeward("up", "--detach", "--json");
    assert.equal(up.code, 0, up.stderr);
    assert.match(readFileSync(join(state, "up.log"), "utf8"), /Control has lost its state[^]*leeward control adopt/);
    const refused = await system.leeward("control", "adopt", store, "--yes");
    assert.match(refused.stderr, /KEY_REJECTED/); // Made anew by the new control, and not what sealed the copy.
    const adopted = await system.leeward(
      "control",
      "adopt",
      store,
      "--yes",
      "--new-ca",
      "--recovery-key",
      "/nowhere",
      "--json",
    );
    assert.equal(adopted.code, 0, adopted.stderr);
    assert.equal((JSON.parse(adopted.stdout) as AdoptAnswer).keys, "new");
    assert.equal((await system.leeward("down")).code, 0);
    const again = await system.leeward("up", "--detach", "--json");
    assert.equal(again.code, 0, again.stderr);

    const client = createApiClient(apiAccess(state));
    await freshPoint(client, "web");
    const view = await client.group("web");
    assert.deepEqual([view.phase, view.syncTotalBytes], ["protected", 0]);
    assert.ok(view.shippedBytes < SIZE / 2, `${view.shippedBytes} bytes were shipped`);
    const ids = (await client.points("web")).map(({ id }) => id);
    assert.deepEqual(
      points.filter(({ id }) => !ids.includes(id)),
      [],
    );
    await assertReplicaEqual({ ...system, client }, "web", [image]);
  },
);
