import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { PERIODS, type Period, utcCalendar } from "#model/retention/calendar.ts";
import { historyOf } from "#model/retention/history.ts";
import { planRetention, type RetentionPoint, textOfKeeping } from "#model/retention/plan.ts";
import { checkRetention, DAY_MS, DEFAULT_RETENTION, HOUR_MS, type RetentionPolicy } from "#model/retention/policy.ts";

const START_MS = Date.UTC(2026, 0, 1);

const policies: fc.Arbitrary<RetentionPolicy> = fc.record({
  journalWindowMs: fc.integer({ min: 1, max: 72 }).map((hours) => hours * HOUR_MS),
  hourly: fc.integer({ min: 0, max: 6 }),
  daily: fc.integer({ min: 0, max: 6 }),
  weekly: fc.integer({ min: 0, max: 4 }),
  monthly: fc.integer({ min: 0, max: 4 }),
  yearly: fc.integer({ min: 0, max: 3 }),
});

/** Points at irregular distances, from minutes to months. */
const histories: fc.Arbitrary<RetentionPoint[]> = fc
  .array(
    fc.record({
      stepMs: fc.oneof(
        fc.integer({ min: 1, max: 3 * HOUR_MS }),
        fc.integer({ min: 1, max: 3 * DAY_MS }),
        fc.integer({ min: 1, max: 100 * DAY_MS }),
      ),
      restorable: fc.integer({ min: 0, max: 9 }).map((number) => number > 0),
      verified: fc.integer({ min: 0, max: 9 }).map((number) => number === 0),
      marked: fc.integer({ min: 0, max: 9 }).map((number) => number === 0),
      pinned: fc.integer({ min: 0, max: 9 }).map((number) => number === 0),
    }),
    { maxLength: 60 },
  )
  .map((steps) => {
    let cutAtMs = START_MS;
    return steps.map(({ stepMs, marked, pinned, ...facts }, index) => ({
      ...facts,
      barrier: index + 1,
      cutAtMs: (cutAtMs += stepMs),
      ...(marked && { bookmark: `m${index}` }),
      ...(pinned && { pins: [`export ${index}`] }),
    }));
  });

const RUNNING = { stops: [] } as const;

/** The rules once more, one point at a time and without any cleverness. */
function stays(point: RetentionPoint, points: readonly RetentionPoint[], policy: RetentionPolicy): boolean {
  const good = points.filter(({ restorable }) => restorable);
  if (good.length === 0) return true;
  const newestMs = Math.max(...good.map(({ cutAtMs }) => cutAtMs));
  if (point.bookmark !== undefined || point.pins !== undefined) return true;
  if (newestMs - point.cutAtMs <= policy.journalWindowMs) return true;
  if (!point.restorable) return false;
  const later = good.filter(({ cutAtMs }) => cutAtMs > point.cutAtMs);
  if (later.length === 0) return true;
  if (point.verified && later.every(({ verified }) => !verified)) return true;
  return PERIODS.some((period) => {
    const names = later.map(({ cutAtMs }) => utcCalendar(period, cutAtMs));
    return !names.includes(utcCalendar(period, point.cutAtMs)) && new Set(names).size < policy[period];
  });
}

const keptBy = (points: readonly RetentionPoint[], policy: RetentionPolicy): number[] =>
  planRetention(points, policy, RUNNING)
    .points.filter(({ keep }) => keep)
    .map(({ barrier }) => barrier);

test("A plan keeps what the rules keep, one by one, and every point that stays says why", () => {
  fc.assert(
    fc.property(histories, policies, (points, policy) => {
      const plan = planRetention(points.toReversed(), policy, RUNNING);
      assert.equal(plan.points.length, points.length);
      for (const entry of plan.points) {
        const point = points.find(({ barrier }) => barrier === entry.barrier)!;
        assert.equal(entry.keep, stays(point, points, policy), `barrier ${entry.barrier}`);
        assert.ok((entry.keep ? textOfKeeping(entry.reasons) : entry.text).length > 0);
      }
    }),
    { numRuns: 400 },
  );
});

test("Planning after each point and doing it ends with what planning once over everything keeps", () => {
  fc.assert(
    fc.property(histories, policies, (points, policy) => {
      let there: RetentionPoint[] = [];
      for (const point of points) {
        there.push(point);
        const kept = new Set(keptBy(there, policy));
        there = there.filter(({ barrier }) => kept.has(barrier));
      }
      const once = new Set(keptBy(points, policy));
      assert.deepEqual(
        there.map(({ barrier }) => barrier),
        points.map(({ barrier }) => barrier).filter((barrier) => once.has(barrier)),
      );
    }),
    { numRuns: 200 },
  );
});

test("However late, however often, and with whatever policy it is planned, the newest restorable and the newest verified point stay", () => {
  fc.assert(
    fc.property(histories, fc.array(policies, { minLength: 1, maxLength: 4 }), (points, changes) => {
      let there: readonly RetentionPoint[] = points;
      const newest = points.findLast(({ restorable }) => restorable);
      const verified = points.findLast((point) => point.restorable && point.verified);
      for (const policy of changes) {
        const kept = new Set(keptBy(there, policy));
        there = there.filter(({ barrier }) => kept.has(barrier));
      }
      if (newest === undefined) assert.equal(there.length, points.length);
      else assert.ok(there.includes(newest));
      if (verified !== undefined) assert.ok(there.includes(verified));
    }),
  );
});

test("The wall clock has no say, and a group that gets nothing new loses nothing", () => {
  fc.assert(
    fc.property(histories, policies, fc.integer({ min: 0, max: 3000 }), (points, policy, days) => {
      const kept = new Set(keptBy(points, policy));
      const there = points.filter(({ barrier }) => kept.has(barrier));
      // Nothing but the points goes in: a plan of `days` later is the same call.
      assert.ok(days >= 0);
      assert.deepEqual(new Set(keptBy(there, policy)), kept);
    }),
  );
});

test("While the source is lost, a failover is not committed or the group is held, nothing goes", () => {
  fc.assert(
    fc.property(
      histories,
      policies,
      fc.constantFrom("source-lost", "failover-uncommitted", "group-held", "not-enabled" as const),
      (points, policy, stop) => {
        const plan = planRetention(points, policy, { stops: [stop] });
        assert.ok(plan.points.every(({ keep }) => keep));
      },
    ),
  );
});

test("A list that is cut off at its old end gives the same reasons", () => {
  fc.assert(
    fc.property(histories, policies, fc.integer({ min: 1, max: 60 }), (points, policy, count) => {
      const part = points.slice(-count);
      if (!part.some(({ restorable }) => restorable)) return;
      const whole = planRetention(points, policy, RUNNING).points.slice(0, part.length);
      assert.deepEqual(planRetention(part, policy, RUNNING).points, whole);
    }),
  );
});

test("A period is named by its beginning, and holds the instants from there to the next", () => {
  const names: readonly (readonly [Period, string, string])[] = [
    ["hourly", "2026-11-22T23:59:59.999Z", "2026-11-22T23"],
    ["daily", "2026-11-22T23:59:59.999Z", "2026-11-22"],
    ["weekly", "2026-11-22T23:59:59.999Z", "2026-11-16"],
    ["weekly", "2026-11-23T00:00:00.000Z", "2026-11-23"],
    ["weekly", "1970-01-01T00:00:00.000Z", "1969-12-29"],
    ["monthly", "2028-02-29T12:00:00.000Z", "2028-02"],
    ["yearly", "2026-12-31T23:59:59.999Z", "2026"],
  ];
  for (const [period, time, name] of names) assert.equal(utcCalendar(period, Date.parse(time)), name);
});

test("A day of cuts under the default policy is kept whole; a year of them is a few dozen", () => {
  const points = Array.from({ length: 365 * 24 }, (_, hour) => ({
    barrier: hour + 1,
    cutAtMs: START_MS + hour * HOUR_MS,
    restorable: true,
    verified: false,
  }));
  assert.equal(keptBy(points.slice(0, 25), DEFAULT_RETENTION).length, 25);
  const kept = keptBy(points, DEFAULT_RETENTION).length;
  assert.ok(kept > 60 && kept < 85, `${kept} points`);
});

test("A policy that nobody can mean is refused with what was expected", () => {
  checkRetention(DEFAULT_RETENTION);
  for (const wrong of [
    { journalWindowMs: 0 },
    { journalWindowMs: 30 * DAY_MS },
    { journalWindowMs: Number.NaN },
    { daily: -1 },
    { yearly: 1.5 },
  ])
    assert.throws(() => checkRetention({ ...DEFAULT_RETENTION, ...wrong }), { code: "USAGE" });
});

test("A young history grows until a date, a hole breaks it until it has left the window, and else it is met", () => {
  const policy = { journalWindowMs: DAY_MS };
  const cuts = (from: number, to: number): number[] =>
    Array.from({ length: (to - from) / HOUR_MS + 1 }, (_, index) => START_MS + from + index * HOUR_MS);
  assert.deepEqual(historyOf([], policy, HOUR_MS), { state: "none" });
  assert.deepEqual(historyOf(cuts(0, 6 * HOUR_MS), policy, HOUR_MS), {
    state: "growing",
    reachesMs: 6 * HOUR_MS,
    metAtMs: START_MS + DAY_MS,
  });
  assert.deepEqual(historyOf(cuts(0, 30 * HOUR_MS), policy, HOUR_MS), { state: "met" });
  const holed = [...cuts(0, 30 * HOUR_MS), ...cuts(34 * HOUR_MS, 40 * HOUR_MS)];
  assert.deepEqual(historyOf(holed, policy, HOUR_MS), {
    state: "broken",
    fromMs: START_MS + 30 * HOUR_MS,
    toMs: START_MS + 34 * HOUR_MS,
    metAtMs: START_MS + 34 * HOUR_MS + DAY_MS,
  });
  assert.deepEqual(historyOf([...holed, ...cuts(41 * HOUR_MS, 60 * HOUR_MS)], policy, HOUR_MS), { state: "met" });
});
