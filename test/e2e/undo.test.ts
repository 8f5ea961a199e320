/**
 * The way back of a running guest: a failover while its source runs on, an undo, replication goes on at the source, what ran at the other site is a
 * branch whose points can still be exported; then out again, for good.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import type { OperationState } from "../../src/api/contract.ts";
import { ledgerStatus, verifyLedger } from "../../src/demo/ledger.ts";
import { ended, GUEST, startProtectedGuest } from "../support/protected-guest.ts";
import { numberedImage, startSystem, until, type System } from "../support/system.ts";

const run = promisify(execFile);
const GROUP = "back";

test("a failover is undone and the source goes on; the next one is committed", { timeout: 900_000 }, async (t) => {
  const system = await startSystem(t);
  const { client, folder } = system;
  const {
    files,
    view,
    source,
    port: sourcePort,
  } = await startProtectedGuest(system, { name: GROUP, intervalMs: 2_000 });
  await freshPoint(system);

  // The source runs on: both sides write, each its own history.
  const out = await ended(client, (await client.failover(GROUP, { mode: "unplanned", sourceLost: true })).operationId);
  const port = out.machines?.[0]?.forwards[0]?.hostPort ?? 0;
  const booted = await until("the ledger at the target", 120_000, () => ledgerStatus(port));
  await until("writes at the target", 60_000, async () => (await ledgerStatus(port)).b > booted.b + 10);
  const branch = (await client.group(GROUP)).branch;
  assert.notEqual(branch, "root");
  await until("a point of the branch", 60_000, async () => (await pointsOn(system, branch)).length > 0);

  await t.test("undo: nothing of it runs at the target, and its last writes are a point of the branch", async () => {
    const before = await ledgerStatus(port);
    const answer = await system.leeward("undo", GROUP, "--yes", "--json");
    assert.equal(answer.code, 0, answer.stderr);
    assert.match(answer.stderr, new RegExp(`sets aside .*, as branch ${branch}`));
    const operation = JSON.parse(answer.stdout) as OperationState;
    assert.deepEqual(
      operation.steps.map((step) => step.state).filter((state) => state !== "done"),
      [],
    );
    assert.deepEqual(
      (await client.machines("secondary")).map((machine) => machine.id),
      [],
    );
    const group = await client.group(GROUP);
    assert.deepEqual([group.phase, group.activeSite, group.branch], ["protected", "primary", "root"]);

    // The branch's newest point boots, in a test failover of nothing but what the replica wrote.
    const [newest] = await pointsOn(system, branch);
    assert.ok(newest !== undefined);
    const drill = await client.startTestFailover(GROUP, { point: newest.id, leaseMs: 600_000 });
    const up = await until("the branch's point, booted", 180_000, async () => {
      const state = await client.operation(drill.operationId);
      return state.steps.some((step) => step.name === "lease" && step.state === "running") && state;
    });
    const drillPort = up.machines?.[0]?.forwards[0]?.hostPort ?? 0;
    const verdict = await until("the ledger of the branch", 120_000, () => verifyLedger(drillPort));
    assert.ok(verdict.foundAtBoot[0] >= before.b, `record ${before.b} was there before the undo`);
    assert.ok(verdict.whole);
    await client.cleanUpTestFailover(GROUP, drill.operationId);
    await ended(client, drill.operationId);
  });

  await t.test("replication goes on at the source, and the newest point is what the source wrote", async () => {
    const now = await ledgerStatus(sourcePort);
    await freshPoint(system);
    await until("writes at the source", 60_000, async () => (await ledgerStatus(sourcePort)).b > now.b + 5);
    await client.shutdownMachine("primary", source.id, { timeoutMs: 60_000 });
    await freshPoint(system);
    const { newestPoint } = await client.group(GROUP);
    assert.ok(newestPoint?.members.every((member) => member.branch === "root"));
    assert.ok((await pointsOn(system, branch)).length > 0, "what was set aside is still listed");
    const opened = await client.openExport(GROUP, { point: "latest" });
    for (const [index, disk] of view.disks.entries()) {
      const copy = join(folder, "copy.img");
      await run("nbdcopy", [opened.disks.find((one) => one.diskId === disk.id)?.url ?? "", copy]);
      await run("cmp", [copy, files[index] ?? ""]);
      await rm(copy);
    }
    await client.closeExport(opened.operationId);
  });

  await t.test("out again, and on from another point", async () => {
    const { operationId } = await client.failover(GROUP, { mode: "planned" });
    const operation = await ended(client, operationId);
    const verdict = await until("the ledger at the target", 120_000, () =>
      verifyLedger(operation.machines?.[0]?.forwards[0]?.hostPort ?? 0),
    );
    assert.ok(verdict.whole);
    const older = (await client.points(GROUP)).findLast((point) => point.members[0]?.branch === "root");
    const changed = await system.leeward("change-point", GROUP, "--point", older?.id ?? "", "--yes", "--json");
    assert.equal(changed.code, 0, changed.stderr);
    const { machines, pointId } = JSON.parse(changed.stdout) as OperationState;
    assert.equal(pointId, older?.id);
    const earlier = await until("the ledger at the other point", 120_000, () =>
      verifyLedger(machines?.[0]?.forwards[0]?.hostPort ?? 0),
    );
    assert.ok(earlier.whole);
    assert.ok(earlier.foundAtBoot[0] < verdict.foundAtBoot[0], "an older state");
    assert.deepEqual(
      (await client.machines("secondary")).map(({ id, power }) => [id, power]),
      [[machines?.[0]?.machineId, "running"]],
    );
  });

  await t.test("committed: an undo is refused from then on", async () => {
    const committed = await system.leeward("commit", GROUP, "--yes", "--json");
    assert.equal(committed.code, 0, committed.stderr);
    assert.equal((JSON.parse(committed.stdout) as { phase: string }).phase, "committed");
    const refused = await system.leeward("undo", GROUP, "--yes");
    assert.equal(refused.code, 3, refused.stderr);
    assert.match(refused.stderr, /committed/);
    assert.ok((await pointsOn(system, branch)).length > 0, "a commit deletes nothing");
  });
});

test(
  "a lost site gets nothing back; switched on again it does, and its machine is started",
  { timeout: 400_000 },
  async (t) => {
    const system = await startSystem(t);
    const { client, folder } = system;
    const image = join(folder, "disk.img");
    await numberedImage(image, 16 << 20, 3);
    await client.protect({ name: GROUP, disks: [`tap:${image}`], policy: { intervalMs: 1_000 } });
    const view = await until("the first point", 60_000, async () => {
      const group = await client.group(GROUP);
      return group.phase === "protected" && group.disks.every((disk) => disk.tapUrl !== undefined) && group;
    });
    const [disk] = view.disks;
    const source = await client.createMachine("primary", {
      operationId: "source",
      name: "named-otherwise", // Found by the tap that its disk is attached to.
      config: GUEST,
      disks: [{ diskId: disk?.id ?? "", url: disk?.tapUrl ?? "", bootIndex: 1 }],
      network: { mode: "isolated", forwards: [] },
      start: true,
    });
    const lost = await system.leeward("site", "lose", "primary", "--yes");
    assert.equal(lost.code, 0, lost.stderr);
    const { operationId } = await client.failover(GROUP, { mode: "unplanned", sourceLost: true });
    const [machine] = (await ended(client, operationId)).machines ?? [];
    // There is nothing to boot, so nobody hears the request to shut down: off at once saves the wait.
    await client.powerOffMachine("secondary", machine?.machineId ?? "");
    const impossible = await system.leeward("undo", GROUP, "--yes");
    assert.equal(impossible.code, 3, impossible.stderr);
    assert.match(impossible.stderr, /does not answer/);
    assert.equal((await client.group(GROUP)).phase, "failed-over");

    const switchedOn = await system.leeward("site", "start", "primary");
    assert.equal(switchedOn.code, 0, switchedOn.stderr);
    const undone = await until("a source that answers", 120_000, () => client.undo(GROUP));
    const operation = await ended(client, undone.operationId);
    const there = (await client.machines("primary")).find(({ id }) => id === source.id);
    assert.equal(there?.power, "running", JSON.stringify(operation.steps));
    await freshPoint(system);
  },
);

test(
  "an undo goes on when any process of the recovery site is killed in the middle of it",
  { timeout: 900_000 },
  async (t) => {
    const system = await startSystem(t);
    const { client } = system;
    for (const name of ["worker", "master-target", "s3", "redis", "temporal", "control"]) {
      await t.test(name, async () => {
        const image = join(system.folder, `${name}.img`);
        await numberedImage(image, 8 << 20, name.length);
        await client.protect({ name, disks: [`tap:${image}`], policy: { intervalMs: 1_000 } });
        const isProtected = async () => {
          const view = await client.group(name);
          return view.phase === "protected" && view.rpoMs !== null && view;
        };
        const before = await until("a point", 60_000, isProtected);
        await ended(client, (await client.failover(name, { mode: "unplanned", sourceLost: true })).operationId);
        // There is nothing to boot on these disks, so nobody hears the request to shut down: off at once saves the wait.
        const [machine] = await until("the hypervisor", 30_000, () => client.machines("secondary"));
        await client.powerOffMachine("secondary", machine?.id ?? "");
        const { operationId } = await client.undo(name);
        await sleep(Math.random() * 1_500);
        assert.ok(system.kill("secondary", name) > 0, "there was nothing to kill");
        await ended(client, operationId);
        // The master target, and with it the hypervisor, may have been killed when the undo had just ended.
        const left = await until("the hypervisor", 30_000, () => client.machines("secondary"));
        assert.deepEqual(left, [], "an orphan at the target");
        const undoneAtMs = Date.now();
        const after = await until("a point after the undo", 90_000, async () => {
          const view = await isProtected();
          return view && Date.now() - (view.rpoMs ?? 0) > undoneAtMs && view;
        });
        assert.deepEqual([after.activeSite, after.branch, after.epoch], ["primary", "root", before.epoch + 2]);
      });
    }
  },
);

/** Wait until the replica is known to equal the source as of some moment from now on. */
async function freshPoint({ client }: System): Promise<void> {
  const nowMs = Date.now();
  await until("a new point", 90_000, async () => {
    const group = await client.group(GROUP);
    return group.rpoMs !== null && Date.now() - group.rpoMs > nowMs;
  });
}

async function pointsOn({ client }: System, branch: string) {
  return (await client.points(GROUP)).filter((point) => point.members.some((member) => member.branch === branch));
}
