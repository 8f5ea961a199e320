import assert from "node:assert/strict";
import { test } from "node:test";
import { loadShell, runHistory, type Shell } from "./collected-disk.ts";
import { copyChanged, type Mutation } from "./mutations.ts";

const SEED = Number(process.env["LEEWARD_SEED"] ?? 20261123);
const HISTORIES = Number(process.env["LEEWARD_HISTORIES"] ?? 40);
/** Fewer histories are run on a machine that is slow; more only when they are asked for. */
const BUDGET_MS = process.env["LEEWARD_HISTORIES"] === undefined ? 25_000 : Number.POSITIVE_INFINITY;
const LEAST = 8;

test("Nothing live is deleted by the real collector: branches, pins, lost and late requests, kills at any await, several at once", async (context) => {
  const shell = await loadShell();
  const until = performance.now() + BUDGET_MS;
  let [count, deleted, floors, read] = [0, 0, 0, 0];
  for (; count < HISTORIES && (count < LEAST || performance.now() < until); count++) {
    try {
      const outcome = await runHistory(SEED + count, shell);
      deleted += outcome.deleted;
      floors += outcome.floors;
      read += outcome.read;
      assert.equal(outcome.left, 0, "garbage is left when nobody disturbs");
    } catch (error) {
      throw new Error(`History ${SEED + count}: ${error instanceof Error ? error.message : String(error)}`, {
        cause: error,
      });
    }
  }
  context.diagnostic(
    `seed ${SEED}: ${count} histories, ${deleted} objects deleted, ${floors} floors, ${read} commits read block by block`,
  );
  assert.ok(
    deleted > 5 * count && floors > count / 2,
    `${deleted} objects deleted, ${floors} floors in ${count} histories`,
  );
});

const ROOTS = ["collector.ts", "collection-listing.ts", "disk-ledger.ts", "anchor-maker.ts", "image.ts"];

test("Without condemnation before deletion, something live is lost", async (context) => {
  const changes: Mutation["changes"] = [
    {
      file: "collector.ts",
      find: "const sha256 = await buryTombstone(disk, effect.condemned);",
      replace:
        "const sha256 = await buryTombstone(disk, effect.condemned);\n          await remove(effect.condemned.keys);",
    },
  ];
  await using copy = await copyChanged(ROOTS, changes);
  context.diagnostic(await firstLoss(await loadShell(copy.folder)));
});

async function firstLoss(shell: Shell): Promise<string> {
  for (let number = 0; number < 60; number++) {
    try {
      await runHistory(SEED + number, shell);
    } catch (error) {
      return `after ${number + 1} histories: ${error instanceof Error ? error.message : String(error)}`;
    }
  }
  return assert.fail("60 histories without it, and nothing was lost");
}
