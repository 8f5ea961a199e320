/** What a cycle is worth, and what happens to open cycles after the target was asked. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isPoint, reconcile, type OpenCycle, type StoredTail, type TrackedDisk } from "#model/cycle-rules.ts";

const disk = (diskId: string, more: Partial<TrackedDisk> = {}): TrackedDisk => ({
  diskId,
  remainingBytes: 0,
  tracker: { bootId: "a", generation: 1 },
  ...more,
});

test("a point needs all disks swept, none swept in it, and trackers that lived through it", () => {
  const both = [disk("x"), disk("y")];
  assert.ok(isPoint(both, both, false));
  assert.ok(!isPoint(both, both, true));
  assert.ok(!isPoint(both, [disk("x"), disk("y", { remainingBytes: 4096 })], false));
  assert.ok(!isPoint([disk("x"), disk("y", { remainingBytes: 4096 })], both, false));
  assert.ok(!isPoint(both, [disk("x"), disk("y", { tracker: { bootId: "a", generation: 2 } })], false));
  assert.ok(!isPoint(both, [disk("x"), disk("y", { tracker: { bootId: "b", generation: 1 } })], false));
  assert.ok(!isPoint(both, [disk("x")], false));
  assert.ok(!isPoint([], [], false));
});

const open = (cycle: number, disks: Record<string, boolean>, commitSent = false): OpenCycle => ({
  cycle,
  commitSent,
  disks: Object.entries(disks).map(([diskId, resendable]) => ({ diskId, resendable })),
});
const tails = (values: Record<string, number>): Map<string, number> => new Map(Object.entries(values));
const stored = (values: Record<string, number>, ours = true): Map<string, StoredTail> =>
  new Map(Object.entries(values).map(([diskId, cycle]) => [diskId, { cycle, ours }]));

test("after a lost stream: what is committed stays, what can be sent again stays, the rest and all after it goes", () => {
  const ours = { lastNumber: 7, known: tails({ x: 4, y: 4 }) };
  const cycles = [open(5, { x: false, y: true }, true), open(6, { x: true }), open(7, { y: false })];
  assert.deepEqual(reconcile(cycles, { highest: 4, tails: stored({ x: 4, y: 4 }) }, ours), {
    giveUpFrom: 5,
    foreign: false,
    behind: [],
  });
  assert.deepEqual(reconcile(cycles, { highest: 5, tails: stored({ x: 5, y: 4 }) }, ours), {
    giveUpFrom: 7,
    foreign: false,
    behind: [],
  });
  assert.deepEqual(reconcile(cycles.slice(0, 2), { highest: 5, tails: stored({ x: 5, y: 5 }) }, ours), {
    giveUpFrom: undefined,
    foreign: false,
    behind: [],
  });
});

test("a number that we did not give, or a commit that we did not ask for, is someone else's", () => {
  const ours = { lastNumber: 7, known: tails({ x: 4 }) };
  assert.deepEqual(reconcile([open(5, { x: true })], { highest: 9, tails: stored({ x: 4 }) }, ours), {
    giveUpFrom: 5,
    foreign: true,
    behind: [],
  });
  assert.deepEqual(reconcile([open(5, { x: true })], { highest: 5, tails: stored({ x: 5 }) }, ours), {
    giveUpFrom: 5,
    foreign: true,
    behind: [],
  });
});

test("a commit of the same number that was not written for us is someone else's, even if we have asked for one", () => {
  const ours = { lastNumber: 7, known: tails({ x: 4, y: 4 }) };
  const cycles = [open(5, { x: true }, true), open(6, { x: true })];
  assert.deepEqual(reconcile(cycles, { highest: 5, tails: stored({ x: 5, y: 4 }, false) }, ours), {
    giveUpFrom: 5,
    foreign: true,
    behind: [],
  });
  assert.equal(reconcile(cycles, { highest: 5, tails: stored({ x: 5, y: 4 }) }, ours).foreign, false);
  assert.equal(
    reconcile(cycles, { highest: 4, tails: stored({ x: 4, y: 4 }, false) }, ours).foreign,
    false,
    "as known",
  );
});

test("a target behind what it acknowledged is named, and everything open is given up", () => {
  const ours = { lastNumber: 7, known: tails({ x: 4, y: 6 }) };
  assert.deepEqual(reconcile([open(7, { x: true })], { highest: 5, tails: stored({ x: 4, y: 5 }) }, ours), {
    giveUpFrom: 7,
    foreign: false,
    behind: ["y"],
  });
});

test("nothing is kept behind something that was given up", () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.boolean(), fc.boolean()), { maxLength: 5 }),
      fc.integer({ min: 0, max: 6 }),
      (shape, committed) => {
        const cycles = shape.map(([x, y], index) => open(index + 1, { x, y }, true));
        const { giveUpFrom } = reconcile(
          cycles,
          { highest: committed, tails: stored({ x: committed, y: committed }) },
          { lastNumber: 6, known: new Map() },
        );
        const kept = cycles.filter((cycle) => giveUpFrom === undefined || cycle.cycle < giveUpFrom);
        for (const cycle of kept) assert.ok(cycle.cycle <= committed || cycle.disks.every((one) => one.resendable));
        if (giveUpFrom !== undefined)
          assert.ok(cycles.some((cycle) => cycle.cycle === giveUpFrom && cycle.cycle > committed));
      },
    ),
  );
});
