import assert from "node:assert/strict";
import { test } from "node:test";
import { adoptionFacts, planAdoption, type AdoptionFacts } from "#model/adoption.ts";
import { isFault } from "#model/fault.ts";
import type { GroupPhase } from "#model/group-phase.ts";

const PHASES: readonly GroupPhase[] = [
  "seeding",
  "protected",
  "failing-over",
  "failed-over",
  "changing-point",
  "undoing",
  "committed",
];

function facts(phase: GroupPhase, activeSite: string | undefined, more: Partial<AdoptionFacts> = {}): AdoptionFacts {
  return {
    phase,
    sourceSite: "P",
    targetSite: "S",
    unfinished: [],
    exports: [],
    machines: [],
    ...(activeSite === undefined ? {} : { claim: { activeSite } }),
    disk: { branch: activeSite === "S" ? "x-1" : "root", moving: false },
    ...more,
  };
}

const machine = (operationId: string, power: "running" | "off" | "new" = "running") => ({
  operationId,
  running: power === "running",
  started: power !== "new",
});
const writable = (operationId: string, branch: string) => ({ operationId, mode: "read-write" as const, branch });

test("the claims decide who is active, whatever the record says", () => {
  for (const phase of PHASES) {
    const home = planAdoption(facts(phase, "P", { replica: "f1" })).standing;
    assert.deepEqual(home, { at: "source", phase: phase === "seeding" ? "seeding" : "protected" }, phase);
    assert.equal(planAdoption(facts(phase, "X")).standing.at, "elsewhere", phase);
    // Never prepared: nothing of it can be anywhere but at its source.
    assert.deepEqual(planAdoption(facts(phase, undefined)).standing, { at: "source", phase: "seeding" }, phase);
  }
  assert.deepEqual(planAdoption(facts("unprotected", "P")), { standing: { at: "ended" }, leftOver: [] });
});

test("a group whose machines ran at the target is there still, also when its export is not open", () => {
  const seen = { exports: [writable("f1", "x-1")], machines: [machine("f1")], replica: "f1" };
  for (const more of [seen, { replica: "f1" }]) {
    assert.deepEqual(planAdoption(facts("failed-over", "S", more)).standing, {
      at: "target",
      replica: "f1",
      phase: "failed-over",
      interrupted: false,
    });
    const committed = planAdoption(facts("committed", "S", more)).standing;
    assert.equal(committed.at === "target" && committed.phase, "committed");
  }
});

test("a failover that was under way stands once a machine was started, and is nowhere before", () => {
  const unfinished = ["f1"];
  const exports = [writable("f1", "x-1")];
  const before = planAdoption(facts("failing-over", "S", { unfinished, exports, machines: [machine("f1", "new")] }));
  assert.deepEqual(before, { standing: { at: "nowhere" }, leftOver: ["f1"] });
  for (const power of ["running", "off"] as const) {
    const after = planAdoption(facts("failing-over", "S", { unfinished, exports, machines: [machine("f1", power)] }));
    assert.deepEqual(after.standing, { at: "target", replica: "f1", phase: "failed-over", interrupted: false });
    assert.deepEqual(after.leftOver, [], "disks that hold writes are nobody's to remove");
  }
  // The claim was not made yet, or was given back.
  const early = planAdoption(facts("failing-over", "P", { unfinished, exports: [], machines: [machine("f1", "new")] }));
  assert.deepEqual(early, { standing: { at: "source", phase: "protected" }, leftOver: ["f1"] });
});

test("a change of point that was under way: the machines on the claimed branch are the group's", () => {
  const both = { replica: "f1", unfinished: ["c1"], exports: [writable("c1", "x-2")] };
  const changed = planAdoption(
    facts("changing-point", "S", {
      ...both,
      disk: { branch: "x-2", moving: false },
      machines: [machine("f1", "off"), machine("c1")],
    }),
  );
  assert.deepEqual(changed, {
    standing: { at: "target", replica: "c1", phase: "failed-over", interrupted: false },
    leftOver: ["f1"],
  });
  const notYet = planAdoption(
    facts("changing-point", "S", { ...both, disk: { branch: "x-2", moving: false }, machines: [machine("c1", "new")] }),
  );
  assert.deepEqual(notYet, {
    standing: { at: "target", replica: "f1", phase: "failed-over", interrupted: true },
    leftOver: ["c1"],
  });
});

test("an undo that was under way either has given back, or is taken back", () => {
  const more = { replica: "f1", machines: [machine("f1", "off")], exports: [] };
  assert.deepEqual(planAdoption(facts("undoing", "P", more)), {
    standing: { at: "source", phase: "protected" },
    leftOver: ["f1"],
  });
  const standing = planAdoption(facts("undoing", "S", more)).standing;
  assert.equal(standing.at === "target" && standing.interrupted, true);
  const half = planAdoption(facts("undoing", "P", { ...more, disk: { branch: "x-1", moving: true } }));
  assert.equal(half.standing.at, "nowhere", "nobody may write: a person gives it back");
});

test("machines that run are never left over, but for those of a test", () => {
  const home = facts("protected", "P", { replica: "f1", test: "t1", machines: [machine("f1"), machine("t1")] });
  assert.deepEqual(planAdoption(home).leftOver, ["t1"]);
  assert.deepEqual(planAdoption({ ...home, machines: [] }).leftOver, [], "nothing of it is there");
});

test("the facts are read from a record of the catalog, and one that is none is a fault", () => {
  const record = {
    version: 1,
    phase: "changing-point",
    sourceSite: "P",
    targetSite: "S",
    replica: { operationId: "f1" },
    test: { operationId: "t1" },
    operations: [
      { operationId: "c1", kind: "changePoint", state: "running" },
      { operationId: "f1", kind: "failover", state: "done" },
      { operationId: "p1", kind: "protect", state: "running" },
    ],
    somethingNew: { kept: true },
  };
  const seen = { exports: [], machines: [] };
  assert.deepEqual(adoptionFacts(record, seen), {
    phase: "changing-point",
    sourceSite: "P",
    targetSite: "S",
    replica: "f1",
    test: "t1",
    unfinished: ["c1"],
    ...seen,
  });
  for (const wrong of [{}, { ...record, targetSite: 3 }, { ...record, operations: "none" }])
    assert.throws(
      () => adoptionFacts(wrong, seen),
      (error) => isFault(error, "PROTOCOL_INVALID"),
    );
});
