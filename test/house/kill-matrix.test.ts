import assert from "node:assert/strict";
import { test } from "node:test";
import { MOVE_STEPS } from "#model/move-steps.ts";
import { readKillTable } from "../support/kill-table.ts";

test("docs/kill-matrix.md has a table for each move, with a row for each of its steps in their order, and for nothing else", () => {
  const table = readKillTable();
  assert.deepEqual([...table.keys()].sort(), Object.keys(MOVE_STEPS).sort());
  for (const [move, steps] of Object.entries(MOVE_STEPS)) {
    assert.deepEqual(
      table.get(move)?.map(({ step }) => step),
      [...steps],
      move,
    );
    for (const { step, why } of table.get(move) ?? []) assert.ok(why.length > 5, `${move}, ${step} is explained`);
  }
});
