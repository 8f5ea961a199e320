import assert from "node:assert/strict";
import { test } from "node:test";
import { DAY_MS, DEFAULT_RETENTION, retentionOf } from "#model/retention/policy.ts";
import { parseRetention } from "../../src/cli/group-commands.ts";

test("A retention policy is read part by part over the default, and one that nobody can mean is refused", () => {
  assert.deepEqual(parseRetention("default"), DEFAULT_RETENTION);
  assert.deepEqual(parseRetention("window=48h,daily=3"), {
    ...DEFAULT_RETENTION,
    journalWindowMs: 2 * DAY_MS,
    daily: 3,
  });
  for (const text of [
    "",
    "window=0",
    "window=90h",
    "daily=-1",
    "daily=1.5",
    "daily=",
    "dayly=3",
    "daily=3;weekly=2",
    "journalWindowMs=1",
  ])
    assert.throws(() => parseRetention(text), { code: "USAGE" }, text);
});

test("A record without a whole policy that means something lets nothing expire", () => {
  assert.deepEqual(retentionOf({ intervalMs: 5000, retention: DEFAULT_RETENTION }), DEFAULT_RETENTION);
  const { daily: _, ...part } = DEFAULT_RETENTION;
  for (const policy of [
    undefined,
    {},
    { retention: null },
    { retention: part },
    { retention: { ...DEFAULT_RETENTION, hourly: -1 } },
  ])
    assert.equal(retentionOf(policy), undefined);
});
