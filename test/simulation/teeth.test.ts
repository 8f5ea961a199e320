/** The simulation finds what each safety step is for: with the step removed, some schedule breaks. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { MUTATIONS, mutate } from "./mutations.ts";
import { loadProtocol, type Protocol } from "./protocol.ts";
import { runSchedules } from "./schedule.ts";
import type { WorldOptions } from "./world.ts";

Error.stackTraceLimit = 0;

const most = Number(process.env["LEEWARD_SCHEDULES"] ?? 30_000);
const first = Number(process.env["LEEWARD_SEED"] ?? 1);

for (const mutation of MUTATIONS) {
  test(`the simulation misses ${mutation.removed}`, async (context) => {
    await using mutant = await mutate(mutation);
    context.diagnostic(await firstViolation(mutant.protocol, mutation.where));
  });
}

test("the simulation misses a store whose create-only PUT is atomic", async (context) => {
  context.diagnostic(await firstViolation(await loadProtocol(), { racyCreate: true }));
});

test("the simulation misses a collector that spares the newest object of a branch", async (context) => {
  const where = { collects: true, stillness: 0.7, storm: 600, sparesNothing: true };
  context.diagnostic(await firstViolation(await loadProtocol(), where));
});

async function firstViolation(protocol: Protocol, options: WorldOptions = {}): Promise<string> {
  let count = 0;
  const seeds = Array.from({ length: most }, (_, index) => first + index);
  for await (const { seed, violations } of runSchedules(protocol, seeds, options)) {
    count++;
    if (violations.length > 0) return `after ${count} schedules, seed ${seed}: ${violations[0]}`;
  }
  return assert.fail(`${most} schedules without it, and nothing broke`);
}
