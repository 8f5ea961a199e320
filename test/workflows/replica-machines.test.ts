/** After a failover: machines that go off, and the end of the protection of a group that stays where it is. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Fault } from "#model/fault.ts";
import { RESTART_TRIES } from "#model/health.ts";
import type { ReplicaRecord } from "../../src/workflows/group-record.ts";
import { nextRestartAtMs, restartsDue } from "../../src/workflows/replica-restarts.ts";
import { openHarness, type Harness, type TestGroup } from "../support/group-harness.ts";

let harness: Harness;
before(async () => {
  harness = await openHarness();
});
after(async () => await harness.stop());

const SHORT = { windowMs: 500, answerMs: 500 } as const;

async function failedOver(options: { readonly machineNames?: readonly string[] } = {}): Promise<TestGroup> {
  const group = await harness.world(options);
  await group.protected(SHORT);
  await group.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  assert.equal((await group.ended("f1")).state, "done");
  await group.until("watched", (state) => state.replica !== undefined);
  return group;
}

test("a replica machine that dies is started again by the group, also when a start fails", async () => {
  const group = await failedOver();
  const { sites } = group;
  sites.fail({
    method: "hypervisor.start",
    at: 1,
    times: 1,
    when: "before",
    fault: new Fault("MACHINE_NOT_STARTED", "No memory left"),
  });
  sites.goesOff("f1-web", "died");
  const seen = await group.until("the failed start", (state) =>
    state.health.some(({ code, cause }) => code === "REPLICA_MACHINE_OFF" && cause.includes("No memory left")),
  );
  const reason = seen.health.find(({ code }) => code === "REPLICA_MACHINE_OFF");
  assert.match(reason?.remedy ?? "", /by itself, try 2 of 5; at once with "leeward operation retry f1 web"/);
  await group.until("running again", () => sites.world.machines["f1-web"]?.power === "running", 60_000);
  const well = await group.until(
    "no complaint",
    (state) => !state.health.some(({ code }) => code === "REPLICA_MACHINE_OFF"),
  );
  assert.deepEqual(well.replicaMachines?.off, []);
});

test("a machine that was shut down stays off until a person starts it with the command that its health names", async () => {
  const group = await failedOver({ machineNames: ["web", "db"] });
  const { sites } = group;
  sites.goesOff("f1-db", "told");
  const seen = await group.until("seen", (state) => state.replicaMachines?.off.includes("db") === true);
  assert.match(
    seen.health.find(({ code }) => code === "REPLICA_MACHINE_OFF")?.remedy ?? "",
    /leeward operation retry f1 db/,
  );
  assert.ok(seen.allowedOperations.includes("retry-member"));
  const starts = sites.calls.filter((call) => call === "hypervisor.start").length;
  // Several windows later nobody has touched it.
  await new Promise((resolve) => setTimeout(resolve, 2_500));
  assert.equal(sites.world.machines["f1-db"]?.power, "off");
  assert.equal(sites.calls.filter((call) => call === "hypervisor.start").length, starts);

  const wrong = await group.refused(group.update("retryMembers", { operationId: "r0", machine: "web" }));
  assert.equal(wrong.code, "NOT_FOUND");
  await group.update("retryMembers", { operationId: "r1", machine: "db" });
  assert.equal((await group.ended("r1")).state, "done");
  assert.equal(sites.world.machines["f1-db"]?.power, "running");
  await group.until("well", (state) => state.replicaMachines?.off.length === 0);
});

test("tries are bounded, take longer each time, and begin anew once the machine has run for a while", () => {
  const replica = (more: Partial<ReplicaRecord>): ReplicaRecord => ({
    operationId: "f1",
    pointId: "p",
    machines: [{ name: "web", machineId: "f1-web" }],
    machinesOff: ["web"],
    uncommittedSinceMs: 0,
    ...more,
  });
  const first = restartsDue(replica({}), ["web"], 1_000);
  assert.deepEqual(first, { web: { tries: 0, nextAtMs: 1_000 } });
  assert.equal(nextRestartAtMs(replica({ restarts: first })), 1_000);
  const worn = { web: { tries: RESTART_TRIES, nextAtMs: 5_000 } };
  assert.deepEqual(restartsDue(replica({ restarts: worn }), ["web"], 9_000_000), worn, "off for hours is not well");
  assert.equal(nextRestartAtMs(replica({ restarts: worn })), undefined);
  const running = replica({ restarts: worn, machinesOff: [] });
  assert.deepEqual(restartsDue(running, [], 6_000), worn, "it may die again at once");
  assert.deepEqual(restartsDue(running, [], 5_000 + 601_000), {});
  const shut = replica({ restarts: { web: { tries: 1, nextAtMs: 0 } } });
  assert.deepEqual(restartsDue(shut, [], 1_000), {}, "its guest shut it down");
});

test("the protection of a committed group ends only with its machines, whose last writes are kept", async () => {
  const group = await failedOver();
  const { sites } = group;
  const undecided = await group.refused(group.update("unprotect", { operationId: "x0", stopReplica: true }));
  assert.match(undecided.hint ?? "", /leeward commit .* or "leeward undo/);
  await group.update("commit", { operationId: "c1" });
  const refused = await group.refused(group.update("unprotect", { operationId: "x1" }));
  assert.equal(refused.code, "REFUSED");
  assert.match(refused.hint ?? "", /--stop-replica/);
  assert.equal(sites.world.machines["f1-web"]?.power, "running");

  const { barriers } = sites.world;
  const known = barriers.length;
  await group.update("unprotect", { operationId: "x2", stopReplica: true });
  const operation = await group.ended("x2");
  assert.deepEqual(
    operation.steps.map((step) => `${step.name}: ${step.state}`),
    [
      "stop machines: done",
      "last commit: done",
      "stop replication: done",
      "release target: done",
      "remove replica: done",
    ],
  );
  assert.ok(barriers.slice(known).some((one) => one.branch === "branch-f1"));
  assert.deepEqual(sites.leftovers(), []);
  assert.equal(sites.world.released, true);
  await group.until("ended", (state) => state.phase === "unprotected");
});

test("an end of protection that fails half-way brings the machines back", async () => {
  const group = await failedOver();
  const { sites } = group;
  await group.update("commit", { operationId: "c1" });
  sites.fail({
    method: "masterTarget.releaseGroup",
    at: 1,
    times: 1,
    when: "before",
    fault: new Fault("STORE_DENIED", "No"),
  });
  await group.update("unprotect", { operationId: "x1", stopReplica: true });
  assert.equal((await group.ended("x1", 60_000)).state, "failed");
  await group.until(
    "running again",
    (state) => state.phase === "committed" && sites.world.machines["f1-web"]?.power === "running",
    60_000,
  );
  assert.equal(sites.world.exports["f1"]?.open, true);
  await group.update("unprotect", { operationId: "x2", stopReplica: true });
  assert.equal((await group.ended("x2")).state, "done");
  assert.deepEqual(sites.leftovers(), []);
});
