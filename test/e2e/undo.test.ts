/**
 * The way back of a running guest: a failover while its source runs on, an undo, replication goes on at the source, what ran at the other site is a
 * branch whose points can still be exported; then out again, for good.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import type { OperationState } from "../../src/api/contract.ts";
import { ledgerStatus, verifyLedger } from "../../src/demo/ledger.ts";
import { createGuestImages } from "../../src/embedded/guest.ts";
import { startSystem, until, type System } from "../support/system.ts";

const run = promisify(execFile);
const GROUP = "back";
const GUEST = { cpus: 1, memoryMiB: 160, firmware: "bios" } as const;
const FORWARDS = [{ guestPort: 8080, hostPort: 0 }];

test("a failover is undone and the source goes on; the next one is committed", { timeout: 900_000 }, async (t) => {
  const system = await startSystem(t);
  const { client, folder } = system;
  const images = await createGuestImages(join(folder, "images"));
  const files = [images.system, images.data];
  await client.protect({
    name: GROUP,
    disks: files.map((file) => `tap:${file}`),
    policy: { intervalMs: 2_000 },
    config: GUEST,
    forwards: FORWARDS,
  });
  const view = await until("the first point", 180_000, async () => {
    const group = await client.group(GROUP);
    return group.phase === "protected" && group.disks.every((disk) => disk.tapUrl !== undefined) && group;
  });
  const source = await client.createMachine("primary", {
    operationId: "source",
    name: GROUP,
    config: GUEST,
    disks: view.disks.map((disk, index) => ({
      diskId: disk.id,
      url: disk.tapUrl ?? "",
      ...(index === 0 ? { bootIndex: 1 } : {}),
    })),
    network: { mode: "isolated", forwards: FORWARDS },
    start: true,
  });
  const sourcePort = source.forwards[0]?.hostPort ?? 0;
  await until("the ledger at the source", 120_000, async () => (await ledgerStatus(sourcePort)).b > 20);
  await freshPoint(system);

  // The source runs on: both sides write, each its own history.
  const out = await ended(system, (await client.failover(GROUP, { mode: "unplanned", sourceLost: true })).operationId);
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
    await ended(system, drill.operationId);
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

  await t.test("out again, and committed: an undo is refused from then on", async () => {
    const { operationId } = await client.failover(GROUP, { mode: "planned" });
    const operation = await ended(system, operationId);
    const home = operation.machines?.[0]?.forwards[0]?.hostPort ?? 0;
    const verdict = await until("the ledger at the target", 120_000, () => verifyLedger(home));
    assert.ok(verdict.whole);
    const committed = await system.leeward("commit", GROUP, "--yes", "--json");
    assert.equal(committed.code, 0, committed.stderr);
    assert.equal((JSON.parse(committed.stdout) as { phase: string }).phase, "committed");
    const refused = await system.leeward("undo", GROUP, "--yes");
    assert.equal(refused.code, 3, refused.stderr);
    assert.match(refused.stderr, /committed/);
    assert.ok((await pointsOn(system, branch)).length > 0, "a commit deletes nothing");
  });
});

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

async function ended({ client }: System, operationId: string): Promise<OperationState> {
  const operation = await until(`the end of ${operationId}`, 240_000, async () => {
    const state = await client.operation(operationId, { waitMs: 1_000 });
    // Its steps are what a person needs to see if this never ends.
    if (state.state === "running") throw new Error(JSON.stringify(state));
    return state;
  });
  assert.equal(operation.state, "done", JSON.stringify(operation));
  return operation;
}
