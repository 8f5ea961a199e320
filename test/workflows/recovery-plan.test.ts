/** Runs of recovery plans: order, questions, failures, cancellation, and that nothing is left behind. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { isFault, type FaultCode } from "#model/fault.ts";
import { TARGET } from "../support/fake-sites.ts";
import { openPlanHarness, type PlanHarness, type PlanWorld } from "../support/plan-harness.ts";

let harness: PlanHarness;
before(async () => {
  harness = await openPlanHarness();
});
after(async () => await harness.stop());

const isCode = (code: FaultCode) => (error: unknown) => isFault(error, code);

const PLAN = readFileSync(new URL("../support/plan-scene.yaml", import.meta.url), "utf8");

const steps = (operation: Awaited<ReturnType<PlanWorld["state"]>>): readonly string[] =>
  operation.steps.map(({ name, state }) => `${name.replace(/-[0-9a-f]{6}(?=$|\/)/, "")}: ${state}`);

test("unplanned: boot groups in order, an approval that waits over a restart of the workers, and a record of it all", async () => {
  const world = await harness.world(["db", "app"]);
  const { db, app } = world.groups;
  const run = await world.start(PLAN, "unplanned");
  const waiting = await world.until(run, "asks", ({ steps: all }) => all.some(({ choices }) => choices !== undefined));
  assert.match(waiting.waitsFor ?? "", /a person: approve or reject front\/post\/sure/);
  assert.equal((await db!.state()).phase, "failed-over");
  assert.equal((await app!.state()).phase, "failed-over");
  assert.deepEqual(world.done, ["data/pre/stop"]);
  const began = (group: string) => waiting.steps.find(({ name }) => name.endsWith(group))?.startedAtMs ?? 0;
  const checked = waiting.steps.find(({ name }) => name.endsWith("check-1"))?.endedAtMs ?? Infinity;
  assert.ok(began(app!.groupId) >= checked, "the second boot group begins when the first is ready");

  await harness.restart();
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  const still = await world.state(run);
  assert.equal(still.state, "running", "time decides nothing");
  await assert.rejects(world.decide(run, "retry", "front/post/sure"), isCode("REFUSED"));
  await assert.rejects(world.decide(run, "approve", "data/pre/stop"), isCode("REFUSED"));
  await world.decide(run, "approve", "front/post/sure", { id: "d1", note: "the till works" });
  await world.decide(run, "approve", "front/post/sure", { id: "d1", note: "the till works" }); // A repeat, after a lost reply.
  const ended = await world.ended(run);
  assert.equal(ended.state, "done", JSON.stringify(ended.fault));
  assert.ok(ended.steps.every(({ state }) => state === "done"));
  assert.deepEqual(world.done, ["data/pre/stop", "front/post/open", "data/pre/stop cleanup"]);
  const [report] = world.reports();
  assert.equal(report?.state, "done");
  assert.deepEqual(
    report?.decisions.map(({ step, decision, by, note }) => [step, decision, by, note]),
    [["front/post/sure", "approve", "alice", "the till works"]],
  );
  assert.ok((report?.rtoMs ?? 0) > 0 && (report?.rpoMs ?? -1) >= 0);
  assert.equal(report?.groups.length, 2);
  await harness.temporal.client.workflow.getHandle(`${ended.workflowId}/janitor`).result();
});

test("a test goes back whole: machines, exports, and what its actions did, newest first", async () => {
  const world = await harness.world(["db", "app"]);
  const run = await world.start(PLAN, "test");
  const ended = await world.ended(run);
  assert.equal(ended.state, "done", JSON.stringify(ended, null, 1));
  assert.deepEqual(world.done, [
    "data/pre/stop",
    "front/post/open",
    "front/post/open undo",
    "data/pre/stop undo",
    "data/pre/stop cleanup",
  ]);
  assert.deepEqual(world.leftovers(), []);
  for (const group of Object.values(world.groups)) {
    const state = await group.state();
    assert.deepEqual([state.phase, state.conditions], ["protected", []]);
  }
  assert.deepEqual(
    world.reports().map(({ mode, state, leftOut }) => [mode, state, leftOut.map(({ step }) => step)]),
    [["test", "done", ["front/post/sure"]]],
  );
});

test("a step that fails asks; retried it goes on, skipped the run goes on without it, and who decided stands in the record", async () => {
  const world = await harness.world(["db", "app"]);
  world.failAction({ name: "data/pre/stop#", at: 1, times: 2 });
  world.silent.add(0);
  const run = await world.start(PLAN.replace("- { name: stop,", "- { name: stop, retries: 1,"), "test");
  await world.until(
    run,
    "asks for stop",
    ({ waitsFor }) => /data\/pre\/stop/.test(waitsFor ?? "") && /retry/.test(waitsFor ?? ""),
  );
  assert.equal(world.called.length, 2, "once by itself");
  await world.decide(run, "retry", "data/pre/stop");
  const asking = await world.until(run, "asks for the check", ({ steps: all }) =>
    all.some(({ name, choices }) => name.endsWith("check-1") && choices !== undefined),
  );
  const check = asking.steps.find(({ choices }) => choices !== undefined)!;
  assert.match(check.detail ?? "", /VERIFICATION_FAILED: Not ready within 2 s/);
  world.silent.delete(0);
  await world.decide(run, "skip", check.name);
  const ended = await world.ended(run);
  assert.equal(ended.state, "done");
  assert.equal(ended.steps.find(({ name }) => name === check.name)?.state, "skipped");
  const [report] = world.reports();
  assert.deepEqual(
    report?.decisions.map(({ decision }) => decision),
    ["retry", "skip"],
  );
  assert.equal(report?.steps.find(({ id }) => id === "data/pre/stop")?.attempts, 3);
  assert.deepEqual(world.leftovers(), []);
});

test("cancelled, a planned run goes back: groups undone and actions too, newest first", async () => {
  const world = await harness.world(["db", "app"]);
  const run = await world.start(PLAN, "planned");
  const asking = await world.until(run, "asks", ({ steps: all }) => all.some(({ choices }) => choices !== undefined));
  await world.runs.cancel(asking.plan!.name, run);
  const ended = await world.ended(run);
  assert.equal(ended.state, "cancelled");
  assert.deepEqual(steps(ended).filter((line) => line.endsWith("undone")).length, 3, JSON.stringify(steps(ended)));
  assert.deepEqual(world.done, ["data/pre/stop", "data/pre/stop undo", "data/pre/stop cleanup"]);
  for (const group of Object.values(world.groups)) {
    await group.until("protected", ({ phase }) => phase === "protected");
    assert.equal(group.sites.world.machines[`source-${group.groupId}`]?.power, "running");
  }
  assert.deepEqual(world.leftovers(), []);
  assert.equal(world.reports()[0]?.state, "cancelled");
});

test("an approval that is refused ends the run; in an outage what has come back stays up", async () => {
  const world = await harness.world(["db", "app"]);
  const run = await world.start(PLAN, "unplanned");
  await world.until(run, "asks", ({ steps: all }) => all.some(({ choices }) => choices !== undefined));
  await world.decide(run, "reject", "front/post/sure", { note: "the till is empty" });
  const ended = await world.ended(run);
  assert.equal(ended.state, "failed");
  assert.match(ended.fault?.message ?? "", /rejected by alice: the till is empty/);
  assert.deepEqual(world.done, ["data/pre/stop", "data/pre/stop cleanup"]);
  assert.equal((await world.groups["db"]!.state()).phase, "failed-over");
  assert.equal(world.groups["db"]!.sites.world.claims.activeSite, TARGET);
});

test("terminated in a test, its janitor takes everything away; terminated in a real move, it takes away what was lent, and no machine", async () => {
  for (const mode of ["test", "unplanned"] as const) {
    const world = await harness.world(["db", "app"]);
    world.silent.add(0);
    const run = await world.start(PLAN.replaceAll("within: 2s", "within: 10m"), mode);
    const state = await world.until(run, "checks", ({ steps: all }) =>
      all.some(({ name, state: one }) => name.endsWith("check-1") && one === "running"),
    );
    const { workflow } = harness.temporal.client;
    await workflow.getHandle(state.workflowId).terminate("by a test");
    const result = (await workflow.getHandle(`${state.workflowId}/janitor`).result()) as {
      paid: number;
      left: readonly string[];
    };
    assert.deepEqual(result, { paid: mode === "test" ? 3 : 1, left: [] }, mode);
    const undone = mode === "test" ? ["data/pre/stop undo", "data/pre/stop cleanup"] : ["data/pre/stop cleanup"];
    assert.deepEqual(world.done, ["data/pre/stop", ...undone]);
    if (mode === "test") assert.deepEqual(world.leftovers(), []);
    else assert.equal((await world.groups["db"]!.state()).phase, "failed-over");
  }
});

test("a real failover goes first: the test yields, and takes the rest away", async () => {
  const world = await harness.world(["db", "app"]);
  world.silent.add(0);
  const run = await world.start(PLAN.replaceAll("within: 2s", "within: 10m"), "test");
  await world.until(run, "checks", ({ steps: all }) =>
    all.some(({ name, state }) => name.endsWith("check-1") && state === "running"),
  );
  const { db, app } = world.groups;
  await db!.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  const ended = await world.ended(run);
  assert.equal(ended.state, "failed");
  assert.equal(ended.fault?.code, "INTERRUPTED");
  assert.match(ended.fault?.message ?? "", /ended before the plan did: a failover of the group began/);
  assert.equal((await db!.ended("f1")).state, "done");
  assert.deepEqual(app!.sites.leftovers(), []);
  assert.deepEqual(db!.sites.leftovers().toSorted(), ["export f1", `machine f1-${db!.groupId}`]);
});

test("over its budget: a person is asked while it goes on, and what is stopped is stopped before anything else begins", async () => {
  const world = await harness.world(["db", "app"]);
  world.hanging.add("data/pre/stop#1");
  const run = await world.start(PLAN.replace("- { name: stop,", "- { name: stop, budget: 500ms,"), "test");
  const asking = await world.until(run, "asks", ({ steps: all }) =>
    all.some(({ choices }) => choices?.includes("reject") === true),
  );
  assert.match(asking.steps[0]?.detail ?? "", /over its budget of 500 ms/);
  await world.decide(run, "reject", "data/pre/stop");
  await world.until(run, "asks again", ({ steps: all }) => all[0]?.choices?.includes("retry") === true);
  await world.decide(run, "retry", "data/pre/stop");
  const ended = await world.ended(run);
  assert.equal(ended.state, "done", JSON.stringify(ended.fault));
  assert.equal(world.reports()[0]?.steps[0]?.attempts, 2);
});

test("every first reply is lost: nothing is done twice", async () => {
  const world = await harness.world(["db", "app"]);
  for (const group of Object.values(world.groups)) group.sites.loseFirstReplies();
  const run = await world.start(PLAN, "test");
  const ended = await world.ended(run, 120_000);
  assert.equal(ended.state, "done", JSON.stringify(ended, null, 1));
  assert.equal(world.done.length, 5);
  assert.equal(world.reports().length, 1);
  assert.deepEqual(world.leftovers(), []);
});

test("whatever step of a test fails for good and is given up, the world is clean afterwards", async () => {
  const failing = ["data/pre/stop#", "hypervisor.start", "masterTarget.openExport", "check", "front/post/open#"];
  for (const what of failing) {
    const world = await harness.world(["db", "app"]);
    if (what === "check") world.silent.add(0);
    else if (what.includes("/")) world.failAction({ name: what, at: 1, times: 9 });
    else {
      const { Fault } = await import("#model/fault.ts");
      const fault = new Fault("VERIFICATION_FAILED", "No boot device");
      world.groups["app"]!.sites.fail({ method: what, at: 1, times: 9, when: "before", fault });
    }
    const aborting = PLAN.replaceAll("script: go,", "script: go, onFailure: abort,")
      .replaceAll("within: 2s }", "within: 1s, onFailure: abort }")
      .replace("group: $app", "group: $app\n        onFailure: abort");
    const run = await world.start(aborting, "test");
    const ended = await world.ended(run);
    assert.equal(ended.state, "failed", what);
    assert.deepEqual(world.leftovers(), [], what);
    assert.ok(world.done.filter((one) => one.endsWith(" undo")).length <= 2);
    assert.ok(world.done.includes("data/pre/stop cleanup"), `${what}: ${world.done.join(", ")}`);
    assert.equal(world.reports()[0]?.state, "failed");
  }
});
