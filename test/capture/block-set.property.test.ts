/** BlockSet against a Set of numbers. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { BlockSet } from "#model/block-set.ts";

// More than two chunks of 65536 blocks, and an odd end.
const SIZE = 65536 * 2 + 777;
/** Places near the ends of words and chunks, where mistakes live. */
const anyBlock = fc.oneof(
  fc.nat(SIZE - 1),
  fc.constantFrom(0, 31, 32, 63, 64, 65535, 65536, 65537, 131071, 131072, SIZE - 1),
  fc.nat(200),
);
const anyRange = fc
  .tuple(anyBlock, fc.oneof(fc.nat(70), fc.nat(SIZE)))
  .map(([start, count]) => ({ start, count: Math.min(count, SIZE - start) }));
const anyOperation = fc.record({
  kind: fc.constantFrom("add", "delete", "merge", "subtract"),
  ranges: fc.array(anyRange, { minLength: 1, maxLength: 3 }),
});

function setOf(ranges: readonly { start: number; count: number }[]): BlockSet {
  const set = new BlockSet(SIZE);
  for (const { start, count } of ranges) set.add(start, count);
  return set;
}

test("a block set does what a set of numbers does", () => {
  fc.assert(
    fc.property(
      fc.array(anyOperation, { maxLength: 8 }),
      fc.array(anyRange, { maxLength: 4 }),
      (operations, questions) => {
        const set = new BlockSet(SIZE);
        const dumb = new Uint8Array(SIZE);
        for (const { kind, ranges } of operations) {
          if (kind === "merge") set.merge(setOf(ranges));
          else if (kind === "subtract") set.subtract(setOf(ranges));
          else for (const { start, count } of ranges) set[kind](start, count);
          for (const { start, count } of ranges)
            dumb.fill(kind === "add" || kind === "merge" ? 1 : 0, start, start + count);
        }
        assert.equal(
          set.count,
          dumb.reduce((sum, bit) => sum + bit, 0),
        );
        const copy = new Uint8Array(SIZE);
        let before = -1;
        for (const run of set.runs()) {
          assert.ok(run.count > 0 && run.start > before, "runs are in order and do not touch");
          copy.fill(1, run.start, run.start + run.count);
          before = run.start + run.count;
        }
        assert.deepEqual(copy, dumb);
        const clone = set.clone();
        set.clear();
        assert.equal(set.count, 0);
        for (const { start, count } of questions) {
          const part = dumb.subarray(start, start + count);
          assert.equal(clone.intersects(start, count), part.includes(1));
          assert.equal(clone.has(start), dumb[start] === 1);
          assert.equal(clone.next(start), dumb.indexOf(1, start));
          const inside = [...clone.runs(start, start + count)].reduce((sum, run) => sum + run.count, 0);
          assert.equal(
            inside,
            part.reduce((sum, bit) => sum + bit, 0),
          );
        }
      },
    ),
    { numRuns: 300 },
  );
});

test("past the end of the disk nothing can be added, and sets of two disks do not mix", () => {
  const set = new BlockSet(100);
  set.addAll();
  assert.deepEqual([...set.runs()], [{ start: 0, count: 100 }]);
  assert.throws(() => set.add(100), RangeError);
  assert.throws(() => set.delete(50, 51), RangeError);
  assert.throws(() => set.add(-1), RangeError);
  assert.throws(() => set.merge(new BlockSet(101)), RangeError);
  assert.equal(new BlockSet(0).count, 0);
});
