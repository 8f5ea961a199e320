import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Fault } from "#model/fault.ts";
import { MOVE_STEPS } from "#model/move-steps.ts";
import { openHarness, type Harness, type TestGroup } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

const NAMES = ["web", "db", "mail"] as const;
const SHORT = { windowMs: 500, answerMs: 500 } as const;
const NO_BOOT = new Fault("VERIFICATION_FAILED", "No boot device");

/** Three machines failed over to the newest point, and one of them does not boot there; an older point is called "good". */
async function twoOfThree(): Promise<{ readonly group: TestGroup; readonly missing: string; readonly good: string }> {
  const group = await harness.world({ machineNames: NAMES });
  await group.protected(SHORT);
  const { id: good } = await group.update("bookmark", { operationId: "b1", name: "good" });
  const { barriers, machines } = group.sites.world;
  const newest = barriers.length;
  await group.until("newer points", () => barriers.length > newest);
  group.sites.fail({ method: "hypervisor.start", at: 1, times: 1, when: "before", fault: NO_BOOT });
  await group.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  assert.equal((await group.ended("f1")).state, "done");
  const missing = NAMES.find((name) => machines[`f1-${name}`]?.power !== "running") ?? "";
  assert.ok((await group.state()).conditions.includes("Partial"));
  return { group, missing, good };
}

function startsOfOthers(group: TestGroup, missing: string): readonly (number | undefined)[] {
  return NAMES.filter((name) => name !== missing).map((name) => {
    const machine = group.sites.world.machines[`f1-${name}`];
    assert.equal(machine?.power, "running");
    return machine.startedAtMs;
  });
}

test("one of three machines does not boot: the others run, and a retry with another point brings it up", async () => {
  const { group, missing, good } = await twoOfThree();
  const before = startsOfOthers(group, missing);
  await group.update("retryMembers", { operationId: "r1", machine: missing, point: "@good" });
  const operation = await group.ended("r1");
  assert.equal(operation.fault, undefined);
  assert.deepEqual(
    operation.steps.map(({ name, state }) => [name, state]),
    MOVE_STEPS["retry-at-point"].map((name) => [name, "done"]),
  );
  assert.deepEqual(operation.otherPoints, { [missing]: good });
  assert.deepEqual(group.sites.world.takes, {
    [missing]: { requestId: `r1.${missing}`, point: good, done: true },
  });
  assert.equal(group.sites.world.machines[`f1-${missing}`]?.power, "running");
  assert.deepEqual(startsOfOthers(group, missing), before, "the others were not touched");
  const state = await group.until("whole", (one) => !one.conditions.includes("Partial"));
  assert.deepEqual([...(state.replicaMachines?.running ?? [])].sort(), [...NAMES].sort());
  // They are left together, whatever point each is from.
  await group.update("undo", { operationId: "u1" });
  assert.equal((await group.ended("u1")).state, "done");
  await group.until("cleaned", () => group.sites.leftovers().length === 0);
});

test("a point that does not exist changes nothing, and a plain retry starts the machine where the others are", async () => {
  const { group, missing } = await twoOfThree();
  await group.update("retryMembers", { operationId: "r1", machine: missing, point: "@bad" });
  assert.equal((await group.ended("r1")).fault?.code, "POINT_NOT_FOUND");
  assert.deepEqual(group.sites.world.takes, {});
  await group.update("retryMembers", { operationId: "r2" });
  const operation = await group.ended("r2");
  assert.equal(operation.state, "done");
  assert.deepEqual(
    operation.steps.map(({ name }) => name),
    [...MOVE_STEPS["retry-member"]],
  );
});

test("a retry that ends half-way to another point starts nothing on it, and the next one finishes that first", async () => {
  const { group, missing, good } = await twoOfThree();
  group.sites.fail({
    method: "masterTarget.takePoint",
    at: 2,
    times: 1,
    when: "before",
    fault: new Fault("KEY_MISSING", "No key"),
  });
  await group.update("retryMembers", { operationId: "r1", machine: missing, point: "@good" });
  assert.equal((await group.ended("r1")).fault?.code, "KEY_MISSING");
  assert.equal(group.sites.world.takes[missing]?.done, false);
  assert.equal(group.sites.world.machines[`f1-${missing}`], undefined, "there is no machine to start");
  assert.ok((await group.state()).conditions.includes("Partial"));
  await group.update("retryMembers", { operationId: "r2" });
  const operation = await group.ended("r2");
  assert.deepEqual([operation.fault, operation.otherPoints], [undefined, { [missing]: good }]);
  assert.equal(group.sites.world.machines[`f1-${missing}`]?.power, "running");
});

test("a retry that is terminated half-way is taken up by the next one", async () => {
  const { group, missing } = await twoOfThree();
  group.sites.fail({
    method: "masterTarget.takePoint",
    at: 2,
    times: 1_000,
    when: "before",
    fault: new Fault("STORE_UNAVAILABLE", "Not now"),
  });
  const { workflowId } = await group.update("retryMembers", { operationId: "r1", machine: missing, point: "@good" });
  await group.until("half-way", () => group.sites.world.takes[missing]?.done === false);
  await harness.temporal.client.workflow.getHandle(workflowId).terminate("by a test");
  assert.equal((await group.ended("r1")).fault?.code, "INTERRUPTED");
  group.sites.mend();
  await group.update("retryMembers", { operationId: "r2" });
  assert.equal((await group.ended("r2")).state, "done");
  assert.equal(group.sites.world.takes[missing]?.done, true);
  assert.equal(group.sites.world.machines[`f1-${missing}`]?.power, "running");
});

test("whichever reply is lost, a retry with another point ends as if nothing had happened", async () => {
  const { group, missing } = await twoOfThree();
  group.sites.loseFirstReplies();
  await group.update("retryMembers", { operationId: "r1", machine: missing, point: "@good" });
  assert.equal((await group.ended("r1", 60_000)).fault, undefined);
  assert.equal(group.sites.world.takes[missing]?.done, true);
  assert.equal(group.sites.world.machines[`f1-${missing}`]?.power, "running");
});

test("a machine that ran, and is off, can go on from another point too", async () => {
  const { group, missing, good } = await twoOfThree();
  await group.update("retryMembers", { operationId: "r1" });
  assert.equal((await group.ended("r1")).state, "done");
  // Until it has been looked at, a machine that is off is one that the target has lost, and is started.
  await group.until("watched", (state) => state.replica !== undefined && state.replicaMachines?.running.length === 3);
  group.sites.goesOff(`f1-${missing}`, "told");
  await group.until("seen off", (state) => state.replicaMachines?.off.includes(missing) === true);
  await group.update("retryMembers", { operationId: "r2", machine: missing, point: good });
  assert.equal((await group.ended("r2")).fault, undefined);
  const state = await group.until("on again", (one) => one.replicaMachines?.off.length === 0);
  assert.ok(!state.conditions.includes("Partial"));
});
