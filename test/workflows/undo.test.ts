import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Fault } from "#model/fault.ts";
import type { GroupState } from "../../src/workflows/messages.ts";
import { SOURCE, TARGET, type FakeSites } from "../support/fake-sites.ts";
import { openHarness, type Harness, type TestGroup } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

const SHORT = { windowMs: 500, answerMs: 500 } as const;

/** Protected, its site lost and failed over; the site is back, and its machine has run all the time. */
async function failedOver(options: { readonly machineNames?: readonly string[] } = {}): Promise<TestGroup> {
  const group = await harness.world(options);
  await group.protected(SHORT);
  await group.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  assert.equal((await group.ended("f1")).state, "done");
  await group.until("watched", (state) => state.replica !== undefined);
  return group;
}

const replicating = async (group: TestGroup, what: string): Promise<GroupState> => {
  const state = await group.until(
    `replicating: ${what}`,
    (one) => one.phase === "protected" && one.progress?.state === "live" && one.health.length === 0,
  );
  const { barriers } = group.sites.world;
  const known = barriers.length;
  await group.until("new points", () => barriers.slice(known).some((one) => one.branch === "root"));
  return state;
};

/** The replica runs as if nothing had been asked of it. */
function assertRunning(sites: FakeSites, where: string): void {
  assert.equal(sites.world.machines["f1-web"]?.power, "running", where);
  assert.equal(sites.world.exports["f1"]?.open, true, where);
  assert.equal(sites.world.claims.activeSite, TARGET, where);
}

test("undo: machines off, last writes kept, the source goes on where it was, and nothing is left at the target", async () => {
  const group = await failedOver();
  const { world, calls } = group.sites;
  const before = calls.length;
  const started = await group.update("undo", { operationId: "u1", note: "it was a false alarm" });
  assert.equal(started.workflowId, `group/${group.groupId}/undo/u1`);
  assert.equal(started.epoch, 3);
  assert.equal(started.setsAside.branch, "branch-f1");
  assert.ok((started.setsAside.ranMs ?? -1) >= 0);
  const operation = await group.ended("u1");
  assert.deepEqual(operation.fault, undefined);
  assert.deepEqual(
    operation.steps.map((step) => `${step.name}: ${step.state}`),
    [
      "pre-check: done",
      "stop machines: done",
      "last commit: done",
      "give back: done",
      "remove replica: done",
      "start source: done",
    ],
  );
  assert.equal(operation.setAside?.branch, "branch-f1");
  const kept = world.barriers.findLast((one) => one.branch === "branch-f1");
  assert.match(
    operation.steps[2]?.detail ?? "",
    new RegExp(`branch branch-f1, newest point .*${kept!.barrier.toString(16)}$`),
  );
  assert.match(operation.steps[5]?.detail ?? "", /web: kept running/);
  const state = await replicating(group, "after the undo");
  assert.deepEqual([state.activeSite, state.branch, state.epoch, state.conditions], [SOURCE, "root", 3, []]);
  assert.equal(state.replica, undefined);
  assert.deepEqual(group.sites.leftovers(), []);
  assert.equal(world.order?.groupEpoch, 3);
  assert.equal(world.order?.branch, "root");
  const made = calls.slice(before);
  const order = ["hypervisor.shutdown", "masterTarget.closeExport", "masterTarget.fence", "hypervisor.destroy"];
  assert.deepEqual(
    order.map((call) => made.indexOf(call)).toSorted((a, b) => a - b),
    order.map((call) => made.indexOf(call)),
  );
  // What the replica wrote last is still a point.
  assert.ok(world.barriers.some((one) => one === kept));
  assert.deepEqual(await group.update("undo", { operationId: "u1" }), started);
  // And the group can fail over again, to what the source wrote.
  await group.update("failover", { operationId: "f2", mode: "planned", point: "latest", sourceLost: false });
  assert.equal((await group.ended("f2")).state, "done");
  const newest = world.barriers.findLast((one) => one.branch === "root");
  assert.ok(world.exports["f2"]?.point.endsWith(newest!.barrier.toString(16)));
});

test("undo of a planned failover starts the machines at the source again", async () => {
  const group = await harness.world({ machineNames: ["web", "db"] });
  await group.protected(SHORT);
  await group.update("failover", { operationId: "f1", mode: "planned", point: "latest", sourceLost: false });
  await group.ended("f1");
  assert.equal(group.sites.world.machines["source-db"]?.power, "off");
  group.sites.stubborn.add("db");
  await group.update("undo", { operationId: "u1" });
  const operation = await group.ended("u1");
  assert.equal(operation.state, "done");
  assert.match(operation.steps[1]?.detail ?? "", /db did not shut down and was powered off/);
  assert.equal(group.sites.world.machines["source-web"]?.power, "running");
  assert.equal(group.sites.world.machines["source-db"]?.power, "running");
  await replicating(group, "after the undo");
});

test("the source is gone: an undo is refused, nothing is touched, and a commit ends the right to it", async () => {
  const group = await failedOver();
  group.sites.loseSource(true);
  const fault = await group.refused(group.update("undo", { operationId: "u1" }));
  assert.equal(fault.code, "REFUSED");
  assert.match(fault.hint ?? "", /leeward commit/);
  assertRunning(group.sites, "after the refusal");
  const state = await group.state();
  assert.equal(state.phase, "failed-over");
  assert.deepEqual(state.allowedOperations, ["change-point", "commit", "undo"]);
  const calls = group.sites.calls.length;
  const committed = await group.update("commit", { operationId: "c1" });
  assert.deepEqual(await group.update("commit", { operationId: "c1" }), committed);
  const after = await group.state();
  assert.equal(after.phase, "committed");
  assert.equal(after.operations[0]?.kind, "commit");
  assert.deepEqual(after.allowedOperations, ["reprotect", "unprotect"]);
  const looked = ["masterTarget.exportStatus", "hypervisor.inspect"];
  assert.deepEqual(
    group.sites.calls.slice(calls).filter((call) => !looked.includes(call)),
    [],
    "a commit asks nobody for anything",
  );
  group.sites.loseSource(false);
  const late = await group.refused(group.update("undo", { operationId: "u2" }));
  assert.equal(late.code, "REFUSED");
  assert.match(late.message, /committed/);
  assertRunning(group.sites, "after the commit");
});

test("undo: fail every step in turn; the replica runs on, or the undo stands, or another undo ends it", async () => {
  let unfinished = 0;
  for (let n = 1; ; n += 1) {
    const group = await failedOver();
    const fault = new Fault("OPERATION_FAILED", `Step ${n} fails`);
    group.sites.fail({ at: n, times: 1, when: n % 2 === 0 ? "after" : "before", fault });
    const before = group.sites.calls.length;
    await group.update("undo", { operationId: "u1" });
    const operation = await group.ended("u1");
    const where = `step ${n}: ${group.sites.calls.slice(before).join(", ")}`;
    if (operation.state === "done") {
      await replicating(group, where);
      await group.until("nothing is left", () => group.sites.leftovers().length === 0);
      if (operation.steps.every((step) => !/fails/.test(step.detail ?? "")) && n > 5) break;
      continue;
    }
    assert.equal(operation.fault?.message, `Step ${n} fails`, where);
    const state = await group.state();
    assert.equal(state.phase, "failed-over", where);
    if (!state.conditions.includes("UndoUnfinished")) {
      assertRunning(group.sites, where);
      continue;
    }
    unfinished += 1;
    assert.deepEqual(state.allowedOperations, ["undo"], where);
    assert.ok(state.health.some((reason) => reason.code === "UNDO_UNFINISHED"));
    assert.equal(group.sites.world.machines["f1-web"]?.power, "off", where);
    await group.update("undo", { operationId: "u2" });
    assert.equal((await group.ended("u2")).state, "done", where);
    const after = await replicating(group, where);
    assert.deepEqual(after.conditions, []);
    assert.deepEqual(group.sites.leftovers(), [], where);
  }
  assert.equal(unfinished, 1);
});

test("undo: whichever reply is lost, the call is repeated and it ends as if nothing had happened", async () => {
  const group = await failedOver({ machineNames: ["web", "db"] });
  group.sites.loseFirstReplies();
  await group.update("undo", { operationId: "u1" });
  const operation = await group.ended("u1", 60_000);
  assert.deepEqual(operation.fault, undefined);
  assert.equal((await replicating(group, "after lost replies")).epoch, 3);
  assert.deepEqual(group.sites.leftovers(), []);
});

test("an undo that cannot bring the replica back at once brings it back later", async () => {
  const group = await failedOver();
  const fault = new Fault("OPERATION_FAILED", "Not now");
  group.sites.fail({ method: "masterTarget.closeExport", at: 1, times: 1, when: "after", fault });
  group.sites.fail({ method: "masterTarget.openExport", at: 1, times: 1, when: "before", fault });
  group.sites.fail({ method: "hypervisor.start", at: 1, times: 1, when: "before", fault });
  await group.update("undo", { operationId: "u1" });
  const operation = await group.ended("u1");
  assert.equal(operation.state, "failed");
  assert.match(operation.steps.find((step) => step.name === "last commit")?.detail ?? "", /not undone/);
  await group.until(
    "running again",
    (state) =>
      group.sites.world.machines["f1-web"]?.power === "running" &&
      !state.health.some((reason) => reason.level === "critical"),
  );
  assertRunning(group.sites, "brought back");
  await group.update("undo", { operationId: "u2" });
  assert.equal((await group.ended("u2")).state, "done");
  await replicating(group, "after the second undo");
});

test("nobody decides: the failover is committed, or undone, by itself; a person may decide before, and a refused undo is seen", async () => {
  const out = async (move: "commit" | "undo", afterMs: number): Promise<TestGroup> => {
    const group = await harness.world();
    await group.protected(SHORT);
    const lost = { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true } as const;
    await group.update("failover", { ...lost, afterwards: { move, afterMs } });
    assert.equal((await group.ended("f1")).state, "done");
    return group;
  };
  const committed = await out("commit", 2_000);
  assert.equal((await committed.state()).due?.move, "commit");
  await committed.until("committed", (state) => state.phase === "committed");

  const undone = await out("undo", 1_000);
  assert.equal((await undone.ended("f1.undo")).by, "timer");
  await replicating(undone, "by itself");

  const decided = await out("commit", 2_000);
  await decided.update("undo", { operationId: "u1" });
  assert.equal((await decided.ended("u1")).state, "done");
  await replicating(decided, "decided before");
  assert.equal((await decided.state()).due, undefined);

  const alone = await out("undo", 1_000);
  alone.sites.loseSource(true);
  assert.equal((await alone.ended("f1.undo")).fault?.code, "REFUSED");
  assertRunning(alone.sites, "refused by itself");
  assert.equal((await alone.state()).phase, "failed-over");
});

for (const [during, method] of [
  ["the last commit", "masterTarget.closeExport"],
  ["the giving back", "masterTarget.fence"],
] as const) {
  test(`an undo that is cancelled or terminated during ${during}`, async () => {
    for (const how of ["cancel", "terminate"] as const) {
      const group = await failedOver();
      const busy = new Fault("STORE_UNAVAILABLE", "Not now");
      const before = group.sites.calls.filter((call) => call === method).length;
      group.sites.fail({
        method,
        at: 1,
        times: how === "cancel" && method.endsWith("fence") ? 3 : 1_000,
        when: "before",
        fault: busy,
      });
      const { workflowId } = await group.update("undo", { operationId: "u1" });
      await group.until(during, () => group.sites.calls.filter((call) => call === method).length > before);
      await harness.temporal.client.workflow.getHandle(workflowId)[how]();
      const operation = await group.ended("u1");
      if (method === "masterTarget.closeExport") {
        // Before the point of no return: as if nothing had been asked.
        assert.notEqual(operation.state, "done");
        await group.until("running again", () => group.sites.world.machines["f1-web"]?.power === "running");
        assertRunning(group.sites, how);
      } else if (how === "cancel") {
        // Behind it there is only forward.
        assert.equal(operation.state, "done");
        await replicating(group, how);
      } else {
        const state = await group.state();
        assert.deepEqual(state.allowedOperations, ["undo"]);
        assert.equal(operation.fault?.code, "INTERRUPTED");
      }
    }
  });
}
