import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Fault } from "#model/fault.ts";
import type { GroupState } from "../../src/workflows/messages.ts";
import { SOURCE, TARGET } from "../support/fake-sites.ts";
import { openHarness, type Harness, type TestGroup } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

const SHORT = { windowMs: 500, answerMs: 500 } as const;
const CHANGE = { operationId: "c1", point: "@good" } as const;

/** Failed over to the newest point; an older one is called "good". */
async function failedOver(options: { readonly machineNames?: readonly string[] } = {}): Promise<TestGroup> {
  const group = await harness.world(options);
  await group.protected(SHORT);
  await group.update("bookmark", { operationId: "b1", name: "good" });
  const { barriers } = group.sites.world;
  const good = barriers.length;
  await group.until("newer points", () => barriers.length > good);
  await group.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  assert.equal((await group.ended("f1")).state, "done");
  await group.until("watched", (state) => state.replica !== undefined);
  return group;
}

const healthy = async (group: TestGroup, what: string): Promise<GroupState> =>
  await group.until(
    what,
    (state) => state.phase === "failed-over" && !state.health.some((reason) => reason.level === "critical"),
  );

function assertUnchanged(group: TestGroup, where: string): void {
  const { world } = group.sites;
  assert.equal(world.machines["f1-web"]?.power, "running", where);
  assert.equal(world.exports["f1"]?.open, true, where);
  assert.equal(world.claims.branch, "branch-f1", where);
  assert.deepEqual(group.sites.leftovers().toSorted(), ["export f1", "machine f1-web"], where);
}

test("change point: current writes become a kept branch, and the group runs on from the other point", async () => {
  const group = await failedOver();
  const { world } = group.sites;
  const good = world.barriers.find((one) => one.name === "good")!;
  const started = await group.update("changePoint", CHANGE);
  assert.deepEqual([started.epoch, started.setsAside.branch], [2, "branch-f1"]);
  const operation = await group.ended("c1");
  assert.deepEqual(operation.fault, undefined);
  assert.deepEqual(
    operation.steps.map((step) => `${step.name}: ${step.state}`),
    [
      "choose point: done",
      "guard: done",
      "stop machines: done",
      "last commit: done",
      "open disks: done",
      "create machines: done",
      "start machines: done",
      "remove old machines: done",
      "verify: done",
    ],
  );
  assert.match(operation.steps[3]?.detail ?? "", /^sets aside .*, as branch branch-f1, newest point /);
  assert.ok(operation.pointId?.endsWith(good.barrier.toString(16)));
  const state = await healthy(group, "on the other point");
  assert.deepEqual([state.branch, state.epoch, state.activeSite], ["branch-c1", 2, TARGET]);
  assert.deepEqual(group.sites.leftovers().toSorted(), ["export c1", "machine c1-web"]);
  assert.equal(world.claims.epoch, 2);
  assert.equal(world.forks["branch-c1"]?.barrier, good.barrier);
  assert.deepEqual(await group.update("changePoint", CHANGE), started);

  // Back to what was set aside, by the id of its newest point; and from there home, on the source's branch.
  const kept = (await harnessPoints(group)).findLast((one) => one.branch === "branch-f1")!;
  await group.update("changePoint", { operationId: "c2", point: kept.id });
  assert.equal((await group.ended("c2")).state, "done");
  assert.equal(world.forks["branch-c2"]?.parent, "branch-f1");
  await healthy(group, "on the point of the branch");
  await group.update("undo", { operationId: "u1" });
  assert.equal((await group.ended("u1")).state, "done");
  const home = await group.until("home", (one) => one.phase === "protected" && one.progress?.state === "live");
  assert.deepEqual([home.branch, home.activeSite, world.claims.branch], ["root", SOURCE, "root"]);
  assert.deepEqual(group.sites.leftovers(), []);
});

async function harnessPoints(group: TestGroup) {
  const points = await group.sites.dependencies.masterTarget(TARGET).listPoints({ groupId: group.groupId });
  return points
    .map((point) => ({
      id: point.id,
      branch: group.sites.world.barriers.find((one) => one.barrier === point.barrier)!.branch,
    }))
    .toReversed();
}

test("a point that is not there changes nothing; latest is the source's, not what is being left", async () => {
  const group = await failedOver();
  const calls = group.sites.calls.length;
  await group.update("changePoint", { operationId: "c0", point: "@bad" });
  const failed = await group.ended("c0");
  assert.equal(failed.fault?.code, "POINT_NOT_FOUND");
  assert.ok(!group.sites.calls.slice(calls).includes("hypervisor.shutdown"));
  assertUnchanged(group, "no such point");
  assert.equal((await group.refused(group.update("changePoint", { operationId: "c9", point: "" }))).code, "USAGE");
  await group.update("changePoint", { operationId: "c1", point: "latest" });
  assert.equal((await group.ended("c1")).state, "done");
  assert.equal(group.sites.world.forks["branch-c1"]?.parent, "root");
});

test("change point: fail every step in turn; the old machines run on, or the new ones do", async () => {
  for (let n = 1; ; n += 1) {
    const group = await failedOver();
    const fault = new Fault("OPERATION_FAILED", `Step ${n} fails`);
    group.sites.fail({ at: n, times: 1, when: n % 2 === 0 ? "after" : "before", fault });
    const before = group.sites.calls.length;
    await group.update("changePoint", CHANGE);
    const operation = await group.ended("c1");
    const where = `step ${n}: ${group.sites.calls.slice(before).join(", ")}`;
    await healthy(group, where);
    if (operation.state !== "done") {
      assert.equal(operation.fault?.message, `Step ${n} fails`, where);
      assertUnchanged(group, where);
      continue;
    }
    const wanted = ["export c1", "machine c1-web"].join();
    await group.until(where, () => group.sites.leftovers().toSorted().join() === wanted);
    if (operation.steps.every((step) => !/fails/.test(step.detail ?? ""))) {
      assert.ok(n > 5, `only ${n} steps were tried`);
      return;
    }
  }
});

test("change point: whichever reply is lost, the call is repeated and it ends as if nothing had happened", async () => {
  const group = await failedOver({ machineNames: ["web", "db"] });
  group.sites.loseFirstReplies();
  await group.update("changePoint", CHANGE);
  const operation = await group.ended("c1", 60_000);
  assert.deepEqual(operation.fault, undefined);
  assert.deepEqual(group.sites.leftovers().toSorted(), ["export c1", "machine c1-db", "machine c1-web"]);
});

test("one member that does not start at the other point leaves the others up; terminated before the start, the old ones come back", async () => {
  const partial = await failedOver({ machineNames: ["web", "db"] });
  const noBoot = new Fault("VERIFICATION_FAILED", "No boot device");
  partial.sites.fail({ method: "hypervisor.start", at: 1, times: 1, when: "before", fault: noBoot });
  await partial.update("changePoint", CHANGE);
  assert.equal((await partial.ended("c1")).state, "done");
  const state = await partial.state();
  assert.ok(state.health.some((reason) => reason.code === "MEMBER_NOT_STARTED"));
  assert.equal(state.operations[0]?.machines?.length, 1);

  const group = await failedOver();
  const busy = new Fault("HYPERVISOR_UNAVAILABLE", "Not now");
  group.sites.fail({ method: "hypervisor.createMachine", at: 1, times: 5, when: "after", fault: busy });
  const before = group.sites.calls.filter((call) => call === "hypervisor.createMachine").length;
  const { workflowId } = await group.update("changePoint", CHANGE);
  await group.until(
    "creating",
    () => group.sites.calls.filter((call) => call === "hypervisor.createMachine").length > before,
  );
  await harness.temporal.client.workflow.getHandle(workflowId).terminate("by a test");
  assert.equal((await group.ended("c1")).fault?.code, "INTERRUPTED");
  await group.until("the old machine", () => group.sites.world.machines["f1-web"]?.power === "running");
  await group.until("cleaned", () => group.sites.leftovers().length === 2);
  await healthy(group, "after the termination");
  assertUnchanged(group, "after the termination");
});

test("a member that did not start is started later beside the others; or the group goes on without it", async () => {
  const group = await harness.world({ machineNames: ["web", "db", "mail"] });
  await group.protected(SHORT);
  const noBoot = new Fault("VERIFICATION_FAILED", "No boot device");
  group.sites.fail({ method: "hypervisor.start", at: 1, times: 2, when: "before", fault: noBoot });
  const lost = { mode: "unplanned", point: "latest", sourceLost: true } as const;
  await group.update("failover", { operationId: "f1", ...lost });
  assert.equal((await group.ended("f1")).machines?.length, 1);
  const { machines } = group.sites.world;
  const missing = ["web", "db", "mail"].filter((name) => machines[`f1-${name}`]?.power !== "running");
  const running = ["web", "db", "mail"].find((name) => !missing.includes(name));
  const [first = "", second = ""] = missing;
  const partial = await group.state();
  assert.deepEqual(partial.allowedOperations, ["change-point", "commit", "undo", "retry-member", "skip-member"]);
  const wrong = group.update("retryMembers", { operationId: "r0", machine: running });
  assert.equal((await group.refused(wrong)).code, "NOT_FOUND");

  const started = await group.update("retryMembers", { operationId: "r1", machine: first });
  assert.equal(started.workflowId, `group/${group.groupId}/retry/r1`);
  assert.equal((await group.ended("r1")).state, "done");
  assert.equal(machines[`f1-${first}`]?.power, "running");
  assert.equal(machines[`f1-${second}`]?.power, "off");
  assert.ok((await group.state()).conditions.includes("Partial"));

  group.sites.fail({ method: "hypervisor.start", at: 1, times: 1, when: "before", fault: noBoot });
  await group.update("retryMembers", { operationId: "r2" });
  assert.equal((await group.ended("r2")).fault?.code, "VERIFICATION_FAILED");
  await group.update("skipMembers", { operationId: "s1" });
  const skipped = await group.state();
  assert.ok(!skipped.health.some((reason) => reason.code === "MEMBER_NOT_STARTED"));
  assert.equal((await group.refused(group.update("retryMembers", { operationId: "r3" }))).code, "REFUSED");
  // They are left together, the missing one too: all are gone before the source goes on.
  await group.update("undo", { operationId: "u1" });
  assert.equal((await group.ended("u1")).state, "done");
  await group.until("cleaned", () => group.sites.leftovers().length === 0);
});
