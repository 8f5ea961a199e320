import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { KIND_DELTA, KIND_SWEEP } from "#model/frame-record.ts";
import { resolveExtents, type PlacedFrame } from "../../src/data-mover/cycle-extents.ts";

const DISK_BLOCKS = 120;

const frames = fc.array(
  fc.record({
    block: fc.nat(DISK_BLOCKS - 1),
    blocks: fc.integer({ min: 1, max: 40 }),
    kind: fc.constantFrom(KIND_DELTA, KIND_SWEEP),
    zero: fc.boolean(),
  }),
  { maxLength: 60 },
);

test("The extents of a cycle equal painting its records on a flat array: sweeps first, then deltas, later over earlier", () => {
  fc.assert(
    fc.property(frames, (drawn) => {
      const placed: PlacedFrame[] = drawn.map(({ block, blocks, kind, zero }, index) => ({
        block,
        blocks: Math.min(blocks, DISK_BLOCKS - block),
        kind,
        place: zero ? undefined : { container: index % 3, frame: index },
      }));
      const flat: string[] = Array.from({ length: DISK_BLOCKS }, () => "-");
      for (const kind of [KIND_SWEEP, KIND_DELTA]) {
        placed.forEach((frame, index) => {
          if (frame.kind !== kind) return;
          for (let at = 0; at < frame.blocks; at++) flat[frame.block + at] = frame.place ? `${index}:${at}` : "zero";
        });
      }
      const seen: string[] = Array.from({ length: DISK_BLOCKS }, () => "-");
      let last = 0;
      for (const extent of resolveExtents(placed)) {
        assert.ok(extent.block >= last && extent.blocks > 0, "sorted, not overlapping, not empty");
        last = extent.block + extent.blocks;
        for (let at = 0; at < extent.blocks; at++) {
          seen[extent.block + at] = extent.place ? `${extent.place.frame}:${extent.blockInFrame + at}` : "zero";
        }
      }
      assert.deepEqual(seen, flat);
    }),
    { numRuns: 2000 },
  );
});

test("A zero run over a whole disk with a hundred thousand blocks written into it resolves quickly", () => {
  const placed: PlacedFrame[] = [{ block: 0, blocks: 2 ** 32 - 1, kind: KIND_SWEEP, place: undefined }];
  for (let index = 0; index < 100_000; index++) placed.push({ block: index * 3, blocks: 1, kind: KIND_DELTA, place: { container: 0, frame: index } });
  const startedAt = performance.now();
  assert.equal(resolveExtents(placed).length, 200_000);
  assert.ok(performance.now() - startedAt < 2_000);
});
