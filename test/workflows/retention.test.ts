import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { ensureRetentionSchedules } from "../../src/main/retention-schedule.ts";
import { retentionId } from "../../src/workflows/messages.ts";
import { TARGET } from "../support/fake-sites.ts";
import { openHarness, type Harness } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

test("A site has one schedule of expiry, which a worker's start leaves as a person has set it; a round asks the site's master target once", async () => {
  await harness.world();
  const { client } = harness.temporal;
  await ensureRetentionSchedules(client, [TARGET], silentLog);
  const schedule = client.schedule.getHandle(retentionId(TARGET));
  await schedule.pause("a person looks first");
  await ensureRetentionSchedules(client, [TARGET], silentLog);
  const { state, policies, spec } = await schedule.describe();
  assert.equal(state.paused, true);
  assert.deepEqual([policies.overlap, policies.catchupWindow, policies.pauseOnFailure], ["SKIP", 600_000, false]);
  assert.equal(spec.intervals?.[0]?.every, 3_600_000);
  assert.equal(spec.jitter, 300_000);

  await schedule.trigger();
  let found: string | undefined;
  for (let tries = 0; tries < 200 && found === undefined; tries++) {
    found = (await schedule.describe()).info.recentActions[0]?.action.workflow.workflowId;
    if (found === undefined) await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.ok(found !== undefined && found.startsWith(retentionId(TARGET)), `started: ${found}`);
  assert.deepEqual(await client.workflow.getHandle(found).result(), []);
  await schedule.delete();
});
