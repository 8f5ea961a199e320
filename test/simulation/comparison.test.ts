/**
 * The order in which "the same" is right, and what each rule of it is for (src/model/comparison.ts): random schedules of a source with several cycles
 * in flight, taps that die, streams that are lost. With a rule removed, some point is wrong.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { copyChanged, type Mutation } from "./mutations.ts";
import { loadMover, MOVER_ROOTS, runCompared, type MoverModules } from "./compared-world.ts";

Error.stackTraceLimit = 0;

const count = Number(process.env["LEEWARD_SCHEDULES"] ?? 40);
const first = Number(process.env["LEEWARD_SEED"] ?? 1);
const seeds = Array.from({ length: count }, (_, index) => first + index);

for (const waits of [true, false]) {
  const how = waits ? "that waits for its commits" : "that does not wait, so that the mover's rules stand alone";
  test(`every point is the disk at its cut, for a source ${how}`, async (context) => {
    const modules = await loadMover();
    const sum = { points: 0, same: 0, refused: 0 };
    for (const seed of seeds) {
      const outcome = await runCompared(modules, seed, { waits });
      assert.equal(outcome.violation, undefined, `seed ${seed}`);
      sum.points += outcome.points;
      sum.same += outcome.same;
      sum.refused += outcome.refused;
    }
    context.diagnostic(JSON.stringify(sum));
    assert.ok(sum.points > count && sum.same > count * 5, "it compares, and makes points");
    assert.ok(waits ? sum.refused === 0 : sum.refused > 0, "only who does not wait is refused");
  });
}

const RULES: readonly (Pick<Mutation, "removed" | "changes"> & { readonly from: number })[] = [
  {
    from: 40,
    removed: "that a commit is put on what it was compared with",
    changes: [
      {
        file: "mover-disk.ts",
        find: "assertAt(current.data, request.base); // [compare base]",
        replace: "void request.base;",
      },
    ],
  },
  {
    from: 140,
    removed: "that a compared cycle without records looks where the branch is",
    changes: [
      {
        file: "mover-group.ts",
        find: "await disk?.assertStillAt(base); // [compare quiet]",
        replace: "void disk;",
      },
    ],
  },
];
/** `from`: a seed near which it shows; default of LEEWARD_SEED. */
for (const { from, removed, changes } of RULES) {
  test(`the simulation misses ${removed}`, async (context) => {
    await using copy = await copyChanged(MOVER_ROOTS, changes);
    context.diagnostic(await firstViolation(await loadMover(copy.folder), Number(process.env["LEEWARD_SEED"] ?? from)));
  });
}

async function firstViolation(modules: MoverModules, from: number): Promise<string> {
  for (let seed = from; seed < from + 5_000; seed++) {
    const { violation } = await runCompared(modules, seed, { waits: false });
    if (violation !== undefined) return `seed ${seed}: ${violation}`;
  }
  return assert.fail("5000 schedules without it, and nothing broke");
}
