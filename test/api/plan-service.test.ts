/** Plans through the service: versions, what changed, and what has become wrong since. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Fault, isFault, type FaultCode } from "#model/fault.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import type { ApiDependencies } from "../../src/api/dependencies.ts";
import type { GroupDirectory } from "../../src/api/group-directory.ts";
import { planService } from "../../src/api/plan/plan-service.ts";
import { createFakeSites, TARGET } from "../support/fake-sites.ts";

const sample = readFileSync(new URL("../../config/samples/recovery-plan.yaml", import.meta.url), "utf8");
const isCode = (code: FaultCode) => (error: unknown) => isFault(error, code);

function open() {
  const sites = createFakeSites({ groupId: "shop" });
  const groups = ["orders-db", "shop", "search"];
  const masterTarget = sites.dependencies.masterTarget(TARGET);
  const dependencies = {
    controlSite: TARGET,
    sites: new Map([[TARGET, { masterTarget }]]),
    clock: systemClock,
  } as unknown as ApiDependencies;
  const directory = { states: async () => groups.map((name) => ({ name })) } as unknown as GroupDirectory;
  return { sites, groups, service: planService(dependencies, { directory, by: "alice" }) };
}

test("a plan is kept as versions; the same again is not kept, and what changed is said by place", async () => {
  const { service } = open();
  const first = await service.applyPlan({ source: sample, note: "the first" });
  assert.deepEqual([first.stored, first.version, first.by, first.note], [true, 1, "alice", "the first"]);
  assert.equal((await service.applyPlan({ source: sample })).stored, false);
  const changed = sample.replace("rto: 15m", "rto: 10m");
  const dry = await service.applyPlan({ source: changed, dryRun: true });
  assert.deepEqual([dry.stored, dry.version, dry.versions], [false, 2, [1]]);
  assert.deepEqual(dry.changes, [{ at: "objectives.rtoMs", was: 900_000, is: 600_000 }]);
  const second = await service.applyPlan({ source: changed });
  assert.deepEqual([second.stored, second.version, second.changes], [true, 2, dry.changes]);
  assert.deepEqual((await service.plan("web-shop", { version: 1 })).source, sample);
  assert.deepEqual((await service.plan("web-shop")).boot, [
    { name: "data", groups: ["orders-db"] },
    { name: "front", groups: ["shop", "search"] },
  ]);
  await assert.rejects(service.plan("web-shop", { version: 3 }), isCode("NOT_FOUND"));
  await assert.rejects(service.plan("nothing"), isCode("NOT_FOUND"));
});

test("two that are applied at the same moment get two versions, and a lost reply makes no third", async () => {
  const { service, sites } = open();
  sites.loseFirstReplies();
  await assert.rejects(service.applyPlan({ source: sample }), isCode("PEER_UNREACHABLE"));
  assert.equal((await service.applyPlan({ source: sample })).version, 1, "it had been kept");
  const both = open().service;
  await both.applyPlan({ source: sample });
  const others = [sample.replace("15m", "1m"), sample.replace("15m", "2m")];
  await Promise.all(others.map((source) => both.applyPlan({ source })));
  const sources = await Promise.all([2, 3].map(async (version) => (await both.plan("web-shop", { version })).source));
  assert.deepEqual(sources.toSorted(), others.toSorted());
});

test("a plan whose group is gone is refused when it is applied, and named in the list when it was applied before", async () => {
  const { service, groups } = open();
  await service.applyPlan({ source: sample });
  assert.deepEqual(
    (await service.plans()).map(({ name, problem }) => [name, problem]),
    [["web-shop", undefined]],
  );
  groups.splice(1, 1);
  await assert.rejects(
    service.applyPlan({ source: sample }),
    (error) => isFault(error, "PLAN_INVALID") && /Group "shop" is not protected/.test(error.message),
  );
  assert.deepEqual(
    (await service.plans()).map(({ problem }) => problem),
    ["Not protected: shop"],
  );
});

test("a store that is away keeps nothing and says so", async () => {
  const { service, sites } = open();
  sites.fail({
    method: "masterTarget.readRecords",
    at: 1,
    times: 1,
    when: "before",
    fault: new Fault("STORE_UNAVAILABLE", "Away"),
  });
  await assert.rejects(service.applyPlan({ source: sample }), isCode("STORE_UNAVAILABLE"));
  assert.deepEqual(await service.plans(), []);
});
