import assert from "node:assert/strict";
import { test } from "node:test";
import { readAhead } from "../../src/data-mover/read-ahead.ts";
import { seededRandom } from "../support/format-samples.ts";

const LIMITS = { reach: 512, least: 128, most: 2048, end: 100_000 };

test("A reader that goes forward finds everything fetched ahead, once, and more of it the longer it reads", () => {
  const ahead = readAhead(LIMITS);
  let fetched = 0;
  let longest = 0;
  for (let at = 0; at < 100_000; at += 8) {
    if (at > 24) assert.ok(fetched >= Math.min(at + 8, 100_000), `block ${at} was not fetched`);
    const next = ahead.observe(at, at + 8, true);
    if (next === undefined) continue;
    assert.ok(next.start >= fetched, "nothing twice");
    assert.ok(next.end <= 100_000);
    longest = Math.max(longest, next.end - next.start);
    fetched = next.end;
  }
  assert.ok(longest >= 1024 && longest <= 2048, `${longest}`);
});

test("A reader that jumps about gets nothing", () => {
  const random = seededRandom("jumps");
  const ahead = readAhead({ ...LIMITS, end: 100_000_000 });
  for (let round = 0; round < 2000; round++) {
    const at = random.below(100_000_000);
    assert.equal(ahead.observe(at, at + 1, true), undefined);
  }
});

test("Without room nothing is promised, and nothing is forgotten", () => {
  const ahead = readAhead(LIMITS);
  for (let at = 0; at < 800; at += 8) assert.equal(ahead.observe(at, at + 8, false), undefined);
  const next = ahead.observe(800, 808, true);
  assert.equal(next?.start, 808);
});

test("Several streams at once are told apart", () => {
  const ahead = readAhead(LIMITS);
  const fetched = new Map<number, number>();
  for (let step = 0; step < 1000; step += 8) {
    for (let stream = 0; stream < 8; stream++) {
      const at = stream * 10_000 + step;
      const next = ahead.observe(at, at + 8, true);
      if (next) fetched.set(stream, next.end);
    }
  }
  for (let stream = 0; stream < 8; stream++) assert.ok(fetched.get(stream)! >= stream * 10_000 + 1000);
});
