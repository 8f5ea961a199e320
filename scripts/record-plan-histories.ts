/** As record-histories.ts, for runs of recovery plans: `node scripts/record-plan-histories.ts`. */
import { readFileSync } from "node:fs";
import { CONTROL_QUEUE } from "../src/workflows/messages.ts";
import { PLAN_WORKFLOWS } from "../src/workflows/plan-messages.ts";
import { TARGET } from "../test/support/fake-sites.ts";
import { openPlanHarness } from "../test/support/plan-harness.ts";
import { nextNumber, recordHistories } from "./history-files.ts";

const source = readFileSync(new URL("../test/support/plan-scene.yaml", import.meta.url), "utf8");
const harness = await openPlanHarness();
try {
  const number = String(await nextNumber()).padStart(3, "0");
  for (const scene of ["test", "unplanned", "cancelled"] as const) {
    const world = await harness.world(["db", "app"]);
    world.failAction({ name: "data/pre/stop#", at: 1, times: 1 });
    const run = await world.start(source, scene === "cancelled" ? "planned" : scene);
    await world.until(run, "asks", ({ steps }) => steps[0]?.choices?.includes("retry") === true);
    await world.decide(run, "retry", "data/pre/stop");
    if (scene !== "test") {
      const { plan } = await world.until(run, "asks", ({ steps }) =>
        steps.some(({ choices }) => choices?.includes("approve")),
      );
      if (scene === "cancelled") await world.runs.cancel(plan!.name, run);
      else await world.decide(run, "approve", "front/post/sure");
    }
    const { workflowId } = await world.ended(run);
    await harness.temporal.client.workflow.getHandle(`${workflowId}/janitor`).result();
    await recordHistories(harness.temporal, workflowId, `${number}-plan-${scene}`);
  }
  const world = await harness.world(["db", "app"]);
  world.drillOf(source);
  const workflowId = `drill/${world.planName}`;
  const drill = await harness.temporal.client.workflow.start(PLAN_WORKFLOWS.drDrill, {
    workflowId,
    taskQueue: CONTROL_QUEUE,
    args: [{ plan: world.planName, site: TARGET, by: "recorder" }],
  });
  await drill.result();
  await recordHistories(harness.temporal, workflowId, `${number}-drill`);
} finally {
  await harness.stop();
}
