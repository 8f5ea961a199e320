/**
 * The commit protocol against thousands of random schedules. Every run prints its seed; repeat one with
 * LEEWARD_SEED=seed LEEWARD_SCHEDULES=1, which also prints what happened.
 */
import assert from "node:assert/strict";
import { availableParallelism } from "node:os";
import { test } from "node:test";
import type { Outcome } from "./schedule.ts";
import { runSchedulesAside } from "./schedules-aside.ts";

const schedules = Number(process.env["LEEWARD_SCHEDULES"] ?? 30_000);
const first = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Date.now() / 1000));

test(`no order of lost, late and doubled requests, crashes and returning writers breaks the commit protocol (${schedules} schedules from seed ${first})`, async (context) => {
  const seeds = Array.from({ length: schedules }, (_, index) => first + index);
  const sum = { events: 0, acknowledged: 0, operations: 0, fences: 0, collections: 0 };
  let ended = 0;
  const see = (outcome: Outcome): "more" => {
    for (const name of Object.keys(sum) as (keyof typeof sum)[]) sum[name] += outcome[name];
    for (const line of outcome.trace) context.diagnostic(line);
    assert.deepEqual(
      outcome.violations,
      [],
      `seed ${outcome.seed}: repeat with LEEWARD_SEED=${outcome.seed} LEEWARD_SCHEDULES=1`,
    );
    ended++;
    return "more";
  };
  const threads = Math.min(availableParallelism(), 2); // Not more: other files are tested beside this one.
  await runSchedulesAside(seeds, see, { threads, options: { trace: schedules === 1 } });
  assert.equal(ended, schedules);
  context.diagnostic(`seed ${first}, ${schedules} schedules: ${JSON.stringify(sum)}`);
  // The worlds must be lively, or nothing was tested. (Every world has a failover, which ends many of them after a commit or two; whether
  // that is enough is what teeth.test.ts shows.)
  assert.ok(sum.acknowledged > schedules && sum.fences > schedules / 4, JSON.stringify(sum));
});
