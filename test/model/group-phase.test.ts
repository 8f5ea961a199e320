import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  allowedOperations,
  CONDITIONS,
  GROUP_OPERATIONS,
  refusalOf,
  type GroupFacts,
  type GroupPhase,
} from "#model/group-phase.ts";
import { nextPhase, type PhaseEvent } from "#model/phase-events.ts";

const PHASES: readonly GroupPhase[] = [
  "unprotected",
  "seeding",
  "protected",
  "failing-over",
  "failed-over",
  "changing-point",
  "undoing",
  "committed",
  "reseeding",
];
const facts = (more: Partial<GroupFacts> = {}): GroupFacts => ({
  name: "web",
  phase: "protected",
  conditions: [],
  hasPoint: true,
  sourceConnected: true,
  ...more,
});

const anyFacts = fc.record({
  name: fc.constant("web"),
  phase: fc.constantFrom(...PHASES),
  conditions: fc.uniqueArray(fc.constantFrom(...Object.values(CONDITIONS))),
  hasPoint: fc.boolean(),
  sourceConnected: fc.constantFrom(true, false, undefined),
  replica: fc.constantFrom({ running: ["web"], off: [] }, { running: [], off: ["web"] }),
  reversed: fc.boolean(),
  missing: fc.boolean(),
});

test("what is listed as allowed is not refused, and a refusal lists exactly what is allowed", () => {
  fc.assert(
    fc.property(anyFacts, (seen) => {
      const allowed = allowedOperations(seen);
      for (const operation of GROUP_OPERATIONS) {
        const refusal = refusalOf(seen, operation, { sourceLost: true, stopReplica: true });
        assert.equal(refusal === undefined, allowed.includes(operation));
        if (refusal === undefined) continue;
        assert.ok(refusal.hint.endsWith(allowed.length === 0 ? "nothing but waiting" : allowed.join(", ")));
        assert.ok(refusal.message.includes(`"${seen.phase}"`));
      }
    }),
  );
});

test("a failover is possible whenever a point exists, whatever else stands beside the phase, except an end of protection", () => {
  fc.assert(
    fc.property(anyFacts, (seen) => {
      const wanted =
        (seen.phase === "protected" || seen.phase === "seeding" || seen.phase === "reseeding") &&
        seen.hasPoint &&
        !seen.conditions.includes(CONDITIONS.unprotecting);
      assert.equal(allowedOperations(seen).includes("failover"), wanted);
    }),
  );
});

test("a source that is not connected: unplanned needs the word of a person, planned is refused, both say what to type", () => {
  const away = facts({ sourceConnected: false });
  assert.match(refusalOf(away, "failover")?.hint ?? "", /leeward failover web --source-lost/);
  assert.equal(refusalOf(away, "failover", { sourceLost: true }), undefined);
  assert.match(refusalOf(away, "planned-failover")?.hint ?? "", /leeward failover web --source-lost/);
  // Not known is not the same as lost: the failover itself looks first.
  assert.equal(refusalOf(facts({ sourceConnected: undefined }), "failover"), undefined);
});

test("what is allowed in each phase of an ordinary life", () => {
  assert.deepEqual(allowedOperations(facts({ phase: "unprotected", hasPoint: false })), ["protect"]);
  assert.deepEqual(allowedOperations(facts({ phase: "seeding", hasPoint: false })), ["unprotect"]);
  assert.deepEqual(allowedOperations(facts()), [
    "pause",
    "bookmark",
    "failover",
    "planned-failover",
    "test-failover",
    "unprotect",
  ]);
  assert.deepEqual(allowedOperations(facts({ conditions: [CONDITIONS.paused] })), [
    "resume",
    "failover",
    "test-failover",
    "unprotect",
  ]);
  assert.deepEqual(allowedOperations(facts({ conditions: [CONDITIONS.testing] })), [
    "pause",
    "bookmark",
    "failover",
    "planned-failover",
    "test-failover-cleanup",
  ]);
  assert.deepEqual(allowedOperations(facts({ phase: "failing-over" })), []);
  assert.deepEqual(allowedOperations(facts({ phase: "failed-over" })), ["change-point", "commit", "undo"]);
  for (const phase of ["changing-point", "undoing"] as const) assert.deepEqual(allowedOperations(facts({ phase })), []);
  assert.deepEqual(allowedOperations(facts({ phase: "committed" })), ["reprotect", "unprotect"]);
  assert.deepEqual(allowedOperations(facts({ phase: "reseeding" })), ["failover", "unprotect"]);
  assert.ok(allowedOperations(facts({ reversed: true })).includes("failback"));
});

test("the way back: a reprotect needs all machines, a failback a group that is away from home, and half-way only a lost site leads back", () => {
  const committed = (more: Partial<GroupFacts>) => facts({ phase: "committed", sourceConnected: undefined, ...more });
  assert.deepEqual(allowedOperations(committed({ conditions: [CONDITIONS.reprotecting] })), []);
  assert.match(refusalOf(committed({ conditions: [CONDITIONS.reprotecting] }), "reprotect")?.message ?? "", /being/);
  assert.deepEqual(allowedOperations(committed({ missing: true })), ["retry-member", "unprotect"]);
  assert.match(refusalOf(committed({ missing: true }), "reprotect")?.hint ?? "", /operation retry/);
  assert.match(refusalOf(facts({ phase: "failed-over" }), "reprotect")?.message ?? "", /not committed/);
  assert.match(refusalOf(facts(), "failback")?.hint ?? "", /leeward failover web --planned/);
  const reseeding = facts({ phase: "reseeding", reversed: true });
  assert.match(refusalOf(reseeding, "failback")?.message ?? "", /no complete point/);
  assert.match(refusalOf(reseeding, "failover")?.hint ?? "", /--source-lost/);
  assert.equal(refusalOf(reseeding, "failover", { sourceLost: true }), undefined);
});

test("after a failover: an undo needs its source, ends with a commit, and is the only way on when it was not finished", () => {
  const failedOver = facts({ phase: "failed-over", sourceConnected: undefined });
  assert.equal(refusalOf(failedOver, "undo"), undefined);
  const gone = refusalOf(facts({ phase: "failed-over", sourceConnected: false }), "undo");
  assert.match(gone?.message ?? "", /not connected/);
  assert.match(gone?.hint ?? "", /Allowed now: change-point, commit$/);
  const unfinished = facts({ phase: "failed-over", conditions: [CONDITIONS.undoUnfinished] });
  assert.deepEqual(allowedOperations(unfinished), ["undo"]);
  assert.match(refusalOf(unfinished, "commit")?.hint ?? "", /leeward undo web/);
  const partial = facts({ phase: "committed", conditions: [CONDITIONS.partial] });
  assert.deepEqual(allowedOperations(partial), ["retry-member", "skip-member", "unprotect"]);
  assert.match(refusalOf(failedOver, "retry-member")?.message ?? "", /no machine of it is missing/);
  const retrying = facts({ phase: "failed-over", conditions: [CONDITIONS.partial, CONDITIONS.retrying] });
  assert.deepEqual(allowedOperations(retrying), ["commit"]);
  assert.match(refusalOf(facts({ phase: "committed" }), "undo")?.message ?? "", /committed/);
  assert.match(refusalOf(facts({ phase: "failing-over" }), "undo")?.message ?? "", /cancelled before the boot/);
});

test("the protection of a group ends after a commit, never under machines that run unless a person says so", () => {
  const runs = facts({ phase: "committed", replica: { running: ["web"], off: [] } });
  const refusal = refusalOf(runs, "unprotect");
  assert.match(refusal?.message ?? "", /machine "web" runs on disks that the group serves/);
  assert.match(refusal?.hint ?? "", /leeward group unprotect web --stop-replica/);
  assert.equal(refusalOf(runs, "unprotect", { stopReplica: true }), undefined);
  assert.equal(refusalOf({ ...runs, replica: { running: [], off: ["web"] } }, "unprotect"), undefined);
  const undecided = refusalOf({ ...runs, phase: "failed-over" }, "unprotect", { stopReplica: true });
  assert.match(undecided?.hint ?? "", /leeward commit web" or "leeward undo web" first/);
  assert.equal(nextPhase("committed", "unprotect"), "unprotected");
});

test("a machine that is off can be started again, one that runs cannot", () => {
  const off = facts({ phase: "failed-over", replica: { running: ["db"], off: ["web"] } });
  assert.equal(refusalOf(off, "retry-member"), undefined);
  assert.match(refusalOf(off, "skip-member")?.message ?? "", /no machine of it is missing/);
  const on = { ...off, replica: { running: ["db", "web"], off: [] } };
  assert.match(refusalOf(on, "retry-member")?.message ?? "", /missing or off/);
});

test("phases follow the picture, and an impossible event is a bug", () => {
  const life: readonly PhaseEvent[] = ["protect", "seeded", "failover", "failover-undone", "failover", "booted"];
  let phase: GroupPhase = "unprotected";
  const seen = life.map((event) => (phase = nextPhase(phase, event)));
  assert.deepEqual(seen, ["seeding", "protected", "failing-over", "protected", "failing-over", "failed-over"]);
  const back: readonly PhaseEvent[] = ["change-point", "point-settled", "undo", "undo-failed", "undo", "undone"];
  phase = "failed-over";
  assert.deepEqual(
    back.map((event) => (phase = nextPhase(phase, event))),
    ["changing-point", "failed-over", "undoing", "failed-over", "undoing", "protected"],
  );
  assert.equal(nextPhase("failed-over", "commit"), "committed");
  assert.equal(nextPhase("committed", "turned"), "reseeding");
  assert.equal(nextPhase("reseeding", "reseeded"), "protected");
  assert.equal(nextPhase("undoing", "undone", "reseeding"), "reseeding");
  assert.equal(nextPhase(nextPhase("reseeding", "failover"), "failover-undone", "reseeding"), "reseeding");
  assert.throws(() => nextPhase("committed", "undo"), RangeError);
  assert.throws(() => nextPhase("unprotected", "booted"), RangeError);
  assert.throws(() => nextPhase("failed-over", "seeded"), RangeError);
});
