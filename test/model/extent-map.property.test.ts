import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  EMPTY_MAP,
  type ExtentMap,
  extentMapBuilder,
  overlay,
  overlayAll,
  overlayStack,
  runsOf,
  SOURCE_ZERO,
} from "#model/extent-map.ts";
import { arrivals, resolveArrivals } from "#model/format/arrivals.ts";
import { KIND_DELTA, KIND_SWEEP } from "#model/frame-record.ts";

const DISK = 200;
type Cell = string | undefined;

const runs = fc
  .array(fc.record({ gap: fc.nat(9), length: fc.integer({ min: 1, max: 12 }), zero: fc.boolean() }), { maxLength: 14 })
  .map((list) => {
    let at = 0;
    return list.flatMap(({ gap, length, zero }) => {
      const start = at + gap;
      at = start + length;
      return at <= DISK ? [{ start, length, zero }] : [];
    });
  });

function mapOf(list: readonly { start: number; length: number; zero: boolean }[], number: number): ExtentMap {
  const builder = extentMapBuilder();
  list.forEach((run, index) =>
    builder.push(run.start, run.length, run.zero ? SOURCE_ZERO : number, run.zero ? 0 : index),
  );
  return builder.finish();
}

function paint(cells: Cell[], map: ExtentMap): void {
  for (let index = 0; index < map.count; index++) {
    const end = map.start[index]! + map.length[index]!;
    for (let block = map.start[index]!; block < end; block++) cells[block] = `${map.source[index]}/${map.frame[index]}`;
  }
}

function cellsOf(map: ExtentMap, start = 0, length = DISK): Cell[] {
  const cells: Cell[] = [];
  let at = start;
  for (const run of runsOf(map, start, length)) {
    assert.equal(run.start, at, "runs cover without gaps");
    assert.ok(run.length > 0);
    for (let block = 0; block < run.length; block++)
      cells.push(run.source === undefined ? undefined : `${run.source}/${run.frame}`);
    at += run.length;
  }
  assert.equal(at, start + length);
  return cells;
}

test("Maps laid over each other, in any way, read like a flat array painted in order", () => {
  fc.assert(
    fc.property(fc.array(runs, { maxLength: 9 }), (history) => {
      const maps = history.map((list, number) => mapOf(list, number));
      const flat: Cell[] = Array.from({ length: DISK }, () => undefined);
      for (const map of maps) paint(flat, map);
      assert.deepEqual(cellsOf(maps.reduce(overlay, EMPTY_MAP)), flat);
      assert.deepEqual(cellsOf(overlayAll(maps)), flat);
      const stack = overlayStack();
      for (const map of maps) stack.add(map);
      assert.deepEqual(cellsOf(stack.finish()), flat);
    }),
    { numRuns: 500 },
  );
});

test("Any part of a map reads like the same part of the flat array", () => {
  fc.assert(
    fc.property(runs, fc.nat(DISK - 1), fc.nat(DISK), (list, start, length) => {
      const map = mapOf(list, 1);
      const flat: Cell[] = Array.from({ length: DISK }, () => undefined);
      paint(flat, map);
      const end = Math.min(DISK, start + length);
      assert.deepEqual(cellsOf(map, start, end - start), flat.slice(start, end));
    }),
    { numRuns: 500 },
  );
});

test("A delta wins over a sweep whatever came first, and among equals the later record wins", () => {
  const record = fc.record({
    start: fc.nat(DISK - 10),
    length: fc.integer({ min: 1, max: 10 }),
    kind: fc.constantFrom(KIND_DELTA, KIND_SWEEP),
  });
  fc.assert(
    fc.property(fc.array(record, { maxLength: 40 }), fc.array(record, { maxLength: 20 }), (first, second) => {
      const flat: Cell[] = Array.from({ length: DISK }, () => undefined);
      const parts = [first, second].map((records, ordinal) => {
        const part = arrivals();
        records.forEach((run, frame) => part.add({ ...run, source: 0, frame }));
        return { ordinal, arrivals: part };
      });
      for (const wanted of [KIND_SWEEP, KIND_DELTA]) {
        [first, second].forEach((records, ordinal) =>
          records.forEach((run, frame) => {
            if (run.kind === wanted) flat.fill(`${ordinal}/${frame}`, run.start, run.start + run.length);
          }),
        );
      }
      assert.deepEqual(cellsOf(resolveArrivals(parts)), flat);
    }),
    { numRuns: 300 },
  );
});

test("Block numbers beyond 2^32 survive", () => {
  const builder = extentMapBuilder();
  builder.push(2 ** 36 - 5, 5, 3, 4);
  const map = overlay(builder.finish(), mapOf([{ start: 7, length: 2, zero: true }], 1));
  assert.deepEqual(
    [...runsOf(map, 2 ** 36 - 6, 6)],
    [
      { start: 2 ** 36 - 6, length: 1, source: undefined, frame: 0 },
      { start: 2 ** 36 - 5, length: 5, source: 3, frame: 4 },
    ],
  );
});

test("A builder refuses runs that go back or are empty: a bug of the caller", () => {
  const builder = extentMapBuilder();
  builder.push(5, 2, 1, 1);
  assert.throws(() => builder.push(6, 1, 1, 1), RangeError);
  assert.throws(() => builder.push(9, 0, 1, 1), RangeError);
});
