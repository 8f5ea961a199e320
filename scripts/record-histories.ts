/**
 * Records histories of our workflows on a real Temporal server, for test/histories: `node scripts/record-histories.ts [SCENE…]`.
 *
 * Do this when a workflow's behaviour was changed on purpose, for new runs only, behind `patched()`: the old files stay, and the new ones
 * get the next number. A history that no longer replays means that running groups would stop.
 */
import { Fault } from "#model/fault.ts";
import { openHarness, type TestGroup } from "../test/support/group-harness.ts";
import { nextNumber, recordHistories } from "./history-files.ts";

const LOST = { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true } as const;

const scenes: Readonly<Record<string, (group: TestGroup) => Promise<void>>> = {
  "planned-failover": async (group) => {
    await group.update("bookmark", { operationId: "b1", name: "good" });
    await group.update("pause", { operationId: "p1" });
    await group.update("resume", { operationId: "r1" });
    await group.update("failover", { ...LOST, mode: "planned", sourceLost: false });
    await group.ended("f1");
    await group.until("watched", (state) => state.replica !== undefined);
  },
  "lost-site": async (group) => {
    group.sites.loseSource(true);
    await group.until("seen", (state) => state.health.length > 0);
    await group.update("failover", LOST);
    await group.ended("f1");
  },
  "failover-undone": async (group) => {
    group.sites.fail({
      method: "masterTarget.openExport",
      at: 1,
      times: 1,
      when: "before",
      fault: new Fault("KEY_MISSING", "No key"),
    });
    await group.update("failover", { ...LOST, sourceLost: false });
    await group.ended("f1");
    await group.until("replicating", (state) => state.health.length === 0 && state.progress?.state === "live");
  },
  "test-failover": async (group) => {
    await group.update("testFailoverStart", { operationId: "t1", point: "latest", leaseMs: 600_000 });
    await group.until("up", (state) =>
      state.operations.some((one) => one.steps.some((step) => step.name === "lease" && step.state === "running")),
    );
    await group.update("testFailoverCleanup", { operationId: "c1", testOperationId: "t1", force: false });
    await group.ended("t1");
  },
  "way-back": async (group) => {
    await group.update("bookmark", { operationId: "b1", name: "good" });
    const noBoot = new Fault("VERIFICATION_FAILED", "No boot device");
    group.sites.fail({ method: "hypervisor.start", at: 1, times: 1, when: "before", fault: noBoot });
    await group.update("failover", { ...LOST, sourceLost: false });
    await group.ended("f1");
    await group.update("retryMembers", { operationId: "retry" });
    await group.ended("retry");
    await group.update("changePoint", { operationId: "change", point: "@good" });
    await group.ended("change");
    await group.update("undo", { operationId: "undo" });
    await group.ended("undo");
    await group.until("replicating", (state) => state.health.length === 0 && state.progress?.state === "live");
  },
  "there-and-home": async (group) => {
    await group.update("failover", LOST);
    await group.ended("f1");
    await group.update("commit", { operationId: "commit" });
    for (const [id, machine] of Object.entries(group.sites.world.machines))
      if (machine.operationId === "source") group.sites.world.machines[id] = { ...machine, power: "off" };
    await group.update("reprotect", { operationId: "out" });
    await group.ended("out");
    const back = { mode: "planned", point: "latest", sourceLost: false, failback: true };
    await group.update("failover", { operationId: "home", ...back });
    await group.ended("home");
    await group.update("commit", { operationId: "commit2" });
    await group.update("reprotect", { operationId: "again" });
    await group.ended("again");
    await group.until("home", (state) => state.phase === "protected" && state.health.length === 0);
  },
  unprotect: async (group) => {
    await group.update("unprotect", { operationId: "u1" });
    await group.until("unprotected", (state) => state.phase === "unprotected");
  },
};

const wanted = process.argv.slice(2);
const harness = await openHarness();
try {
  const number = await nextNumber();
  for (const [name, play] of Object.entries(scenes)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue;
    const group = await harness.world({ machineNames: name === "way-back" ? ["web", "db"] : ["web"] });
    await group.protected();
    await play(group);
    await recordHistories(harness.temporal, `group/${group.groupId}`, `${String(number).padStart(3, "0")}-${name}`);
  }
} finally {
  await harness.stop();
}
