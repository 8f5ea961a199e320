import assert from "node:assert/strict";
import { test } from "node:test";
import { CONDITIONS } from "#model/group-phase.ts";
import {
  assessHealth,
  CONNECT_GRACE_MS,
  duration,
  healthLevel,
  isRpoBreach,
  SYNC_STALLED_MS,
  type HealthFacts,
} from "#model/health.ts";

const NOW = 1_800_000_000_000;
const live = { state: "live", connected: true, currentAsOfMs: NOW - 2_000 } as const;
const facts = (more: Partial<HealthFacts> = {}): HealthFacts => ({
  name: "web",
  phase: "protected",
  conditions: [],
  sourceSite: "primary",
  targetSite: "secondary",
  nowMs: NOW,
  rpoThresholdMs: 15_000,
  syncMovedAtMs: NOW,
  progress: live,
  ...more,
});
const codes = (more: Partial<HealthFacts>): readonly string[] =>
  assessHealth(facts(more)).map((reason) => `${reason.code} ${reason.level}`);

test("a group that keeps up has no reason to be anything but healthy", () => {
  assert.deepEqual(assessHealth(facts()), []);
  assert.equal(healthLevel([]), "healthy");
});

test("a lag beyond the policy is a breach: first a warning, then critical", () => {
  assert.deepEqual(codes({ progress: { ...live, currentAsOfMs: NOW - 15_000 } }), []);
  assert.deepEqual(codes({ progress: { ...live, currentAsOfMs: NOW - 15_001 } }), ["RPO_BREACH warning"]);
  assert.deepEqual(codes({ progress: { ...live, currentAsOfMs: NOW - 45_001 } }), ["RPO_BREACH critical"]);
  assert.ok(isRpoBreach(assessHealth(facts({ progress: { ...live, currentAsOfMs: NOW - 60_000 } }))));
});

test("a source that is away says what to type if it is lost; the worst reason comes first", () => {
  const reasons = assessHealth(facts({ progress: { ...live, connected: false, currentAsOfMs: NOW - 20_000 } }));
  assert.deepEqual(
    reasons.map((reason) => reason.code),
    ["SOURCE_DISCONNECTED", "RPO_BREACH"],
  );
  assert.match(reasons[0]?.remedy ?? "", /leeward failover web --source-lost/);
  assert.equal(healthLevel(reasons), "critical");
});

test("a source that is expected to connect has its time, in which nobody calls it lost", () => {
  const waiting = { state: "waiting", connected: false, currentAsOfMs: NOW - 2_000 } as const;
  const reasons = assessHealth(facts({ progress: waiting, connectingSinceMs: NOW - 5_000 }));
  assert.deepEqual(
    reasons.map(({ code, level }) => `${code} ${level}`),
    ["SOURCE_CONNECTING unknown"],
  );
  assert.equal(healthLevel(reasons), "unknown");
  assert.match(reasons[0]?.cause ?? "", /since 5 s/);
  assert.ok(!JSON.stringify(reasons).includes("--source-lost"));
  const late = { progress: waiting, connectingSinceMs: NOW - CONNECT_GRACE_MS };
  assert.deepEqual(codes(late), ["SOURCE_DISCONNECTED critical"]);
  // A worse reason comes first.
  const breach = { progress: { ...waiting, currentAsOfMs: NOW - 60_000 }, connectingSinceMs: NOW };
  assert.deepEqual(codes(breach), ["RPO_BREACH critical", "SOURCE_CONNECTING unknown"]);
});

test("fenced, failed and unreachable are told apart, with the fault's own words", () => {
  const fault = { code: "FENCED", message: "Site b is active", hint: "Look there" };
  assert.deepEqual(codes({ progress: { ...live, state: "fenced", fault } }), ["FENCED critical"]);
  assert.equal(assessHealth(facts({ progress: { ...live, state: "fenced", fault } }))[0]?.cause, "Site b is active");
  assert.deepEqual(codes({ progress: { ...live, state: "failed" } }), ["REPLICATION_FAILED critical"]);
  assert.deepEqual(codes({ targetFault: { code: "PEER_UNREACHABLE", message: "not connected" } }), [
    "TARGET_UNREACHABLE critical",
  ]);
});

test("an initial sync that does not move is stalled, a paused group is only paused", () => {
  const seeding = { phase: "seeding", progress: { ...live, state: "seeding", currentAsOfMs: 0 } } as const;
  assert.deepEqual(codes(seeding), []);
  assert.deepEqual(codes({ ...seeding, syncMovedAtMs: NOW - SYNC_STALLED_MS - 1 }), ["SYNC_STALLED warning"]);
  assert.deepEqual(codes({ conditions: [CONDITIONS.paused], progress: { ...live, connected: false } }), [
    "PAUSED warning",
  ]);
});

test("after a failover the replica machines are what counts", () => {
  const replica = { operationId: "web.failover.1", uncommittedSinceMs: 0, machinesOff: [], restarts: {} };
  assert.deepEqual(codes({ phase: "failed-over", replica, progress: { ...live, connected: false } }), [
    "NOT_REPLICATED warning",
  ]);
  assert.deepEqual(codes({ phase: "failed-over", replica: { ...replica, uncommittedSinceMs: NOW - 20_000 } }), [
    "NOT_REPLICATED warning",
    "LOCAL_RPO_BREACH warning",
  ]);
  assert.deepEqual(codes({ phase: "failed-over", replica: { ...replica, machinesOff: ["web"] } }), [
    "REPLICA_MACHINE_OFF critical",
    "NOT_REPLICATED warning",
  ]);
  assert.deepEqual(codes({ phase: "failed-over", conditions: [CONDITIONS.sourceMayRun], replica }), [
    "NOT_REPLICATED warning",
    "SOURCE_MAY_RUN warning",
  ]);
});

test("a replica that is claimed but runs nowhere says how to go on", () => {
  const [reason] = assessHealth(facts({ conditions: [CONDITIONS.sourceFenced] }));
  assert.equal(reason?.code, "SOURCE_FENCED");
  assert.match(reason?.remedy ?? "", /resume web/);
});

test("durations are said in one unit", () => {
  assert.deepEqual([0, 999, 1_000, 119_000, 120_000, 7_199_000, 7_200_000, 172_800_000].map(duration), [
    "0 ms",
    "999 ms",
    "1 s",
    "119 s",
    "2 min",
    "120 min",
    "2 h",
    "2 d",
  ]);
});
