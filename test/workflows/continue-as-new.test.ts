import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { WorkflowNotFoundError } from "@temporalio/client";
import { faultOfFailure } from "#model/failure.ts";
import { groupWorkflowId } from "../../src/workflows/messages.ts";
import { openHarness, type Harness, type TestGroup } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

/** A new run after every other window. */
const RESTLESS = { windowMs: 100, windowsPerRun: 2, answerMs: 500 } as const;

const runOf = async (group: TestGroup): Promise<string> =>
  (await harness.temporal.client.workflow.getHandle(groupWorkflowId(group.groupId)).describe()).runId;

async function newRun(group: TestGroup, before: string): Promise<void> {
  for (let tries = 0; tries < 200; tries += 1) {
    if ((await runOf(group)) !== before) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error("No new run began");
}

test("an operation that is repeated in a later run is the same operation", async () => {
  const group = await harness.world();
  await group.protected(RESTLESS);
  const before = await runOf(group);
  const first = await group.update("bookmark", { operationId: "b", name: "once" });
  await newRun(group, before);
  const cuts = Object.keys(group.sites.world.cuts).length;
  assert.deepEqual(await group.update("bookmark", { operationId: "b", name: "once" }), first);
  assert.equal(Object.keys(group.sites.world.cuts).length, cuts);
  assert.equal(group.sites.calls.filter((call) => call === "masterTarget.bookmark").length, 1);
  // Attributes and memory outlive the run.
  const description = await harness.temporal.client.workflow.getHandle(groupWorkflowId(group.groupId)).describe();
  assert.deepEqual(description.searchAttributes["LeewardPhase"], ["protected"]);
  assert.match(String(description.memo?.["summary"]), /primary → secondary/);
});

test("updates sent in a burst over many runs are each done exactly once, and none is lost", async () => {
  const group = await harness.world();
  await group.protected(RESTLESS);
  const before = await runOf(group);
  // On a slow machine two windows take longer than a few updates: the burst goes on until it has met two new runs.
  const names: string[] = [];
  const runs = new Set([before]);
  const next = (): string | undefined => {
    if ((names.length >= 24 && runs.size > 2) || names.length >= 300) return undefined;
    names.push(`mark-${names.length}`);
    return names.at(-1);
  };
  const begun = async (name: string): Promise<unknown> => {
    for (let tries = 0; ; tries += 1) {
      try {
        return await group.update("bookmark", { operationId: name, name });
      } catch (error) {
        // A run ended with the update in its hands: the same id again, as a client must.
        const again = error instanceof WorkflowNotFoundError || faultOfFailure(error)?.code === "DRAINING";
        if (!again || tries > 20) throw error;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
  };
  await Promise.all(
    Array.from({ length: 3 }, async (_, lane) => {
      for (let name = next(); name !== undefined; name = next()) {
        // Every one of them twice, as after a lost reply.
        assert.deepEqual(await begun(name), await begun(name));
        runs.add(await runOf(group));
        await new Promise((resolve) => setTimeout(resolve, 100 + 70 * lane));
      }
    }),
  );
  assert.ok(runs.size > 2, `${names.length} updates met ${runs.size} runs`);
  const kept = group.sites.world.barriers.flatMap((one) => (one.name === undefined ? [] : [one.name]));
  assert.equal(kept.length, new Set(kept).size);
  assert.equal(group.sites.calls.filter((call) => call === "masterTarget.bookmark").length, names.length);
});

test("a test failover outlives the run that started it, and is still cleaned up through the group", async () => {
  const group = await harness.world();
  await group.protected(RESTLESS);
  const before = await runOf(group);
  await group.update("testFailoverStart", { operationId: "t1", point: "latest", leaseMs: 600_000 });
  await newRun(group, before);
  await group.until("up", (state) =>
    state.operations.some(
      (one) => one.operationId === "t1" && one.steps.some((step) => step.name === "lease" && step.state === "running"),
    ),
  );
  await group.update("testFailoverCleanup", { operationId: "c1", testOperationId: "t1", force: false });
  assert.equal((await group.ended("t1")).state, "done");
  assert.equal((await group.ended("c1")).state, "done");
  assert.deepEqual(group.sites.leftovers(), []);
});

test("a failover in the middle of many runs is reported to the group", async () => {
  const group = await harness.world();
  await group.protected(RESTLESS);
  group.sites.loseSource(true);
  await group.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  assert.equal((await group.ended("f1")).state, "done");
  const before = await runOf(group);
  await newRun(group, before);
  const state = await group.until("watched", (one) => one.replica !== undefined);
  assert.equal(state.phase, "failed-over");
  assert.equal(state.epoch, 2);
});
