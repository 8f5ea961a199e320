import assert from "node:assert/strict";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { selectPoint, type SelectablePoint } from "#model/point-selector.ts";

const at = (minute: number): number => Date.UTC(2026, 4, 1, 14, minute);

function point(barrier: number, more: Partial<SelectablePoint> = {}): SelectablePoint {
  const cutAtMs = at(barrier);
  const id = `${cutAtMs}-${barrier.toString(16).padStart(16, "0")}`;
  return { id, cutAtMs, barrier, kind: "recovery", consistency: "crash", grade: "committed", ...more };
}

const POINTS = [
  point(1),
  point(2, { kind: "bookmark", name: "before-upgrade" }),
  point(3, { consistency: "app" }),
  point(4, { grade: "verified" }),
  point(5),
];

test("latest is the newest barrier, in whatever order the points come", () => {
  for (const points of [POINTS, POINTS.toReversed(), [POINTS[4]!, ...POINTS.slice(0, 4)]]) {
    assert.equal(selectPoint(points, "latest").barrier, 5);
    assert.equal(selectPoint(points, "latest-processed").barrier, 5);
  }
});

test("a grade is the newest point that has it", () => {
  assert.equal(selectPoint(POINTS, "latest-app").barrier, 3);
  assert.equal(selectPoint(POINTS, "latest-verified").barrier, 4);
});

test("a name is a bookmark, an id is that very point", () => {
  assert.equal(selectPoint(POINTS, "@before-upgrade").barrier, 2);
  assert.equal(selectPoint(POINTS, POINTS[0]!.id).barrier, 1);
});

test("a time is the newest cut at or before it, in any zone", () => {
  assert.equal(selectPoint(POINTS, "2026-05-01T14:03:00Z").barrier, 3);
  assert.equal(selectPoint(POINTS, "2026-05-01T14:03:59.999Z").barrier, 3);
  assert.equal(selectPoint(POINTS, "2026-05-01 16:04:00+02:00").barrier, 4);
  assert.equal(selectPoint(POINTS, "2027-01-01T00:00:00Z").barrier, 5);
});

test("what is not there is POINT_NOT_FOUND, and the hint says what is", () => {
  for (const selector of ["@other", "2026-05-01T14:00:59Z", "0000000000001-00000000000000ff"]) {
    assert.throws(
      () => selectPoint(POINTS, selector),
      (error) => isFault(error, "POINT_NOT_FOUND") && /5 points.*14:05.*14:01.*@before-upgrade/.test(error.hint ?? ""),
      selector,
    );
  }
  assert.throws(() => selectPoint([POINTS[0]!], "latest-app"), { code: "POINT_NOT_FOUND" });
});

test("no points at all is NO_POINT; a selector that is none is USAGE, and so is a time to come", () => {
  assert.throws(() => selectPoint([], "latest"), { code: "NO_POINT" });
  for (const selector of ["", "newest", "@", "2026-05-01", "2026-05-01T14:03:00", "14:03", "-5m"]) {
    assert.throws(() => selectPoint(POINTS, selector), { code: "USAGE" }, selector);
  }
  assert.throws(() => selectPoint(POINTS, "2026-05-01T14:06:00Z", at(5)), { code: "USAGE" });
  assert.equal(selectPoint(POINTS, "2026-05-01T14:05:00Z", at(5)).barrier, 5);
});
