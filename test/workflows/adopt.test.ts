/** A group's workflow is lost with its whole history, and begun again from the catalog: on a real Temporal server, over sites in memory. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { JsonObject } from "#model/json.ts";
import { CONTROL_QUEUE, groupWorkflowId, WORKFLOWS, type AdoptedGroup } from "../../src/workflows/messages.ts";
import { TARGET } from "../support/fake-sites.ts";
import { LIMITS, openHarness, terminateAll, type Harness, type TestGroup } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => {
  await harness.stop();
});

const LOST = { mode: "unplanned", point: "latest", sourceLost: true } as const;

/** Everything that Temporal knew is gone; what the sites and the store have is what there is. */
async function lose(group: TestGroup): Promise<AdoptedGroup> {
  await terminateAll(harness.temporal);
  const { world } = group.sites;
  const revision = Math.max(...world.catalog.keys());
  const { activeSite, branch, epoch } = world.claims;
  const newest = world.barriers.at(-1);
  return {
    revision,
    record: world.catalog.get(revision)!,
    claim: { activeSite, groupEpoch: epoch },
    disk: { branch, moving: false },
    ...(newest === undefined ? {} : { newest: { barrier: newest.barrier, cutAtMs: newest.cutAtMs } }),
    exports: Object.entries(world.exports).flatMap(([operationId, { mode, point, open }]) =>
      open
        ? [{ operationId, mode, pointId: point, ...(mode === "read-write" ? { branch: `branch-${operationId}` } : {}) }]
        : [],
    ),
    machines: Object.values(world.machines)
      .filter(({ site }) => site === TARGET)
      .map(({ id, name, operationId, power }) => ({
        id,
        name,
        operationId,
        running: power === "running",
        started: power === "running",
      })),
  };
}

async function adopt(group: TestGroup, adopted: AdoptedGroup): Promise<void> {
  await harness.temporal.client.workflow.start(WORKFLOWS.protectionGroup, {
    workflowId: groupWorkflowId(group.groupId),
    taskQueue: CONTROL_QUEUE,
    args: [{ groupId: group.groupId, adopted, limits: LIMITS }],
  });
}

/** The catalog has the phase. */
async function recorded(group: TestGroup, phase: string): Promise<void> {
  await group.until(`"${phase}" in the catalog`, () => {
    const { catalog } = group.sites.world;
    return catalog.size > 0 && catalog.get(Math.max(...catalog.keys()))?.["phase"] === phase;
  });
}

test("a protected group replicates on under a higher order, and nothing of it is prepared or copied anew", async () => {
  const group = await harness.world();
  await group.protected();
  await group.update("bookmark", { operationId: "b1", name: "kept" });
  await recorded(group, "protected");
  const known = await group.state();
  const { order, barriers } = group.sites.world;
  const points = barriers.length;
  await adopt(group, await lose(group));
  const state = await group.until("protected", (one) => one.phase === "protected" && one.health.length === 0);
  assert.deepEqual(
    [state.epoch, state.branch, state.policy, state.machines],
    [known.epoch, known.branch, known.policy, known.machines],
  );
  await group.until("a higher order", () => (group.sites.world.order?.version ?? 0) > (order?.version ?? 0));
  assert.equal(group.sites.world.order?.state, "active");
  await group.until("new points", () => group.sites.world.barriers.length > points + 1);
  assert.equal(group.sites.world.syncRemainingBytes, 0);
  // It obeys as before.
  await group.update("pause", { operationId: "p1" });
  await group.update("failover", { operationId: "f1", ...LOST });
  assert.equal((await group.ended("f1")).state, "done");
});

test("what changes is in the catalog, what is only seen is not", async () => {
  const group = await harness.world();
  await group.protected();
  await recorded(group, "protected");
  const { catalog } = group.sites.world;
  await group.until("some windows", (one) => (one.progress?.barrier ?? 0) > 4);
  const size = catalog.size;
  const before = (await group.state()).progress?.barrier ?? 0;
  await group.until("some more windows", (one) => (one.progress?.barrier ?? 0) > before + 20);
  assert.equal(catalog.size, size, "windows write nothing");
  await group.update("pause", { operationId: "p1" });
  await group.until("the pause in the catalog", () => catalog.size > size);
  const newest = catalog.get(Math.max(...catalog.keys()))!;
  assert.deepEqual(newest["conditions"], ["Paused"]);
  for (const name of ["progress", "cursor", "results", "shown"]) assert.equal(name in newest, false, name);
  await group.update("unprotect", { operationId: "u1" });
  await group.ended("u1");
  await harness.temporal.client.workflow.getHandle(groupWorkflowId(group.groupId)).result();
  assert.equal(catalog.get(Math.max(...catalog.keys()))?.["phase"], "unprotected");
});

test("a group that is seeding goes on seeding", async () => {
  const group = await harness.world();
  await group.protect();
  await recorded(group, "seeding");
  await adopt(group, await lose(group));
  const operation = await group.ended(`protect-${group.groupId}`);
  assert.equal(operation.state, "done");
  assert.equal((await group.state()).phase, "protected");
});

test("a failed-over group runs on, on the same machines, and can be undone; fields that nobody knows are kept", async () => {
  const group = await harness.world();
  await group.protected();
  await group.update("failover", { operationId: "f1", ...LOST });
  await group.ended("f1");
  await recorded(group, "failed-over");
  const lost = await lose(group);
  await adopt(group, { ...lost, record: { ...lost.record, ofTomorrow: { kept: 1 } } as JsonObject });
  const state = await group.until("its replica", (one) => one.phase === "failed-over" && one.replica !== undefined);
  assert.deepEqual([state.activeSite, state.branch], [TARGET, "branch-f1"]);
  assert.deepEqual(group.sites.leftovers(), ["export f1", "machine f1-web"]);
  await group.until("tomorrow's field", () => {
    const { catalog } = group.sites.world;
    return JSON.stringify(catalog.get(Math.max(...catalog.keys()))?.["ofTomorrow"]) === '{"kept":1}';
  });
  await group.update("undo", { operationId: "u1" });
  assert.equal((await group.ended("u1")).state, "done");
  await group.until("replicating", (one) => one.phase === "protected" && one.progress?.state === "live");
});

test("lost in the middle of a failover, at every step: it stands, or the source goes on, or a person decides", async () => {
  const stands = new Set<string>();
  for (const method of ["fence", "openExport", "createMachine", "start"]) {
    const group = await harness.world();
    await group.protected();
    await recorded(group, "protected");
    const { calls } = group.sites;
    const name = `${method === "fence" || method === "openExport" ? "masterTarget" : "hypervisor"}.${method}`;
    await group.update("failover", { operationId: "f1", ...LOST });
    await group.until(name, () => calls.includes(name));
    await adopt(group, await lose(group));
    const state = await group.until("settled", ({ phase }) => phase === "protected" || phase === "failed-over");
    stands.add(state.phase);
    const operation = state.operations.find(({ operationId }) => operationId === "f1");
    if (state.phase === "failed-over") {
      assert.deepEqual(group.sites.leftovers(), ["export f1", "machine f1-web"], method);
    } else {
      await group.until("nothing left", () => group.sites.leftovers().length === 0);
      // Fenced for the target, and nothing runs: both ways are open.
      assert.ok(state.conditions.includes("SourceFenced"), method);
      assert.ok(state.allowedOperations.includes("failover") && state.allowedOperations.includes("resume"), method);
      await group.update("resume", { operationId: "r1" });
      await group.until("replicating", (one) => one.progress?.state === "live" && one.health.length === 0);
    }
    assert.notEqual(operation?.state, "running", method);
  }
  assert.deepEqual([...stands].sort(), ["failed-over", "protected"]);
});

test("a test failover that was running is cleaned up", async () => {
  const group = await harness.world();
  await group.protected();
  await group.update("testFailoverStart", { operationId: "t1", point: "latest", leaseMs: 600_000 });
  await group.until("its machine", () => group.sites.leftovers().includes("machine t1-web"));
  await group.until("in the catalog", () => {
    const { catalog } = group.sites.world;
    return catalog.get(Math.max(...catalog.keys()))?.["test"] !== undefined;
  });
  await adopt(group, await lose(group));
  await group.until("nothing left", (one) => group.sites.leftovers().length === 0 && one.conditions.length === 0);
});

test("a catalog that cannot be written is a health reason and holds up nothing; it is written when it can be", async () => {
  const group = await harness.world();
  const { Fault } = await import("#model/fault.ts");
  group.sites.fail({
    method: "masterTarget.recordGroup",
    at: 1,
    times: 6,
    when: "before",
    fault: new Fault("STORE_UNAVAILABLE", "The store is away"),
  });
  await group.protected();
  const state = await group.until("the reason", (one) => one.health.some(({ code }) => code === "CATALOG_BEHIND"));
  assert.equal(state.phase, "protected");
  await group.update("failover", { operationId: "f1", ...LOST });
  assert.equal((await group.ended("f1")).state, "done");
});
