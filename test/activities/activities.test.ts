import assert from "node:assert/strict";
import { test } from "node:test";
import { ApplicationFailure, CancelledFailure } from "@temporalio/common";
import { faultOfFailure } from "#model/failure.ts";
import { Fault } from "#model/fault.ts";
import type { WatchInput } from "../../src/activities/contract.ts";
import { runActivity } from "../support/activity-context.ts";
import { createFakeSites, SOURCE, TARGET, type FakeSites } from "../support/fake-sites.ts";

const MACHINE = {
  site: TARGET,
  operationId: "op",
  name: "web",
  config: { cpus: 1, memoryMiB: 128, firmware: "bios" },
  disks: [],
  network: { mode: "isolated", forwards: [] },
} as const;

async function prepared(): Promise<FakeSites> {
  const sites = createFakeSites({ groupId: "web" });
  const { activities } = sites;
  await runActivity(activities.prepareGroup, {
    site: TARGET,
    groupId: "web",
    operationId: "p",
    groupName: "web",
    sourceSite: SOURCE,
    disks: [],
    record: "{}",
  }).result;
  await runActivity(activities.putOrder, { order: order(1) }).result;
  sites.world.syncRemainingBytes = 0;
  return sites;
}

function order(version: number) {
  return {
    groupId: "web",
    groupName: "web",
    version,
    state: "active",
    branch: "root",
    groupEpoch: 1,
    sourceSite: SOURCE,
    target: { site: TARGET, host: "h", port: 1 },
    intervalMs: 1_000,
    compressAt: "agent",
    members: [],
  } as const;
}

const watch = (more: Partial<WatchInput> = {}): WatchInput => ({
  site: TARGET,
  groupId: "web",
  cursor: "",
  windowMs: 400,
  known: { state: "live", connected: true, faultCode: "", rpoBreached: false },
  rpoThresholdMs: 15_000,
  until: "window",
  ...more,
});

test("a fault leaves with its code, its hint, and whether another try can help", async () => {
  const sites = await prepared();
  sites.fail({
    method: "masterTarget.fence",
    at: 1,
    times: 1,
    when: "before",
    fault: new Fault("STORE_DENIED", "No access", { hint: "Look at the credentials", details: { bucket: "leeward" } }),
  });
  sites.fail({
    method: "masterTarget.fence",
    at: 2,
    times: 1,
    when: "before",
    fault: new Fault("STORE_UNAVAILABLE", "Not now"),
  });
  const fence = async (): Promise<unknown> =>
    await runActivity(sites.activities.fence, { site: TARGET, groupId: "web", operationId: "f", activeSite: TARGET })
      .result;
  await assert.rejects(fence(), (error) => {
    assert.ok(error instanceof ApplicationFailure);
    assert.equal(error.type, "STORE_DENIED");
    assert.equal(error.nonRetryable, true);
    assert.deepEqual(faultOfFailure(error)?.toJSON(), {
      code: "STORE_DENIED",
      message: "No access",
      hint: "Look at the credentials",
      details: { bucket: "leeward" },
    });
    return true;
  });
  await assert.rejects(fence(), (error) => error instanceof ApplicationFailure && error.nonRetryable === false);
});

test("each activity that changes something leaves the same world and answer when it runs twice", async () => {
  const sites = await prepared();
  const { activities } = sites;
  await runActivity(activities.watchGroup, watch({ windowMs: 150 })).result;
  const { barrier } = sites.world.barriers.at(-1)!;
  sites.world.orders[SOURCE] = { ...sites.world.order!, state: "paused" }; // Nothing is cut meanwhile.
  const twice: Readonly<Record<string, () => Promise<unknown>>> = {
    prepareGroup: async () =>
      await runActivity(activities.prepareGroup, {
        site: TARGET,
        groupId: "web",
        operationId: "p",
        groupName: "web",
        sourceSite: SOURCE,
        disks: [],
        record: "{}",
      }).result,
    putOrder: async () => await runActivity(activities.putOrder, { order: order(2) }).result,
    cutNow: async () =>
      await runActivity(activities.cutNow, { site: SOURCE, groupId: "web", operationId: "c", timeoutMs: 1_000 }).result,
    bookmark: async () =>
      await runActivity(activities.bookmark, { site: TARGET, groupId: "web", operationId: "b", barrier, name: "good" })
        .result,
    fence: async () =>
      await runActivity(activities.fence, { site: TARGET, groupId: "web", operationId: "f", activeSite: TARGET })
        .result,
    openExport: async () =>
      await runActivity(activities.openExport, {
        site: TARGET,
        groupId: "web",
        operationId: "op",
        point: "latest",
        mode: "throw-away",
      }).result,
    createMachine: async () => await runActivity(activities.createMachine, MACHINE).result,
    startMachine: async () =>
      withoutTimes(await runActivity(activities.startMachine, { site: TARGET, machineId: "op-web" }).result),
    shutdownMachines: async () =>
      await runActivity(activities.shutdownMachines, { site: SOURCE, machineIds: ["source-web"], timeoutMs: 10 })
        .result,
    stopMachines: async () =>
      await runActivity(activities.stopMachines, { site: TARGET, operationId: "op", timeoutMs: 10 }).result,
    closeExport: async () =>
      await runActivity(activities.closeExport, { site: TARGET, operationId: "op", discard: false }).result,
    giveBack: async () =>
      await runActivity(activities.fence, {
        site: TARGET,
        groupId: "web",
        operationId: "g",
        activeSite: SOURCE,
        resume: "root",
      }).result,
    startMachines: async () =>
      await runActivity(activities.startMachines, { site: SOURCE, machineIds: ["source-web"] }).result,
    destroyMachine: async () =>
      await runActivity(activities.destroyMachine, { site: TARGET, machineId: "op-web" }).result,
    removeOperation: async () =>
      await runActivity(activities.removeOperation, { site: TARGET, operationId: "op", discard: true }).result,
    releaseGroup: async () =>
      await runActivity(activities.releaseGroup, { site: TARGET, groupId: "web", operationId: "u" }).result,
  };
  for (const [name, run] of Object.entries(twice)) {
    const answer = await run();
    const world = JSON.stringify(withoutTimes(sites.world));
    assert.deepEqual(await run(), answer, name);
    assert.equal(JSON.stringify(withoutTimes(sites.world)), world, name);
  }
  assert.deepEqual(sites.leftovers(), []);
});

test("a guest that does not shut down is powered off; only machines that the hypervisor says are off count as stopped", async () => {
  const sites = await prepared();
  const { activities, world } = sites;
  await runActivity(activities.createMachine, MACHINE).result;
  await runActivity(activities.startMachine, { site: TARGET, machineId: "op-web" }).result;
  sites.stubborn.add("web");
  const stop = async () =>
    await runActivity(activities.stopMachines, { site: TARGET, operationId: "op", timeoutMs: 10 }).result;
  assert.deepEqual(await stop(), { forced: ["web"] });
  assert.equal(world.machines["op-web"]?.power, "off");
  assert.deepEqual(await stop(), { forced: [] });
  world.machines["op-web"] = { ...world.machines["op-web"]!, power: "paused" };
  sites.fail({
    method: "hypervisor.powerOff",
    at: 1,
    times: 9,
    when: "before",
    fault: new Fault("HYPERVISOR_UNAVAILABLE", "It hangs"),
  });
  await assert.rejects(stop());
});

test("the newest point is looked for along one line of history, a point by id or name wherever it is", async () => {
  const { activities, world } = await prepared();
  world.barriers = [
    { barrier: 1, cutAtMs: 1_000, branch: "root", from: SOURCE },
    { barrier: 2, cutAtMs: 2_000, branch: "root", from: SOURCE },
    { barrier: 3, cutAtMs: 3_000, branch: "x", from: SOURCE, name: "kept" },
  ];
  world.forks = { x: { parent: "root", barrier: 1 } };
  const choose = async (selector: string, branch?: string) =>
    (
      await runActivity(activities.choosePoint, {
        site: TARGET,
        groupId: "web",
        selector,
        ...(branch === undefined ? {} : { branch }),
      }).result
    ).barrier;
  assert.equal(await choose("latest"), 3);
  assert.equal(await choose("latest", "root"), 2);
  assert.equal(await choose("1970-01-01T00:00:02.500Z", "x"), 1);
  assert.equal(await choose("@kept", "root"), 3);
  assert.equal(await choose("0000000003000-0000000000000003", "root"), 3);
  await assert.rejects(choose("1970-01-01T00:00:00.500Z", "root"));
});

test("a window counts barriers, beats with the last one, and ends at its time", async () => {
  const sites = await prepared();
  const run = runActivity(sites.activities.watchGroup, watch());
  const result = await run.result;
  assert.equal(result.endedBy, "window");
  assert.ok(result.barriers >= 2);
  assert.equal((run.heartbeats.at(-1) as { readonly barrier: number }).barrier, result.progress?.barrier);
});

test("a window ends early when the connection, the state or the lag is not what the workflow knows", async () => {
  const sites = await prepared();
  assert.equal(
    (
      await runActivity(
        sites.activities.watchGroup,
        watch({ windowMs: 60_000, known: { ...watch().known, connected: false } }),
      ).result
    ).endedBy,
    "changed",
  );
  sites.loseSource(true);
  assert.equal((await runActivity(sites.activities.watchGroup, watch({ windowMs: 60_000 })).result).endedBy, "changed");
  const late = await runActivity(
    sites.activities.watchGroup,
    watch({ windowMs: 60_000, rpoThresholdMs: 1, known: { ...watch().known, connected: false } }),
  ).result;
  assert.equal(late.endedBy, "changed");
});

test("a sync is watched until its first point", async () => {
  const sites = await prepared();
  sites.world.syncRemainingBytes = 1 << 26;
  sites.world.barriers = [];
  const result = await runActivity(
    sites.activities.watchGroup,
    watch({ windowMs: 60_000, until: "point", known: { ...watch().known, state: "seeding" } }),
  ).result;
  assert.equal(result.endedBy, "point");
  assert.equal(result.progress?.disks[0]?.syncRemainingBytes, 0);
});

test("a target that cannot be asked is reported after seconds, one that does not know the group at once", async () => {
  const sites = await prepared();
  sites.fail({
    method: "masterTarget.observeGroup",
    at: 1,
    times: 100,
    when: "before",
    fault: new Fault("PEER_UNREACHABLE", "Not connected"),
  });
  const result = await runActivity(sites.activities.watchGroup, watch({ windowMs: 60_000 })).result;
  assert.equal(result.endedBy, "unreachable");
  assert.equal(result.fault?.code, "PEER_UNREACHABLE");
  const other = createFakeSites({ groupId: "web" });
  const begun = performance.now();
  assert.equal(
    (await runActivity(other.activities.watchGroup, watch({ windowMs: 60_000 })).result).fault?.code,
    "NOT_FOUND",
  );
  assert.ok(performance.now() - begun < 1_000);
});

test("a cancelled window ends at once", async () => {
  const sites = await prepared();
  const run = runActivity(sites.activities.watchGroup, watch({ windowMs: 60_000 }));
  setTimeout(() => run.cancel(), 50);
  await assert.rejects(run.result, CancelledFailure);
});

test("taps that do not come up name the disks and the last fault", async () => {
  const sites = await prepared();
  sites.loseSource(true);
  await assert.rejects(
    runActivity(sites.activities.awaitTaps, { site: SOURCE, groupId: "web", diskIds: ["web-0"], timeoutMs: 300 })
      .result,
    (error) => {
      const fault = faultOfFailure(error);
      assert.equal(fault?.code, "AGENT_UNREACHABLE");
      assert.match(fault.message, /"web-0"/);
      assert.match(fault.message, /PEER_UNREACHABLE/);
      return true;
    },
  );
});

test("machines are found by name; what the hypervisor does not know is unknown, not off", async () => {
  const sites = await prepared();
  assert.deepEqual(
    await runActivity(sites.activities.findMachines, { site: SOURCE, names: ["web", "printer"] }).result,
    [
      { name: "web", machineId: "source-web", power: "running" },
      { name: "printer", power: "unknown" },
    ],
  );
});

function withoutTimes(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value, (key, inner: unknown) => (key === "startedAtMs" ? 0 : inner)));
}

test("disks are moved until all are there, a window at a time; what may pass is asked past, what a person must do leaves", async () => {
  const sites = await prepared();
  const { activities } = sites;
  const disks = ["system", "data"].map((diskId) => ({ diskId, url: `nbd+unix:///${diskId}?socket=/old` }));
  const { id: machineId } = await runActivity(activities.createMachine, { ...MACHINE, disks }).result;
  const to = disks.map(({ diskId }) => ({ diskId, url: `nbd+unix:///${diskId}?socket=/new`, sizeBytes: 4096 }));
  const input = { site: TARGET, operationId: "op", disks: to, windowMs: 0 };
  const refused = await runActivity(activities.moveDisks, input).result.catch((error: unknown) =>
    faultOfFailure(error),
  );
  assert.equal((refused as Fault).code, "REFUSED", "it is off");

  await runActivity(activities.startMachine, { site: TARGET, machineId }).result;
  assert.deepEqual(await runActivity(activities.moveDisks, input).result, {
    done: false,
    copiedBytes: 0,
    totalBytes: 8192,
  });
  assert.equal((await runActivity(activities.moveDisks, input).result).copiedBytes, 2048, "it goes on");
  const fault = new Fault("PEER_UNREACHABLE", "Not now");
  sites.fail({ method: "hypervisor.moveDisk", at: 2, times: 3, when: "before", fault });
  const run = runActivity(activities.moveDisks, { ...input, windowMs: 60_000 });
  assert.deepEqual(await run.result, { done: true, copiedBytes: 8192, totalBytes: 8192 });
  assert.ok(run.heartbeats.length >= 3);
  assert.deepEqual(
    sites.world.machines[machineId]?.disks,
    to.map(({ diskId, url }) => ({ diskId, url })),
  );
  assert.equal((await runActivity(activities.moveDisks, input).result).done, true, "again is done");

  const unknown = { ...input, disks: [{ ...to[0]!, diskId: "other" }] };
  const failure = await runActivity(activities.moveDisks, unknown).result.catch((error: unknown) =>
    faultOfFailure(error),
  );
  assert.equal((failure as Fault).code, "NOT_FOUND");
});
