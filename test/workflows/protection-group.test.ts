import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Fault } from "#model/fault.ts";
import { groupWorkflowId } from "../../src/workflows/messages.ts";
import { openHarness, type Harness } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

test("a group is protected, watched, bookmarked, paused, resumed and released", async () => {
  const group = await harness.world();
  const started = await group.protect();
  assert.equal(started.workflowId, groupWorkflowId(group.groupId));
  const state = await group.until("protected", (one) => one.phase === "protected");
  assert.deepEqual(state.health, []);
  assert.equal(state.epoch, 1);
  assert.ok(state.machines[0]?.disks[0]?.tapUrl?.startsWith("nbd+unix://"));
  const protect = state.operations.find((operation) => operation.kind === "protect");
  assert.deepEqual(
    protect?.steps.map((step) => `${step.name}: ${step.state}`),
    [
      "look at disks: done",
      "probe store: done",
      "prepare target: done",
      "order replication: done",
      "serve disks: done",
      "initial sync: done",
    ],
  );

  const point = await group.update("bookmark", { operationId: "b1", name: "before-upgrade" });
  assert.equal(point.name, "before-upgrade");
  await group.update("pause", { operationId: "p1" });
  assert.equal(group.sites.world.order?.state, "paused");
  assert.deepEqual((await group.state()).conditions, ["Paused"]);
  const refused = await group.refused(group.update("bookmark", { operationId: "b2", name: "no" }));
  assert.equal(refused.code, "REFUSED");
  assert.match(refused.hint ?? "", /resume/);
  await group.update("resume", { operationId: "r1" });
  assert.equal(group.sites.world.order?.state, "active");

  await group.update("unprotect", { operationId: "u1" });
  const end = await group.until("unprotected", (one) => one.phase === "unprotected");
  assert.equal(end.operations.find((operation) => operation.operationId === "u1")?.state, "done");
  assert.equal(group.sites.world.order?.state, "stopped");
  assert.equal(group.sites.world.released, true);
  // The run ends with it, and the name can be protected again.
  await harness.temporal.client.workflow.getHandle(groupWorkflowId(group.groupId)).result();
  await group.protect({ operationId: "again" });
  await group.until("protected again", (one) => one.phase === "protected");
});

test("the same protect again is the same operation; another one is refused", async () => {
  const group = await harness.world();
  const [first, second] = await Promise.all([group.protect(), group.protect()]);
  assert.deepEqual(first, second);
  await group.until("protected", (one) => one.phase === "protected");
  const fault = await group.refused(group.protect({ operationId: "other" }));
  assert.equal(fault.code, "REFUSED");
  assert.match(fault.message, /"protected"/);
});

test("a wrong request changes nothing and says what was expected", async () => {
  const group = await harness.world();
  const fault = await group.refused(group.protect({ targetSite: "primary" }));
  assert.equal(fault.code, "USAGE");
  assert.deepEqual(group.sites.calls, []);
});

test("a protect that fails is undone, says why, and the workflow ends", async () => {
  const group = await harness.world();
  group.sites.fail({
    method: "masterTarget.probeStore",
    at: 1,
    times: 1,
    when: "before",
    fault: new Fault("STORE_UNSAFE", "Two creates of one key succeeded", { hint: "Use another store" }),
  });
  await group.protect();
  const operation = await group.ended(`protect-${group.groupId}`);
  assert.equal(operation.state, "failed");
  assert.deepEqual(operation.fault, {
    code: "STORE_UNSAFE",
    message: "Two creates of one key succeeded",
    hint: "Use another store",
  });
  assert.equal((await group.state()).phase, "unprotected");
  await harness.temporal.client.workflow.getHandle(groupWorkflowId(group.groupId)).result();
});

test("what cannot be reached for a while is asked again until it answers", async () => {
  const group = await harness.world();
  for (const method of ["processServer.inspectDisks", "masterTarget.prepareGroup", "orders.put"]) {
    group.sites.fail({
      method,
      at: 1,
      times: 2,
      when: "after",
      fault: new Fault("PEER_UNREACHABLE", "The link broke"),
    });
  }
  await group.protect();
  await group.until("protected", (one) => one.phase === "protected");
  assert.equal(group.sites.world.claims.epoch, 1);
});

test("unprotect ends a group that is still seeding", async () => {
  const group = await harness.world();
  group.sites.world.syncRemainingBytes = 1e12;
  await group.protect();
  await group.until("syncing", (one) => one.progress !== undefined);
  await group.update("unprotect", { operationId: "u" });
  const state = await group.until("unprotected", (one) => one.phase === "unprotected");
  assert.equal(state.operations.find((one) => one.kind === "protect")?.state, "cancelled");
  assert.equal(state.operations.find((one) => one.kind === "unprotect")?.state, "done");
  assert.equal(group.sites.world.order?.state, "stopped");
});

test("cancelling the workflow ends a protect that is seeding, and leaves a protected group alone", async () => {
  const group = await harness.world();
  group.sites.world.syncRemainingBytes = 1e12;
  await group.protect();
  await group.until("syncing", (one) => one.progress !== undefined);
  const handle = harness.temporal.client.workflow.getHandle(groupWorkflowId(group.groupId));
  await handle.cancel();
  await handle.result();
  assert.equal((await group.state()).operations.find((one) => one.kind === "protect")?.fault?.code, "INTERRUPTED");

  const other = await harness.world();
  await other.protected();
  await harness.temporal.client.workflow.getHandle(groupWorkflowId(other.groupId)).cancel();
  await other.update("pause", { operationId: "p" });
  assert.equal((await other.state()).phase, "protected");
  await other.update("resume", { operationId: "r" });
  await other.update("bookmark", { operationId: "b", name: "x" });
});

test("a lost connection shows as health at once, and passes", async () => {
  const group = await harness.world();
  await group.protected({ windowMs: 30_000 });
  group.sites.loseSource(true);
  const away = await group.until(
    "disconnected",
    (one) => one.health.some((reason) => reason.code === "SOURCE_DISCONNECTED"),
    5_000,
  );
  assert.equal(away.healthLevel, "critical");
  assert.ok(!away.allowedOperations.includes("planned-failover"));
  assert.match(away.health[0]?.remedy ?? "", /--source-lost/);
  group.sites.loseSource(false);
  await group.until("healthy", (one) => one.health.length === 0, 5_000);
});

test("a target that forgot the group is told again", async () => {
  const group = await harness.world();
  await group.protected();
  group.sites.world.released = true;
  await group.until("received again", (one) => one.health.length === 0 && !group.sites.world.released, 15_000);
  await group.update("bookmark", { operationId: "b", name: "after" });
});

test("lists show phase and health as search attributes; the run shows its details", async () => {
  const group = await harness.world();
  await group.protected();
  const handle = harness.temporal.client.workflow.getHandle(groupWorkflowId(group.groupId));
  let found = 0;
  for (let tries = 0; tries < 50 && found === 0; tries += 1) {
    for await (const one of harness.temporal.client.workflow.list({
      query: `LeewardGroup = '${group.groupId}' AND LeewardPhase = 'protected' AND LeewardHealth = 'healthy' AND LeewardKind = 'group' AND LeewardEpoch = 1 AND LeewardRpoBreach = false`,
    })) {
      assert.equal(one.workflowId, handle.workflowId);
      found += 1;
    }
    if (found === 0) await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.equal(found, 1);
  const metadata = await handle.query<{ readonly currentDetails?: string }>("__temporal_workflow_metadata");
  assert.match(metadata.currentDetails ?? "", /Phase \| \*\*protected\*\*/);
  assert.match(metadata.currentDetails ?? "", /leeward failover/);
  const description = await handle.describe();
  assert.match((await description.staticSummary()) ?? "", /primary → secondary, RPO 15 s/);
});

test("after a resume the source has its time to connect: nobody calls it lost, and a failover asks it first", async () => {
  const group = await harness.world();
  await group.protected();
  await group.update("pause", { operationId: "p1" });
  // As with a real target, the stream of a paused source is down.
  group.sites.loseSource(true);
  await group.until("paused and away", (state) => state.progress?.connected === false);
  await group.update("resume", { operationId: "r1" });
  const state = await group.until("seen again", (one) => one.health.some(({ code }) => code === "SOURCE_CONNECTING"));
  assert.ok(!state.health.some(({ code }) => code === "SOURCE_DISCONNECTED"));
  assert.ok(!JSON.stringify(state.health).includes("--source-lost"));
  group.sites.loseSource(false);
  await group.until("well", (one) => one.health.length === 0);
});
