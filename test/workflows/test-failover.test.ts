import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Fault } from "#model/fault.ts";
import { SOURCE, TARGET } from "../support/fake-sites.ts";
import { openHarness, type Harness } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

const START = { operationId: "t1", point: "latest", leaseMs: 600_000 } as const;

test("a test runs beside replication in an isolated network, and is gone after its clean-up", async () => {
  const group = await harness.world();
  await group.protected();
  const started = await group.update("testFailoverStart", START);
  assert.equal(started.workflowId, `group/${group.groupId}/test/t1`);
  const state = await group.until("up", (one) =>
    one.operations.some(
      (operation) =>
        operation.operationId === "t1" &&
        operation.steps.some((step) => step.name === "lease" && step.state === "running"),
    ),
  );
  assert.deepEqual(state.conditions, ["Testing"]);
  const operation = state.operations.find((one) => one.operationId === "t1");
  assert.equal(operation?.machines?.[0]?.site, TARGET);
  assert.match(operation?.waitsFor ?? "", /test-failover cleanup/);
  assert.equal(group.sites.world.machines["t1-web"]?.network.mode, "isolated");
  assert.equal(group.sites.world.exports["t1"]?.mode, "throw-away");
  assert.equal(group.sites.world.claims.activeSite, SOURCE);
  assert.ok(!group.sites.calls.includes("masterTarget.fence"));
  const { barrier } = group.sites.world.barriers.at(-1)!;
  await group.until("new points meanwhile", () => group.sites.world.barriers.at(-1)!.barrier > barrier);
  assert.equal(
    (await group.refused(group.update("testFailoverStart", { ...START, operationId: "t2" }))).code,
    "REFUSED",
  );
  assert.equal(
    (
      await group.refused(
        group.update("testFailoverCleanup", { operationId: "c0", testOperationId: "other", force: false }),
      )
    ).code,
    "NOT_FOUND",
  );

  await group.update("testFailoverCleanup", { operationId: "c1", testOperationId: "t1", force: false });
  assert.equal((await group.ended("c1")).state, "done");
  assert.equal((await group.ended("t1")).state, "done");
  assert.deepEqual((await group.state()).conditions, []);
  assert.deepEqual(group.sites.leftovers(), []);
  await harness.temporal.client.workflow.getHandle(`group/${group.groupId}/test/t1/janitor`).result();
});

test("the end of the lease cleans up", async () => {
  const group = await harness.world();
  await group.protected();
  await group.update("testFailoverStart", { ...START, leaseMs: 1_000 });
  const operation = await group.ended("t1");
  assert.equal(operation.state, "done");
  assert.match(operation.steps.at(-1)?.detail ?? "", /lease/);
  assert.deepEqual(group.sites.leftovers(), []);
});

test("a real failover does not wait for a test, and the test goes", async () => {
  const group = await harness.world();
  await group.protected();
  await group.update("testFailoverStart", START);
  await group.until("up", () => group.sites.world.machines["t1-web"]?.power === "running");
  group.sites.loseSource(true);
  await group.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  assert.equal((await group.ended("f1")).state, "done");
  await group.ended("t1");
  const state = await group.until("alone", (one) => one.conditions.length === 0);
  assert.equal(state.phase, "failed-over");
  assert.deepEqual(group.sites.leftovers().toSorted(), ["export f1", "machine f1-web"]);
});

test("a clean-up during the set-up cuts it short", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.fail({
    method: "masterTarget.openExport",
    at: 1,
    times: 1_000,
    when: "after",
    fault: new Fault("STORE_UNAVAILABLE", "Not now"),
  });
  await group.update("testFailoverStart", START);
  await group.until("opening", () => group.sites.calls.includes("masterTarget.openExport"));
  await group.update("testFailoverCleanup", { operationId: "c1", testOperationId: "t1", force: false });
  await group.ended("t1");
  assert.deepEqual(group.sites.leftovers(), []);
});

test("fail every step of a test in turn: it says which, and nothing is left", async () => {
  for (let n = 1; ; n += 1) {
    const group = await harness.world();
    await group.protected();
    group.sites.fail({ at: n, times: 1, when: "after", fault: new Fault("OPERATION_FAILED", `Step ${n} fails`) });
    await group.update("testFailoverStart", { ...START, leaseMs: 1_000 });
    const operation = await group.ended("t1");
    assert.deepEqual(group.sites.leftovers(), [], `step ${n}`);
    await group.until("no condition", (state) => state.conditions.length === 0);
    if (operation.state === "done") {
      assert.ok(n > 3, `only ${n} steps were tried`);
      return;
    }
    assert.equal(operation.fault?.message, `Step ${n} fails`);
  }
});

test("a test that is terminated is cleaned up by its janitor", async () => {
  const group = await harness.world();
  await group.protected();
  const { workflowId } = await group.update("testFailoverStart", START);
  await group.until("up", () => group.sites.world.machines["t1-web"]?.power === "running");
  await harness.temporal.client.workflow.getHandle(workflowId).terminate("by a test");
  assert.equal((await group.ended("t1")).fault?.code, "INTERRUPTED");
  await group.until("clean", (state) => state.conditions.length === 0 && group.sites.leftovers().length === 0);
});

test("a clean-up that fails is a condition; it can be repeated, and forced", async () => {
  const group = await harness.world();
  await group.protected();
  await group.update("testFailoverStart", START);
  await group.until("up", () => group.sites.world.machines["t1-web"]?.power === "running");
  group.sites.fail({
    method: "hypervisor.destroy",
    at: 1,
    times: 3,
    when: "before",
    fault: new Fault("TOOL_MISSING", "The hypervisor has gone", { hint: "Bring it back" }),
  });
  await group.update("testFailoverCleanup", { operationId: "c1", testOperationId: "t1", force: false });
  assert.equal((await group.ended("t1")).fault?.code, "TOOL_MISSING");
  assert.equal((await group.ended("c1")).state, "failed");
  const state = await group.state();
  assert.deepEqual(state.conditions, ["TestCleanupFailed"]);
  assert.ok(state.allowedOperations.includes("test-failover-cleanup"));
  await group.update("testFailoverCleanup", { operationId: "c2", testOperationId: "t1", force: true });
  assert.deepEqual((await group.state()).conditions, []);
  await group.until("clean", () => group.sites.leftovers().length === 0, 40_000);
});
