/** The simulation finds what each safety step is for: with the step removed, some schedule breaks. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { MUTATIONS, mutate } from "./mutations.ts";
import type { Outcome } from "./schedule.ts";
import { runSchedulesAside } from "./schedules-aside.ts";
import type { WorldOptions } from "./world.ts";

const most = Number(process.env["LEEWARD_SCHEDULES"] ?? 30_000);
const first = Number(process.env["LEEWARD_SEED"] ?? 1);

for (const mutation of MUTATIONS) {
  test(`the simulation misses ${mutation.removed}`, async (context) => {
    await using mutant = await mutate(mutation);
    context.diagnostic(await firstViolation(mutation.where, mutant.folder));
  });
}

test("the simulation misses a store whose create-only PUT is atomic", async (context) => {
  context.diagnostic(await firstViolation({ racyCreate: true }));
});

test("the simulation misses a collector that spares the newest object of a branch", async (context) => {
  const where = { collects: true, stillness: 0.7, storm: 600, sparesNothing: true };
  context.diagnostic(await firstViolation(where));
});

async function firstViolation(options: WorldOptions = {}, folder?: URL): Promise<string> {
  let count = 0;
  let found: string | undefined;
  const seeds = Array.from({ length: most }, (_, index) => first + index);
  const see = ({ seed, violations }: Outcome): "more" | "enough" => {
    count++;
    if (violations.length === 0) return "more";
    found = `after ${count} schedules, seed ${seed}: ${violations[0]}`;
    return "enough";
  };
  await runSchedulesAside(seeds, see, { options, ...(folder && { folder }) });
  return found ?? assert.fail(`${most} schedules without it, and nothing broke`);
}
