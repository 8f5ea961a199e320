import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Fault } from "#model/fault.ts";
import type { GroupState } from "../../src/workflows/messages.ts";
import { AGENT, SOURCE, TARGET, type FakeSites } from "../support/fake-sites.ts";
import { openHarness, type Harness, type TestGroup } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

const SHORT = { windowMs: 500, answerMs: 500 } as const;

/** Protected, failed over with its site lost, committed; the site is back, and its machines are off. */
async function committed(options: { readonly machineNames?: readonly string[] } = {}): Promise<TestGroup> {
  const group = await harness.world(options);
  await group.protected(SHORT);
  await group.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  assert.equal((await group.ended("f1")).state, "done");
  await group.update("commit", { operationId: "c1" });
  switchOff(group.sites);
  await group.until("watched", (state) => state.replica !== undefined);
  return group;
}

/** The fire has ended what ran at the source. */
function switchOff({ world }: FakeSites): void {
  for (const [id, machine] of Object.entries(world.machines))
    if (machine.operationId === "source") world.machines[id] = { ...machine, power: "off" };
}

const home = ({ stores }: FakeSites) => stores[SOURCE]!;

/** Replicating to home, with a point of what runs at the other site. */
async function reversed(group: TestGroup, what: string): Promise<GroupState> {
  const state = await group.until(
    `reversed: ${what}`,
    (one) => one.phase === "protected" && one.sourceSite === TARGET && one.health.length === 0,
  );
  await group.until(`points of it: ${what}`, () => home(group.sites).barriers.at(-1)?.from === TARGET);
  return state;
}

/** As a reprotect that was not carried through must leave it: the machines run, nothing is ordered, and nobody receives anything. */
async function assertCommitted(group: TestGroup, where: string): Promise<GroupState> {
  const { world } = group.sites;
  const state = await group.until("as before", (one) => !one.conditions.includes("Reprotecting"));
  assert.equal(state.phase, "committed", where);
  assert.deepEqual([state.sourceSite, state.targetSite, state.activeSite], [SOURCE, TARGET, TARGET], where);
  assert.equal(world.machines["f1-web"]?.power, "running", where);
  assert.equal(world.exports["f1"]?.open, true, where);
  assert.equal(world.claims.activeSite, TARGET, where);
  await group.until("nothing is ordered", () =>
    [SOURCE, TARGET].every((site) => (world.orders[site]?.state ?? "stopped") === "stopped"),
  );
  await group.until("the target is released", () => !home(group.sites).prepared || home(group.sites).released);
  return state;
}

test("reprotect: the old disks first, then what runs now; the group is protected the other way round and keeps what only the old disks had", async () => {
  const group = await committed();
  const { world, calls } = group.sites;
  const before = calls.length;
  const epoch = (await group.state()).epoch;
  const started = await group.update("reprotect", { operationId: "r1", note: "the site is back" });
  assert.equal(started.workflowId, `group/${group.groupId}/reprotect/r1`);
  const operation = await group.ended("r1");
  assert.deepEqual(operation.fault, undefined);
  assert.deepEqual(
    operation.steps.map((step) => `${step.name}: ${step.state}`),
    [
      "pre-check: done",
      "guard: done",
      "prepare target: done",
      "sweep old disks: done",
      "keep old state: done",
      "stop sweep: done",
      "serve disks: done",
      "move disks: done",
      "turn: done",
      "first point: done",
    ],
  );
  const state = await reversed(group, "after the reprotect");
  assert.deepEqual(
    [state.activeSite, state.targetSite, state.homeSite, state.branch],
    [TARGET, SOURCE, SOURCE, "r-r1-turn"],
  );
  assert.ok(state.epoch > epoch);
  assert.ok(state.allowedOperations.includes("failback"));
  assert.deepEqual(
    state.machines.map(({ agent, machineId, disks }) => [agent, machineId, disks[0]?.source]),
    [[AGENT, "f1-web", "replica:web-0"]],
  );
  // The machine runs on, on its tap, and nothing is left of the export.
  assert.equal(world.machines["f1-web"]?.power, "running");
  assert.match(world.machines["f1-web"].disks[0]?.url ?? "", /tap\/secondary$/);
  await group.until("the export is closed", () => world.exports["f1"]?.open === false);
  assert.deepEqual(group.sites.leftovers(), ["machine f1-web"]);
  const { barriers } = home(group.sites);
  const kept = barriers.find((one) => one.name === "before-reprotect-r1");
  assert.deepEqual([kept?.from, kept?.branch], [SOURCE, "root"]);
  assert.ok(barriers.filter((one) => one.from === SOURCE).every((one) => one.barrier <= kept!.barrier));
  const made = calls.slice(before);
  const order = [
    "masterTarget.prepareGroup",
    "masterTarget.bookmark",
    "hypervisor.moveDisk",
    "masterTarget.turn",
    "masterTarget.closeExport",
  ];
  assert.deepEqual(
    order.map((call) => made.indexOf(call)).toSorted((a, b) => a - b),
    order.map((call) => made.indexOf(call)),
  );
  assert.equal(world.orders[SOURCE]?.state, "stopped");
  assert.equal(world.orders[TARGET]?.target.site, SOURCE);
  assert.deepEqual(await group.update("reprotect", { operationId: "r1" }), started);
});

test("everything works in the reversed direction: pause, bookmark, test failover, undo of a failback, failback, and home again", async () => {
  const group = await committed({ machineNames: ["web", "db"] });
  const { world } = group.sites;
  await group.update("reprotect", { operationId: "r1" });
  assert.equal((await group.ended("r1")).state, "done");
  await reversed(group, "first");

  await group.update("pause", { operationId: "p1" });
  await group.update("resume", { operationId: "p2" });
  await group.until("live again", (state) => state.progress?.state === "live" && state.health.length === 0);
  const point = await group.update("bookmark", { operationId: "b1", name: "here" });
  assert.equal(home(group.sites).barriers.find((one) => one.barrier === point.barrier)?.from, TARGET);

  await group.update("testFailoverStart", { operationId: "t1", point: "@here", leaseMs: 60_000 });
  await group.until("the test runs", (state) =>
    state.operations.some((one) => one.operationId === "t1" && (one.machines ?? []).length === 2),
  );
  assert.equal(world.machines["t1-web"]?.site, SOURCE);
  await group.update("testFailoverCleanup", { operationId: "t2", testOperationId: "t1", force: false });
  await group.ended("t1");

  // A failback that is undone: the machines at the secondary are started again, as themselves.
  const back = { mode: "planned", point: "latest", sourceLost: false, failback: true } as const;
  await group.update("failover", { operationId: "f2", ...back });
  const operation = await group.ended("f2");
  assert.deepEqual(operation.fault, undefined);
  assert.deepEqual(
    operation.machines?.map(({ name, site }) => [name, site]),
    [
      ["web", SOURCE],
      ["db", SOURCE],
    ],
  );
  assert.equal(world.machines["f1-web"]?.power, "off");
  assert.deepEqual((await group.state()).activeSite, SOURCE);
  await group.update("undo", { operationId: "u1" });
  assert.deepEqual((await group.ended("u1")).fault, undefined);
  assert.equal(world.machines["f1-web"]?.power, "running");
  assert.equal(world.machines["f1-db"]?.power, "running");
  await reversed(group, "after the undo");

  await group.update("failover", { operationId: "f3", ...back });
  assert.deepEqual((await group.ended("f3")).fault, undefined);
  await group.update("changePoint", { operationId: "cp", point: "@here" });
  assert.deepEqual((await group.ended("cp")).fault, undefined);
  await group.update("commit", { operationId: "c2" });

  // The second reprotect leads home: the machines' own disks, and the normal direction.
  const barriers = world.barriers.length;
  await group.update("reprotect", { operationId: "r2" });
  assert.deepEqual((await group.ended("r2")).fault, undefined);
  const state = await group.until("home", (one) => one.phase === "protected" && one.health.length === 0);
  assert.deepEqual([state.sourceSite, state.targetSite, state.homeSite], [SOURCE, TARGET, SOURCE]);
  assert.ok(!state.allowedOperations.includes("failback"));
  assert.deepEqual(
    state.machines.map(({ agent, machineId, disks }) => [agent, machineId, disks[0]?.source]),
    [
      [undefined, "cp-web", "tap:/web.img"],
      [undefined, "cp-db", "tap:/db.img"],
    ],
  );
  assert.match(world.machines["cp-web"]?.disks[0]?.url ?? "", /tap\/primary$/);
  const since = world.barriers.slice(barriers);
  assert.equal(since.at(-1)?.from, SOURCE);
  assert.equal(since.find((one) => one.name === "before-reprotect-r2")?.from, TARGET, "the old disks there were kept");
  assert.ok(
    since.every((one) => one.branch.startsWith("r-r2")),
    "a store that had the group never goes back to its root",
  );

  // And out once more.
  await group.update("failover", { operationId: "f4", mode: "planned", point: "latest", sourceLost: false });
  assert.deepEqual((await group.ended("f4")).fault, undefined);
  assert.equal(world.machines["cp-web"]?.power, "off", "the machine that runs is found, not the one that once did");
  assert.equal(world.machines["f4-web"]?.power, "running");
});

test("reprotect: fail every step in turn; the group is committed as before or goes on by itself, and asked again it succeeds", async () => {
  let undone = 0;
  for (let n = 1; ; n += 1) {
    const group = await committed();
    const fault = new Fault("OPERATION_FAILED", `Step ${n} fails`);
    group.sites.fail({ at: n, times: 1, when: n % 2 === 0 ? "after" : "before", fault });
    const before = group.sites.calls.length;
    await group.update("reprotect", { operationId: "r1" });
    const operation = await group.ended("r1");
    const where = `step ${n}: ${group.sites.calls.slice(before).join(", ")}`;
    if (operation.state === "done") {
      await reversed(group, where);
      await group.until("the export is closed", () => group.sites.world.exports["f1"]?.open === false);
      if (group.sites.calls.length - before > n && undone > 5) break;
      continue;
    }
    undone += 1;
    assert.ok(/fails|cannot be reprotected/.test(operation.fault?.message ?? ""), where);
    const state = await assertCommitted(group, where);
    const moved = /tap/.test(group.sites.world.machines["f1-web"]?.disks[0]?.url ?? "");
    assert.equal(state.conditions.includes("DisksMoved"), moved, where);
    if (moved) assert.ok(state.health.some((reason) => reason.code === "DISKS_NOT_KEPT"));
    assert.deepEqual(group.sites.world.moves, {}, where);
    await group.update("reprotect", { operationId: "r2" });
    assert.deepEqual((await group.ended("r2")).fault, undefined, where);
    await reversed(group, where);
  }
});

test("reprotect: whichever reply is lost, the call is repeated and it ends as if nothing had happened", async () => {
  const group = await committed({ machineNames: ["web", "db"] });
  group.sites.loseFirstReplies();
  await group.update("reprotect", { operationId: "r1" });
  const operation = await group.ended("r1", 90_000);
  assert.deepEqual(operation.fault, undefined);
  await reversed(group, "after lost replies");
});

test("a reprotect is refused before anything changes: site away, old machine running, machine off, another agent", async () => {
  const group = await committed();
  const { world } = group.sites;
  const refused = async (operationId: string, more: object, pattern: RegExp): Promise<void> => {
    await group.update("reprotect", { operationId, ...more });
    const { fault } = await group.ended(operationId);
    assert.equal(fault?.code, "REFUSED");
    assert.match(`${fault.message} ${fault.hint ?? ""}`, pattern);
    await assertCommitted(group, operationId);
    assert.equal(home(group.sites).prepared, false);
  };
  group.sites.loseSource(true);
  await refused("r1", {}, /does not answer.*Nothing was changed/s);
  group.sites.loseSource(false);
  world.machines["source-web"] = { ...world.machines["source-web"]!, power: "running" };
  await refused("r2", {}, /attached to a running machine.*Shut that machine down/s);
  switchOff(group.sites);
  await refused("r3", { agent: "nobody" }, /no agent "nobody".*localhost-secondary/s);
  const partial = await group.refused(
    group.update("failover", { operationId: "x", mode: "planned", point: "latest", sourceLost: false }),
  );
  assert.equal(partial.code, "REFUSED");
  assert.match(partial.hint ?? "", /reprotect/);
  // Without the old disks nothing is swept at home, and it works all the same.
  await group.update("reprotect", { operationId: "r4", withoutOldDisks: true });
  const operation = await group.ended("r4");
  assert.deepEqual(operation.fault, undefined);
  assert.equal(operation.steps.find((step) => step.name === "sweep old disks")?.state, "skipped");
  await reversed(group, "without old disks");
  assert.ok(home(group.sites).barriers.every((one) => one.from === TARGET));
});

test("the secondary is lost in the middle of a reseed: the group fails over to what the old disks had, and nothing else counts", async () => {
  const group = await committed();
  const { world } = group.sites;
  home(group.sites).syncRemainingBytes = 0;
  await group.update("reprotect", { operationId: "r1" });
  await group.until("reseeding", (state) => state.phase === "reseeding");
  group.sites.lose(TARGET, true);
  const kept = home(group.sites).barriers.find((one) => one.name === "before-reprotect-r1");
  const early = await group.state();
  assert.ok(early.phase !== "reseeding" || early.health.some((reason) => reason.code === "NOT_PROTECTED_YET"));
  const unsure = await group.refused(
    group.update("failover", { operationId: "f2", mode: "unplanned", point: "latest", sourceLost: false }),
  );
  assert.equal(unsure.code, "REFUSED");
  await group.update("failover", { operationId: "f3", mode: "unplanned", point: "latest", sourceLost: true });
  assert.deepEqual((await group.ended("f3")).fault, undefined);
  assert.equal(world.machines["f3-web"]?.site, SOURCE);
  assert.ok(home(group.sites).exports["f3"]?.point.endsWith(kept!.barrier.toString(16)));
  assert.equal((await group.ended("r1")).fault?.code, "INTERRUPTED");

  // It comes back, and so does the group: undone, the reseed goes on where it was.
  group.sites.lose(TARGET, false);
  await group.update("undo", { operationId: "u1" });
  assert.deepEqual((await group.ended("u1")).fault, undefined);
  await reversed(group, "after all");
});

test("a reprotect that is terminated: what it ordered is stopped, what it had prepared is released; after the turn it goes on alone", async () => {
  for (const [method, where] of [
    ["masterTarget.bookmark", "before"],
    ["hypervisor.moveDisk", "before"],
    ["masterTarget.turn", "before"],
  ] as const) {
    const group = await committed();
    const busy = new Fault("STORE_UNAVAILABLE", "Not now");
    const seen = group.sites.calls.filter((call) => call === method).length;
    group.sites.fail({ method, at: 1, times: 1_000, when: where, fault: busy });
    const { workflowId } = await group.update("reprotect", { operationId: "r1" });
    await group.until(method, () => group.sites.calls.filter((call) => call === method).length > seen, 30_000);
    await harness.temporal.client.workflow.getHandle(workflowId).terminate();
    assert.equal((await group.ended("r1")).fault?.code, "INTERRUPTED");
    await assertCommitted(group, method);
  }
  const group = await committed();
  const observed = new Fault("STORE_UNAVAILABLE", "Not now");
  await group.update("reprotect", { operationId: "r1" });
  await group.until("reseeding", (state) => {
    if (state.phase !== "reseeding") return false;
    group.sites.fail({ method: "masterTarget.listPoints", at: 1, times: 3, when: "before", fault: observed });
    return true;
  });
  await harness.temporal.client.workflow.getHandle(`group/${group.groupId}/reprotect/r1`).terminate();
  await reversed(group, "alone");
  assert.notEqual((await group.ended("r1")).state, "running");
});

test("a cancelled reprotect is undone before the turn", async () => {
  const group = await committed();
  const busy = new Fault("HYPERVISOR_UNAVAILABLE", "Not now");
  group.sites.fail({ method: "hypervisor.moveDisk", at: 1, times: 6, when: "before", fault: busy });
  const { workflowId } = await group.update("reprotect", { operationId: "r1" });
  await group.until("moving", () => group.sites.calls.includes("hypervisor.moveDisk"));
  await harness.temporal.client.workflow.getHandle(workflowId).cancel();
  const operation = await group.ended("r1");
  assert.equal(operation.state, "cancelled");
  await assertCommitted(group, "cancelled");
  assert.equal(group.sites.world.claims.activeSite, TARGET);
});
