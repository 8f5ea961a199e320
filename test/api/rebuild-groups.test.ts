import assert from "node:assert/strict";
import { test } from "node:test";
import { Fault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { CatalogedGroup } from "#ports/master-target.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import type { SiteAccess } from "../../src/api/dependencies.ts";
import { createRebuild } from "../../src/api/rebuild-groups.ts";
import type { AdoptedGroup } from "../../src/workflows/messages.ts";

function group(groupId: string, activeSite: string, record: JsonObject = {}): CatalogedGroup {
  return {
    groupId,
    entry: {
      revision: 3,
      writtenAtMs: 1,
      record: {
        version: 1,
        groupId,
        phase: "protected",
        sourceSite: "primary",
        targetSite: "secondary",
        operations: [],
        ...record,
      },
    },
    claim: { groupEpoch: 2, activeSite, operation: "p" },
    disk: { branch: "root", moving: false },
    damaged: [],
  };
}

/** A site whose master target answers with these groups; throws what `away` holds for as long as it is set. */
function site(storeId: string, groups: readonly CatalogedGroup[]): SiteAccess & { away: Fault | undefined } {
  const access = {
    away: undefined as Fault | undefined,
    masterTarget: {
      readCatalog: async () => {
        if (access.away !== undefined) throw access.away;
        return { storeId, groups };
      },
      listExports: async () => [],
    },
    hypervisor: { list: async () => [] },
    processServer: {},
  };
  return access as unknown as SiteAccess & { away: Fault | undefined };
}

function rebuildOver(sites: Record<string, SiteAccess>, adopt: (groupId: string, adopted: AdoptedGroup) => boolean) {
  const stop = new AbortController();
  const saved: string[][] = [];
  let rounds = 0;
  const rebuild = createRebuild({
    storeId: "store-s",
    rebuilt: [],
    sites: new Map(Object.entries(sites)),
    workflows: { adopt: async (groupId, adopted) => adopt(groupId, adopted) },
    save: async (rebuilt) => void saved.push([...rebuilt]),
    clock: {
      now: () => 0,
      monotonic: () => 0,
      sleep: async () => {
        rounds += 1;
        if (rounds > 5) stop.abort();
        await new Promise((resolve) => setImmediate(resolve));
        if (stop.signal.aborted) throw stop.signal.reason;
      },
    },
    log: silentLog,
  });
  return { rebuild, saved, run: async () => await rebuild.run(stop.signal) };
}

test("each group comes back, or says why not, and none keeps another from it", async () => {
  const groups = [
    group("a-fine", "primary"),
    group("b-there", "primary"),
    group("c-claimed", "tertiary"),
    group("d-ended", "primary", { phase: "unprotected" }),
    group("e-later", "primary", { version: 9 }),
    { groupId: "f-damaged", damaged: [{ key: "k", message: "its MAC does not hold" }] },
    group("g-wrong", "primary", { operations: "none" }),
    group("h-moved", "secondary", { targetSite: "primary", sourceSite: "secondary" }),
    group("i-fenced", "secondary"),
  ];
  const adopted: string[] = [];
  const { rebuild, saved, run } = rebuildOver({ secondary: site("store-s", groups) }, (groupId) => {
    adopted.push(groupId);
    return groupId !== "b-there";
  });
  assert.deepEqual([rebuild.view().state, rebuild.view().groups], ["rebuilding", []]);
  await run();
  const view = rebuild.view();
  assert.equal(view.state, "done");
  assert.deepEqual(
    view.groups.map((one) => [one.group, one.outcome]),
    [
      ["a-fine", "rebuilt"],
      ["b-there", "there"],
      ["c-claimed", "failed"],
      ["d-ended", "ended"],
      ["e-later", "failed"],
      ["f-damaged", "failed"],
      ["g-wrong", "failed"],
      ["h-moved", "elsewhere"],
      ["i-fenced", "rebuilt"],
    ],
  );
  const detail = (name: string) => view.groups.find((one) => one.group === name)?.detail ?? "";
  assert.match(detail("c-claimed"), /FENCED.*tertiary/);
  assert.match(detail("e-later"), /FORMAT_UNSUPPORTED.*9/);
  assert.match(detail("i-fenced"), /resume/);
  assert.deepEqual(adopted, ["a-fine", "b-there", "i-fenced"]);
  assert.deepEqual(saved, [["store-s"]]);
});

test("what cannot be asked is waited for; a group of another site's store comes from there", async () => {
  const secondary = site("store-s", [group("web", "secondary", { targetSite: "primary", sourceSite: "secondary" })]);
  const primary = site("store-p", [group("web", "secondary", { targetSite: "primary", sourceSite: "secondary" })]);
  secondary.away = new Fault("STORE_UNAVAILABLE", "Not now");
  let busy = 2;
  const { rebuild, saved, run } = rebuildOver({ secondary, primary }, () => {
    if (busy-- > 0) throw new Fault("PEER_UNREACHABLE", "Temporal does not answer");
    secondary.away = undefined;
    return true;
  });
  const running = run();
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(rebuild.view().state, "rebuilding");
  assert.match(rebuild.view().waitsFor ?? "", /STORE_UNAVAILABLE|Temporal|master target/);
  await running;
  assert.deepEqual([rebuild.view().state, rebuild.view().groups.map(({ outcome }) => outcome)], ["done", ["rebuilt"]]);
  assert.deepEqual(saved.at(-1), ["store-p", "store-s"]);
});
