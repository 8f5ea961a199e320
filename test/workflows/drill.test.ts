/** Drills: by a Schedule, with nobody to ask, always cleaned up, and recorded in a chain. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { Client } from "@temporalio/client";
import { isFault } from "#model/fault.ts";
import { verifyChain } from "#model/plan/run-chain.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { createDrillSchedules } from "../../src/api/plan/drill-schedules.ts";
import { TARGET } from "../support/fake-sites.ts";
import { openPlanHarness, type PlanHarness, type PlanWorld } from "../support/plan-harness.ts";

let harness: PlanHarness;
before(async () => {
  harness = await openPlanHarness();
});
after(async () => await harness.stop());

const PLAN = readFileSync(new URL("../support/plan-scene.yaml", import.meta.url), "utf8");
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

function open(world: PlanWorld) {
  const client = new Client({ connection: harness.temporal.connection });
  const schedules = createDrillSchedules({ client, clock: systemClock, address: harness.temporal.address });
  const start = { plan: world.planName, site: TARGET, by: "tester" };
  const trigger = async (): Promise<void> => await client.schedule.getHandle(`drill/${world.planName}`).trigger("SKIP");
  const reports = async (count: number) => {
    for (let tries = 0; world.reports().length < count; tries += 1) {
      if (tries > 600) throw new Error(`Only ${world.reports().length} records of ${count}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return world.reports();
  };
  return { client, schedules, start, trigger, reports };
}

test("a schedule runs the plan in test mode: clean afterwards, recorded in a chain, and one drill at a time", async () => {
  const world = await harness.world(["db", "app"]);
  const { client, schedules, start, trigger, reports } = open(world);
  world.drillOf(PLAN);
  await schedules.put(world.planName, { cron: "0 3 1 1 *" }, start);
  await schedules.put(world.planName, { cron: "0 4 1 1 *", timeZone: "Europe/Berlin", jitterMs: 0, now: true }, start);
  const described = await client.schedule.getHandle(`drill/${world.planName}`).describe();
  assert.equal(described.policies.overlap, "SKIP");
  assert.equal(described.policies.catchupWindow, 3_600_000);
  try {
    await reports(1); // It was told to begin one now.
    world.silent.add(0);
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    await trigger();
    const [first, second] = await reports(2);
    assert.deepEqual([first?.state, first?.drill, first?.by], ["done", true, "tester"]);
    assert.equal(second?.state, "failed", "a check that fails asks nobody: the drill has found something");
    assert.equal(second?.fault?.code, "VERIFICATION_FAILED");
    assert.deepEqual(world.leftovers(), []);
    const kept = [...(world.groups["db"]!.sites.world.kept.get(`runs/${world.planName}`)?.entries() ?? [])];
    const verdict = verifyChain(
      kept.map(([number, { record }]) => ({ number, record })),
      sha256,
    );
    assert.deepEqual([verdict.whole, verdict.from], [true, 1]);
    const listed = await schedules.list();
    assert.deepEqual(
      listed.filter(({ plan }) => plan === world.planName).map(({ cron, paused }) => [cron, paused]),
      [["0 4 1 1 *", false]],
    );
  } finally {
    assert.equal(await schedules.remove(world.planName), true);
  }
  assert.equal(await schedules.remove(world.planName), false);
});

test("a drill that cannot begin leaves a record of what blocks it, and makes nothing", async () => {
  const world = await harness.world(["db", "app"]);
  const { schedules, start, trigger, reports } = open(world);
  world.drillOf(PLAN.replaceAll("port: 80 ", "port: 81 "));
  await schedules.put(world.planName, { cron: "0 3 1 1 *" }, start);
  try {
    await trigger();
    const [report] = await reports(1);
    assert.deepEqual([report?.state, report?.fault?.code, report?.drill], ["failed", "REFUSED", true]);
    assert.match(report?.steps.find(({ evidence }) => evidence !== undefined)?.evidence ?? "", /publishes port 81/);
    assert.deepEqual(world.called, []);
  } finally {
    await schedules.remove(world.planName);
  }
});

test("what is no cron expression is refused, and the schedule that was there stays as it was", async () => {
  const world = await harness.world(["db"]);
  const { client, schedules, start } = open(world);
  await schedules.put(world.planName, { cron: "0 3 1 1 *" }, start);
  await assert.rejects(
    schedules.put(world.planName, { cron: "every night" }, start),
    (error) => isFault(error, "USAGE") && /Expected a cron expression/.test(error.message),
  );
  // Not the list: that lags behind.
  const { state } = await client.schedule.getHandle(`drill/${world.planName}`).describe();
  assert.equal(state.note, "0 3 1 1 *");
  await schedules.remove(world.planName);
});
