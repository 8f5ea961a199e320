import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Fault } from "#model/fault.ts";
import type { OperationState } from "../../src/workflows/messages.ts";
import { SOURCE, TARGET, type FakeSites } from "../support/fake-sites.ts";
import { openHarness, type Harness } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

const LOST = { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true } as const;
const PLANNED = { operationId: "f1", mode: "planned", point: "latest", sourceLost: false } as const;
const UNPLANNED = { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: false } as const;

const stepsOf = (operation: OperationState): readonly string[] =>
  operation.steps.map((step) => `${step.name}: ${step.state}`);
const sourceMachine = (sites: FakeSites): string | undefined => sites.world.machines["source-web"]?.power;

test("the site is lost: fence, newest point, disks, machines, and the group runs at the other site", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.loseSource(true);
  await group.until("seen", (state) => state.health.some((reason) => reason.code === "SOURCE_DISCONNECTED"));
  const newest = group.sites.world.barriers.at(-1)!.barrier;
  const begun = performance.now();
  const started = await group.update("failover", LOST);
  assert.deepEqual(started, { operationId: "f1", workflowId: `group/${group.groupId}/failover/f1`, epoch: 2 });
  assert.ok(performance.now() - begun < 3_000, "it answers at once");
  const operation = await group.ended("f1");
  assert.deepEqual(operation.fault, undefined);
  assert.deepEqual(stepsOf(operation), [
    "pre-check: done",
    "guard: done",
    "stop source: done",
    "fence: done",
    "choose point: done",
    "open disks: done",
    "create machines: done",
    "start machines: done",
    "verify: done",
  ]);
  assert.equal(operation.pointId?.endsWith(newest.toString(16).padStart(16, "0")), true);
  assert.deepEqual(
    operation.machines?.map(({ name, site }) => ({ name, site })),
    [{ name: "web", site: TARGET }],
  );
  const state = await group.until("failed over", (one) => one.phase === "failed-over" && one.replica !== undefined);
  assert.equal(state.activeSite, TARGET);
  assert.equal(state.epoch, 2);
  assert.equal(state.branch, "branch-f1");
  assert.equal(group.sites.world.claims.activeSite, TARGET);
  assert.equal(group.sites.world.order?.state, "stopped");
  assert.equal(group.sites.world.machines["f1-web"]?.power, "running");
  assert.equal(group.sites.world.machines["f1-web"]?.network.mode, "user");
  // The fence comes before any point is looked at.
  const { calls } = group.sites;
  assert.ok(calls.indexOf("masterTarget.fence") < calls.indexOf("masterTarget.listPoints"));
  // The same command again is the same operation, whatever the phase is by now; another one is refused.
  assert.deepEqual(await group.update("failover", LOST), started);
  assert.equal((await group.refused(group.update("failover", { ...LOST, operationId: "f2" }))).code, "REFUSED");
  await assert.doesNotReject(
    harness.temporal.client.workflow.getHandle(`group/${group.groupId}/failover/f1/janitor`).result(),
  );
  assert.equal(group.sites.world.machines["f1-web"]?.power, "running");
});

test("planned: the machine is off before the final cut, the point holds it, and nothing is lost", async () => {
  const group = await harness.world();
  await group.protected();
  await group.update("failover", PLANNED);
  const operation = await group.ended("f1");
  assert.deepEqual(operation.fault, undefined);
  const { world, calls } = group.sites;
  assert.ok(calls.indexOf("hypervisor.shutdown") < calls.indexOf("processServer.cutNow"));
  assert.ok(calls.indexOf("processServer.cutNow") < calls.indexOf("masterTarget.fence"));
  assert.equal(sourceMachine(group.sites), "off");
  assert.ok(Number.parseInt(operation.pointId!.slice(14), 16) >= world.cuts["f1-cut"]!.barrier);
  assert.equal(world.machines["f1-web"]?.power, "running");
  const state = await group.state();
  assert.equal(state.phase, "failed-over");
  assert.deepEqual(state.conditions, []);
});

test("a source that is not connected needs a person's word, before anything happens", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.loseSource(true);
  await group.until("seen", (state) => state.health.length > 0);
  for (const request of [UNPLANNED, PLANNED]) {
    const fault = await group.refused(group.update("failover", request));
    assert.equal(fault.code, "REFUSED");
    assert.match(fault.hint ?? "", /--source-lost/);
  }
  assert.ok(!group.sites.calls.includes("masterTarget.fence"));
});

test("a source that fell silent just now is found out before the first step", async () => {
  const group = await harness.world();
  await group.protected({ windowMs: 60_000, answerMs: 1_000 });
  group.sites.fail({
    method: "processServer.groupState",
    at: 1,
    times: 100,
    when: "before",
    fault: new Fault("PEER_UNREACHABLE", "Not connected"),
  });
  await group.update("failover", UNPLANNED);
  const operation = await group.ended("f1");
  assert.equal(operation.fault?.code, "SOURCE_UNREACHABLE");
  assert.match(operation.fault?.hint ?? "", /--source-lost/);
  assert.ok(!group.sites.calls.includes("masterTarget.fence"));
  const state = await group.state();
  assert.equal(state.phase, "protected");
  assert.equal(state.epoch, 1);
  await group.until("replicating", () => group.sites.world.order?.state === "active");
});

test("a guest that does not shut down ends a planned failover, and is left running", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.stubborn.add("web");
  await group.update("failover", PLANNED);
  const operation = await group.ended("f1");
  assert.equal(operation.fault?.code, "TIMED_OUT");
  assert.equal(sourceMachine(group.sites), "running");
  assert.equal((await group.state()).phase, "protected");
  assert.deepEqual(group.sites.leftovers(), []);
});

test("unplanned with a reachable source: it is told to stop and shut down beside the fence", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.stubborn.add("web");
  await group.update("failover", UNPLANNED);
  assert.equal((await group.ended("f1")).state, "done");
  const state = await group.state();
  assert.deepEqual(state.conditions, ["SourceMayRun"]);
  assert.equal(group.sites.world.order?.state, "stopped");
  assert.equal(group.sites.world.machines["f1-web"]?.power, "running");
});

test("a point can be chosen by bookmark; one that is not there is named, and everything is undone", async () => {
  const group = await harness.world();
  await group.protected();
  const point = await group.update("bookmark", { operationId: "b", name: "good" });
  await group.update("failover", { ...UNPLANNED, operationId: "f0", point: "@bad" });
  const failed = await group.ended("f0");
  assert.equal(failed.fault?.code, "POINT_NOT_FOUND");
  const back = await group.until(
    "replicating again",
    (state) => state.phase === "protected" && state.progress?.state === "live" && state.health.length === 0,
  );
  assert.equal(back.epoch, 3);
  assert.equal(sourceMachine(group.sites), "running");
  await group.update("failover", { ...UNPLANNED, point: "@good" });
  assert.equal((await group.ended("f1")).pointId, point.id);
});

test("one member that does not start leaves the others up, and the group says so", async () => {
  const group = await harness.world({ machineNames: ["web", "db"] });
  await group.protected();
  group.sites.loseSource(true);
  // Not retryable here, or the test would wait for the whole budget of a start.
  group.sites.fail({
    method: "hypervisor.start",
    at: 1,
    times: 1,
    when: "before",
    fault: new Fault("VERIFICATION_FAILED", "No boot device"),
  });
  await group.update("failover", LOST);
  const operation = await group.ended("f1");
  assert.equal(operation.state, "done");
  assert.equal(operation.machines?.length, 1);
  const state = await group.state();
  assert.equal(state.phase, "failed-over");
  assert.ok(state.health.some((reason) => reason.code === "MEMBER_NOT_STARTED"));
});

test("a published port that is taken is replaced by a free one", async () => {
  const group = await harness.world();
  await group.protect({
    machines: group
      .request()
      .machines.map((machine) => ({ ...machine, forwards: [{ guestPort: 80, hostPort: 8080 }] })),
  });
  await group.until("protected", (state) => state.phase === "protected");
  group.sites.loseSource(true);
  group.sites.fail({
    method: "hypervisor.start",
    at: 1,
    times: 1,
    when: "before",
    fault: new Fault("PORT_IN_USE", "Port 8080 is taken"),
  });
  await group.update("failover", LOST);
  const operation = await group.ended("f1");
  assert.equal(operation.state, "done");
  assert.notEqual(operation.machines?.[0]?.forwards[0]?.hostPort, 8080);
});

test("lost source, and the failover fails after the fence: the source stays out until a person decides", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.loseSource(true);
  group.sites.fail({
    method: "masterTarget.openExport",
    at: 1,
    times: 1,
    when: "before",
    fault: new Fault("KEY_MISSING", "No key for disk web-0"),
  });
  await group.update("failover", LOST);
  const operation = await group.ended("f1");
  assert.equal(operation.fault?.code, "KEY_MISSING");
  const state = await group.state();
  assert.equal(state.phase, "protected");
  assert.deepEqual(state.conditions, ["SourceFenced"]);
  assert.equal(state.healthLevel, "critical");
  assert.deepEqual(state.allowedOperations, ["resume", "failover", "test-failover", "unprotect"]);
  assert.deepEqual(group.sites.leftovers(), []);
  // Either it is repeated, or the source comes back and gets the replica back.
  group.sites.loseSource(false);
  await group.update("resume", { operationId: "r" });
  await group.until(
    "replicating",
    (one) => one.conditions.length === 0 && one.progress?.state === "live" && one.health.length === 0,
  );
  assert.equal(group.sites.world.claims.activeSite, SOURCE);
  await group.update("failover", { ...PLANNED, operationId: "f2" });
  assert.equal((await group.ended("f2")).state, "done");
});

/** Every call that changes something fails once; the reply of it is lost; it fails for good. */
for (const [mode, request] of [
  ["planned", PLANNED],
  ["lost", LOST],
] as const) {
  test(`${mode}: whichever reply is lost, the call is repeated and the failover ends as if nothing had happened`, async () => {
    const group = await harness.world({ machineNames: ["web", "db"] });
    await group.protected();
    if (mode === "lost") group.sites.loseSource(true);
    group.sites.loseFirstReplies();
    await group.update("failover", request);
    const operation = await group.ended("f1", 60_000);
    assert.deepEqual(operation.fault, undefined);
    assert.equal((await group.state()).phase, "failed-over");
    assert.deepEqual(group.sites.leftovers().toSorted(), ["export f1", "machine f1-db", "machine f1-web"]);
    assert.equal(group.sites.world.claims.epoch, 2);
  });
}

test("planned: fail every step in turn; the world is clean again and replication goes on, or the failover stands", async () => {
  for (let n = 1; ; n += 1) {
    const group = await harness.world();
    await group.protected({ windowMs: 500, answerMs: 500 });
    const before = changing(group.sites).length;
    group.sites.fail({ at: n, times: 1, when: "before", fault: new Fault("OPERATION_FAILED", `Step ${n} fails`) });
    await group.update("failover", PLANNED);
    const operation = await group.ended("f1");
    const made = changing(group.sites).slice(before);
    if (operation.state === "done") {
      assert.ok(n > 5, `only ${n} steps were tried`);
      assert.deepEqual(group.sites.leftovers(), ["export f1", "machine f1-web"]);
      return;
    }
    const where = `step ${n}: ${made.join(", ")}`;
    assert.equal(operation.fault?.message, `Step ${n} fails`, where);
    assert.deepEqual(group.sites.leftovers(), [], where);
    assert.equal(sourceMachine(group.sites), "running", where);
    assert.equal(group.sites.world.claims.activeSite, SOURCE, where);
    const state = await group.until(
      `replicating after ${where}`,
      (one) =>
        one.phase === "protected" &&
        one.progress?.state === "live" &&
        group.sites.world.order?.state === "active" &&
        one.health.length === 0,
    );
    assert.equal(state.epoch, group.sites.world.claims.epoch, where);
    const barrier = group.sites.world.barriers.at(-1)!.barrier;
    await group.until("new points", () => group.sites.world.barriers.at(-1)!.barrier > barrier);
  }
});

test("a failover that is cancelled before the boot is undone", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.fail({
    method: "masterTarget.openExport",
    at: 1,
    times: 1_000,
    when: "before",
    fault: new Fault("STORE_UNAVAILABLE", "Not now"),
  });
  const { workflowId } = await group.update("failover", UNPLANNED);
  await group.until("opening", () => group.sites.calls.includes("masterTarget.openExport"));
  await harness.temporal.client.workflow.getHandle(workflowId).cancel();
  const operation = await group.ended("f1");
  assert.equal(operation.state, "cancelled");
  assert.equal(operation.fault?.code, "INTERRUPTED");
  assert.deepEqual(group.sites.leftovers(), []);
  assert.equal(group.sites.world.claims.activeSite, SOURCE);
  assert.equal((await group.state()).phase, "protected");
});

test("a failover that is terminated is cleaned up by its janitor, and the group can fail over again", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.loseSource(true);
  group.sites.fail({
    method: "hypervisor.createMachine",
    at: 1,
    times: 3,
    when: "after",
    fault: new Fault("HYPERVISOR_UNAVAILABLE", "Not now"),
  });
  const { workflowId } = await group.update("failover", LOST);
  await group.until("creating", () => group.sites.calls.includes("hypervisor.createMachine"));
  await harness.temporal.client.workflow.getHandle(workflowId).terminate("by a test");
  const operation = await group.ended("f1");
  assert.equal(operation.fault?.code, "INTERRUPTED");
  const state = await group.state();
  assert.equal(state.phase, "protected");
  assert.deepEqual(state.conditions, ["SourceFenced"]);
  await group.until("cleaned", () => group.sites.leftovers().length === 0);
  await group.update("failover", { ...LOST, operationId: "f2" });
  assert.equal((await group.ended("f2")).state, "done");
});

test("the disks are opened again and the machines started again when the target comes back without them", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.loseSource(true);
  await group.update("failover", LOST);
  await group.ended("f1");
  const { world } = group.sites;
  world.exports["f1"]!.open = false;
  world.machines["f1-web"] = { ...world.machines["f1-web"]!, power: "off" };
  await group.until(
    "running again",
    (state) =>
      world.machines["f1-web"]?.power === "running" &&
      world.exports["f1"]!.open &&
      !state.health.some((reason) => reason.level === "critical"),
    20_000,
  );
});

function changing(sites: FakeSites): readonly string[] {
  const looking = [
    "masterTarget.observeGroup",
    "masterTarget.listPoints",
    "masterTarget.exportStatus",
    "masterTarget.listExports",
    "processServer.groupState",
    "processServer.listAgents",
    "hypervisor.inspect",
    "hypervisor.list",
  ];
  return sites.calls.filter((call) => !looking.includes(call));
}
