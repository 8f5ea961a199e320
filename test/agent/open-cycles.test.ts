/** What was swept in open cycles, while commits and questions overlap. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { TapDiskStatus } from "../../src/capture/tap/tap-protocol.ts";
import { createOpenCycles } from "../../src/agent/open-cycles.ts";

const status = (generation: number): TapDiskStatus =>
  ({ diskId: "disk", tracker: { bootId: "boot", generation } }) as unknown as TapDiskStatus; // All that is looked at.

test("what is being committed is not swept again, and not taken off what is left", () => {
  const open = createOpenCycles();
  open.begin(status(1), 4);
  open.add(status(1), 4, [{ start: 0, count: 100 }]);
  open.begin(status(1), 5);
  open.add(status(1), 5, [{ start: 100, count: 10 }]);
  open.add(status(1), 5, [{ start: 200, count: 10 }]);
  assert.equal(open.sweptBytes(status(1)), 120 * 4096);
  open.closing("disk", 4);
  assert.equal(open.sweptBytes(status(1)), 20 * 4096, "the tap's figure may know of cycle 4 already");
  assert.equal(open.allSwept(status(1)).flat().length, 3, "but the tap's list may not");
  open.close("disk", 4);
  assert.deepEqual(open.cycles("disk"), [5]);
  assert.deepEqual(open.swept(status(1), 5), [
    { start: 100, count: 10 },
    { start: 200, count: 10 },
  ]);
});

test("a sweep of another life of the tracker counts for nothing", () => {
  const open = createOpenCycles();
  open.begin(status(1), 4);
  open.add(status(1), 4, [{ start: 0, count: 100 }]);
  assert.equal(open.sweptBytes(status(2)), 0);
  assert.deepEqual(open.swept(status(2), 4), []);
  assert.deepEqual(open.allSwept(status(2)), []);
  assert.deepEqual(open.cycles("disk"), [4], "but it is settled like any other");
});

test("a sweep whose cycle was closed meanwhile is not noted: its blocks are in no commit", () => {
  const open = createOpenCycles();
  open.begin(status(1), 4);
  assert.deepEqual(open.cycles("disk"), [4], "it can be discarded while it runs");
  open.close("disk", 4);
  open.add(status(1), 4, [{ start: 0, count: 100 }]);
  assert.equal(open.sweptBytes(status(1)), 0);
  open.begin(status(1), 5);
  open.closeAll("disk");
  open.add(status(1), 5, [{ start: 0, count: 100 }]);
  assert.deepEqual(open.cycles("disk"), []);
});
