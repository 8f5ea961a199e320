/** The API over HTTP, with a real Temporal server and our real workflows, over two sites in memory. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Client, Connection } from "@temporalio/client";
import type { PeerIdentity } from "#ports/link.ts";
import type { CertificateLife } from "#model/certificate-life.ts";
import { Fault } from "#model/fault.ts";
import type { Machine } from "#ports/hypervisor.ts";
import type { ExportStatus } from "#ports/master-target.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { createApiClient } from "../../src/api/client.ts";
import type { ApiClient, GroupView } from "../../src/api/contract.ts";
import type { SiteAccess } from "../../src/api/dependencies.ts";
import { createGroupWorkflows } from "../../src/api/group-workflows.ts";
import { createDrillSchedules } from "../../src/api/plan/drill-schedules.ts";
import { createPlanRuns } from "../../src/api/plan/plan-runs.ts";
import { serveApi, type ApiServer } from "../../src/api/server.ts";
import { createApiService } from "../../src/api/service.ts";
import type { Fleet } from "../../src/main/worker-fleet.ts";
import { rejection } from "../contract/link.contract.ts";
import { createFakeSites, DISK_BYTES, SOURCE, TARGET, type FakeSites } from "../support/fake-sites.ts";
import { isOpen } from "../support/group-harness.ts";
import { startTemporal, type TestTemporal } from "../support/temporal.ts";

const TOKEN = "a-token-for-tests";
const DISK = "tap:/srv/web.img";

let temporal: TestTemporal;
let connection: Connection;
let fleet: Fleet;
let sites: FakeSites;
let server: ApiServer;
let api: ApiClient;
/** Roles of the target that are not connected to control. */
const away = new Set<string>();
const exports = new Map<string, ExportStatus>();
const asked: string[] = [];

/** Who was certified, as a test has it. */
const enrolled: (PeerIdentity & { readonly life?: CertificateLife })[] = [];

before(async () => {
  temporal = await startTemporal();
  connection = Connection.lazy({ address: temporal.address });
  sites = createFakeSites({ groupId: "web", isOpen: (workflowId, runId) => isOpen(temporal, workflowId, runId) });
  fleet = await temporal.work(
    {
      ...sites.activities,
      awaitTaps: async ({ diskIds }) =>
        diskIds.map((diskId) => ({ ...report, diskId, tapUrl: `nbd+unix:///${diskId}?socket=/tap` })),
    },
    [TARGET, SOURCE],
  );
  const service = createApiService({
    version: "1.2.3",
    controlSite: TARGET,
    sites: new Map([
      [SOURCE, access("primary")],
      [TARGET, access("secondary")],
    ]),
    connected: () => [
      { identity: { site: SOURCE, role: "process-server", name: "ps" }, connectedAtMs: 1 },
      ...(away.has("master-target")
        ? []
        : [{ identity: { site: TARGET, role: "master-target" as const, name: "mt" }, connectedAtMs: 1 }]),
      { identity: { site: TARGET, role: "worker", name: "w" }, connectedAtMs: 1 },
    ],
    enrolment: {
      caFingerprint: "ab",
      issueToken: async () => ({ token: "t", expiresAtMs: 0 }),
      redeem: async () => Promise.reject(new Fault("ENROLMENT_REFUSED", "No")),
      enrolled: () => enrolled,
      caExpiresAtMs: Date.now() + 3650 * 86_400_000,
    },
    orderPublicKey: "PEM",
    workflows: createGroupWorkflows({
      client: new Client({ connection }),
      clock: systemClock,
      address: temporal.address,
    }),
    drills: createDrillSchedules({ client: new Client({ connection }), clock: systemClock, address: temporal.address }),
    planRuns: createPlanRuns({ client: new Client({ connection }), clock: systemClock, address: temporal.address }),
    orders: () => (sites.world.order === undefined ? [] : [sites.world.order]),
    temporalUiUrl: "http://127.0.0.1:8233",
    redisReachable: async () => true,
    clock: systemClock,
    random: systemRandom,
    log: silentLog,
  });
  server = await serveApi({ host: "127.0.0.1", port: 0 }, { service, token: TOKEN, version: "1.2.3", log: silentLog });
  api = createApiClient({ url: server.url, token: TOKEN });
});

after(async () => {
  // The last test has stopped both; whatever failed before it has not.
  await server.close();
  await connection.close();
  fleet.stop();
  await fleet.ended;
  await temporal.stop();
});

test("everything but enrolment and the description needs the token, and every refusal is a fault", async () => {
  const status = async (path: string, init: RequestInit = {}) => {
    const response = await fetch(new URL(path, server.url), init);
    return [response.status, ((await response.json()) as { code?: string }).code];
  };
  const authorization = { authorization: `Bearer ${TOKEN}` };
  assert.deepEqual(await status("/v1/status"), [401, "CREDENTIALS_REJECTED"]);
  assert.deepEqual(await status("/v1/status", { headers: { authorization: "Bearer nearly" } }), [
    401,
    "CREDENTIALS_REJECTED",
  ]);
  assert.deepEqual(await status("/v1/nothing", { headers: authorization }), [404, "NOT_FOUND"]);
  assert.deepEqual(
    await status("/v1/groups", {
      method: "POST",
      headers: { ...authorization, "content-type": "application/json" },
      body: "{",
    }),
    [400, "USAGE"],
  );
  assert.deepEqual(
    await status("/v1/groups", {
      method: "POST",
      headers: { ...authorization, "content-type": "application/json" },
      body: '{"name":7}',
    }),
    [400, "USAGE"],
  );
  assert.deepEqual(
    await status("/v1/enroll", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: '{"token":"x","csr":"y"}',
    }),
    [403, "ENROLMENT_REFUSED"],
  );
  assert.deepEqual(await status("/v1/groups/web", { headers: authorization }), [404, "NOT_FOUND"]);
});

test("the description names every route", async () => {
  const description = (await (await fetch(new URL("/v1/openapi.json", server.url))).json()) as {
    paths: Record<string, object>;
  };
  const routes = Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path}`),
  );
  for (const route of [
    "get /v1/status",
    "post /v1/groups",
    "get /v1/groups/{name}/points",
    "post /v1/groups/{name}/failover",
    "post /v1/groups/{name}/change-point",
    "post /v1/groups/{name}/commit",
    "post /v1/groups/{name}/undo",
    "post /v1/groups/{name}/reprotect",
    "post /v1/groups/{name}/failback",
    "delete /v1/groups/{name}/test-failovers/{operation}",
    "post /v1/enroll",
  ]) {
    assert.ok(routes.includes(route), route);
  }
});

test("wrong input to protect is a coded error with a remedy, and changes nothing", async () => {
  const protect = (more: object) => api.protect({ name: "web", disks: [DISK], ...more });
  await rejection(protect({ name: "Web Tier" }), "USAGE");
  await rejection(protect({ disks: [] }), "USAGE");
  await rejection(protect({ disks: [DISK, DISK] }), "USAGE");
  await rejection(protect({ disks: ["trace:/dev/sda"] }), "USAGE");
  await rejection(protect({ disks: ["tap:relative.img"] }), "USAGE");
  await rejection(protect({ policy: { intervalMs: 1 } }), "USAGE");
  await rejection(protect({ policy: { intervalMs: 5000, rpoThresholdMs: 100 } }), "USAGE");
  await rejection(protect({ site: "moon" }), "USAGE");
  const nobody = await rejection(protect({ machine: "nobody" }), "AGENT_UNREACHABLE");
  assert.match(nobody.hint ?? "", /web at primary/);
  await rejection(protect({ disks: ["tap:/missing.img"] }), "IMAGE_MISSING");
  await rejection(protect({ disks: ["tap:/elsewhere.img"] }), "DISK_ALREADY_PROTECTED");
  assert.deepEqual(await api.groups(), []);
  assert.deepEqual(sites.calls, []);
});

test("protect returns at once and can be watched; repeated it is the same; its name and disks are taken", async () => {
  const body = {
    name: "web",
    disks: [DISK],
    policy: { intervalMs: 1_000, rpoThresholdMs: 15_000 },
    forwards: [{ guestPort: 80, hostPort: 0 }],
    operationId: "web.protect.1",
  };
  const [started, again] = await Promise.all([api.protect(body), api.protect(body)]);
  assert.equal(started.operationId, "web.protect.1");
  assert.deepEqual([again.operationId, again.workflowId], [started.operationId, started.workflowId]);
  const ended = await watch(started.operationId);
  assert.equal(ended.state, "done", JSON.stringify(ended.fault));

  const view = await api.group("web");
  assert.equal(view.phase, "protected");
  assert.deepEqual([view.sourceSite, view.targetSite, view.activeSite, view.epoch], [SOURCE, TARGET, SOURCE, 1]);
  assert.equal(view.disks.length, 1);
  assert.match(view.disks[0]!.id, /^d1-[0-9a-z]{8}$/);
  assert.deepEqual([view.disks[0]!.source, view.disks[0]!.sizeBytes], [DISK, DISK_BYTES]);
  assert.match(view.disks[0]!.tapUrl ?? "", /^nbd\+unix:/);
  assert.ok(view.rpoMs !== null && view.rpoMs < 15_000, `RPO ${view.rpoMs}`);
  assert.ok(view.allowedOperations.includes("failover"));
  assert.equal(view.newestPoint?.barrier, sites.world.barriers.at(-1)?.barrier);

  const taken = await rejection(api.protect({ name: "web", disks: ["tap:/other.img"] }), "REFUSED");
  assert.match(taken.hint ?? "", /Allowed now.*failover/);
  await rejection(api.protect({ name: "other", disks: [DISK] }), "DISK_ALREADY_PROTECTED");
  assert.deepEqual(
    (await api.groups()).map(({ name }) => name),
    ["web"],
  );
  const { groups, temporal: seen, version } = await api.status();
  assert.deepEqual([groups.length, seen.reachable, version], [1, true, "1.2.3"]);
});

test("pause and resume are done when they answer, and refused in the wrong state with what is allowed", async () => {
  assert.ok((await api.pause("web")).conditions.includes("Paused"));
  const refused = await rejection(api.pause("web"), "REFUSED");
  assert.match(refused.hint ?? "", /Allowed now: .*resume/);
  const planned = await rejection(api.failover("web", { mode: "planned" }), "REFUSED");
  assert.match(planned.hint ?? "", /Allowed now/);
  assert.deepEqual((await api.resume("web")).conditions, []);
  await rejection(api.resume("nothing-like-it"), "NOT_FOUND");
});

test("a bookmark is a point with a name; an unknown point is not found, whoever asks", async () => {
  await untilView((view) => view.newestPoint !== undefined);
  const point = await api.bookmark("web", "before-upgrade");
  assert.equal(point.name, "before-upgrade");
  assert.ok((await api.points("web")).some(({ id, name }) => id === point.id && name === "before-upgrade"));
  await rejection(api.bookmark("web", "no spaces"), "USAGE");
  await rejection(api.openExport("web", { point: "@nothing" }), "POINT_NOT_FOUND");
  await rejection(api.openExport("web", { point: "rubbish" }), "USAGE");
});

test("an export is opened at a point and closed; a test failover is listed, owns its export, and is cleaned up", async () => {
  const opened = await api.openExport("web", { point: "@before-upgrade", writable: true });
  assert.match(opened.operationId, /^web\.export\.[0-9a-z]{8}$/);
  assert.equal(exports.get(opened.operationId)?.mode, "throw-away");
  await api.closeExport(opened.operationId);
  assert.equal(exports.size, 0);
  await rejection(api.closeExport(opened.operationId), "NOT_FOUND");

  const started = await api.startTestFailover("web", { point: "@before-upgrade", leaseMs: 600_000 });
  const running = await watch(started.operationId, ({ machines }) => (machines ?? []).length > 0);
  assert.equal(running.kind, "testFailover");
  assert.equal(running.machines?.[0]?.forwards[0]?.guestPort, 80);
  await rejection(api.closeExport(started.operationId), "REFUSED");
  assert.deepEqual(
    (await api.listTestFailovers("web")).map(({ operationId }) => operationId),
    [started.operationId],
  );
  await rejection(api.startTestFailover("web", {}), "REFUSED");
  await api.cleanUpTestFailover("web", started.operationId);
  assert.equal((await watch(started.operationId)).state, "done");
  assert.deepEqual(sites.leftovers(), []);
});

test("what could be failed over is listed with the newest point of each grade, and the very command", async () => {
  const [candidate] = await api.failoverCandidates();
  assert.equal(candidate?.group, "web");
  assert.deepEqual(candidate.blockers, []);
  assert.equal(candidate.command, "leeward failover web --planned --yes");
  assert.deepEqual(
    candidate.points.map(({ selector }) => selector),
    ["latest", "@before-upgrade"],
  );
  assert.ok(candidate.points.every(({ ageMs }) => ageMs >= 0));
});

test("operations are found by id, wait for their end, and refuse to be cancelled when they are over", async () => {
  await rejection(api.operation("web.failover.unknown1"), "NOT_FOUND");
  await rejection(api.operation("unknown"), "NOT_FOUND");
  await rejection(api.cancelOperation("web.protect.1"), "REFUSED");
  const all = await api.operations();
  assert.ok(all.length >= 2);
  assert.deepEqual(
    all.map(({ startedAtMs }) => startedAtMs),
    all.map(({ startedAtMs }) => startedAtMs).toSorted((a, b) => b - a),
  );
});

test("without the role that would have to be asked, nobody calls a group healthy", async () => {
  assert.deepEqual((await api.group("web")).health, []);
  away.add("master-target");
  try {
    const { health } = await api.group("web");
    assert.deepEqual(
      health.map(({ code, level }) => `${code} ${level}`),
      ["TARGET_CONNECTING unknown"],
    );
    assert.match(health[0]?.cause ?? "", /not connected to control.*last seen \d{4}-/);
  } finally {
    away.clear();
  }
});

test("a dry run says the steps, the point and its age, what would be lost, and what keeps a move from being done", async () => {
  const phase = (await api.group("web")).phase;
  const planned = await api.dryRun("web", { move: "planned-failover" });
  assert.deepEqual([planned.refusal, planned.lossMs], [undefined, 0]);
  assert.ok(planned.steps.includes("final cut"));
  const lost = await api.dryRun("web", { move: "failover", sourceLost: true });
  assert.ok((lost.lossMs ?? -1) >= 0 && lost.point !== undefined && lost.point.ageMs >= 0);
  assert.match(lost.warnings.join(), /"primary" IS connected and replicating.*--planned/);
  const named = await api.dryRun("web", { move: "failover", point: "@before-upgrade" });
  assert.notEqual(named.point?.id, lost.point.id);
  await rejection(api.dryRun("web", { move: "failover", point: "@nothing" }), "POINT_NOT_FOUND");
  const undo = await api.dryRun("web", { move: "undo" });
  assert.match(undo.refusal?.message ?? "", /undo needs "failed-over"/);
  assert.equal((await api.group("web")).phase, phase, "nothing was changed");
});

test("a failover without its source needs a person's word; with it the machines run at the target", async () => {
  sites.loseSource(true);
  await untilView((view) => !view.allowedOperations.includes("planned-failover"));
  await rejection(api.failover("web", { mode: "planned" }), "REFUSED");
  const refused = await rejection(api.failover("web", { mode: "unplanned" }), "REFUSED");
  assert.match(refused.hint ?? "", /--source-lost/);
  assert.equal((await api.failoverCandidates())[0]?.command, "leeward failover web --source-lost --yes");
  await rejection(api.failover("web", { mode: "planned", sourceLost: true }), "USAGE");

  const body = {
    mode: "unplanned",
    sourceLost: true,
    note: "the site burned down",
    operationId: "web.failover.1",
  } as const;
  const answers = await Promise.all(Array.from({ length: 5 }, () => api.failover("web", body)));
  assert.equal(new Set(answers.map((answer) => JSON.stringify(answer))).size, 1, "five calls, one failover");
  const ended = await watch("web.failover.1");
  assert.equal(ended.state, "done", JSON.stringify(ended.fault));
  assert.equal(ended.machines?.[0]?.site, TARGET);
  const view = await api.group("web");
  assert.deepEqual([view.phase, view.activeSite, view.epoch], ["failed-over", TARGET, 2]);
  await rejection(api.failover("web", { mode: "unplanned", sourceLost: true }), "REFUSED");
});

test("a source that comes back after the failover is named in the group's health", async () => {
  sites.loseSource(false);
  const view = await api.group("web");
  assert.ok(view.health.some(({ code, level }) => code === "OLD_SOURCE_FENCED" && level === "warning"));
});

test("after the failover: another point, back to the source, and once more for good", async () => {
  const [oldest] = (await api.points("web")).slice(-1);
  await rejection(api.changePoint("web", { point: "@nothing" }), "POINT_NOT_FOUND");
  await rejection(api.retryOperation("web.failover.1"), "REFUSED"); // Nothing is missing.
  await rejection(api.skipOperation("web.failover.1"), "REFUSED");
  await rejection(api.retryOperation("web.protect.1"), "REFUSED");
  await rejection(api.changePoint("web", { point: "" }), "USAGE");
  const change = await api.changePoint("web", { point: oldest!.id, operationId: "web.change-point.1" });
  assert.equal(change.setsAside.branch, "branch-web.failover.1");
  const changed = await watch("web.change-point.1");
  assert.equal(changed.state, "done", JSON.stringify(changed.fault));
  assert.equal(changed.pointId, oldest!.id);
  const view = await api.group("web");
  assert.deepEqual([view.phase, view.branch, view.epoch], ["failed-over", "branch-web.change-point.1", 2]);
  assert.deepEqual(view.allowedOperations, ["change-point", "commit", "undo"]);
  const [candidate] = await api.failoverCandidates();
  assert.deepEqual(candidate?.commands, [
    "leeward change-point web --point POINT",
    "leeward commit web",
    "leeward undo web",
  ]);

  const back = await api.undo("web", { operationId: "web.undo.1", note: "a false alarm" });
  assert.equal(back.epoch, 3);
  assert.equal((await watch("web.undo.1")).state, "done");
  const home = await untilView((one) => one.phase === "protected" && one.backlogBytes === 0);
  assert.deepEqual([home.activeSite, home.branch, home.epoch], [SOURCE, "root", 3]);
  // What was set aside is listed, and is not the newest state of the group.
  const kept = sites.world.barriers.findLast((one) => one.branch.startsWith("branch-"));
  assert.ok((await api.points("web")).some((point) => point.barrier === kept!.barrier));
  assert.ok((await api.group("web")).newestPoint?.barrier !== kept!.barrier);
  await rejection(api.commit("web"), "REFUSED");

  await api.failover("web", { mode: "unplanned", sourceLost: true, operationId: "web.failover.2" });
  assert.equal((await watch("web.failover.2")).state, "done");
  sites.loseSource(true);
  const refused = await rejection(api.undo("web"), "REFUSED");
  assert.match(refused.message, /does not answer/);
  const committed = await api.commit("web", { note: "it stays" });
  assert.deepEqual([committed.phase, committed.allowedOperations], ["committed", ["reprotect", "unprotect"]]);
  await rejection(api.undo("web"), "REFUSED");
  sites.loseSource(false);
});

test("committed, it is reprotected; then it can only come home, and its old disks at home stay taken", async () => {
  await rejection(api.failback("web"), "REFUSED");
  for (const [id, machine] of Object.entries(sites.world.machines))
    if (machine.site === SOURCE) sites.world.machines[id] = { ...machine, power: "off" };
  await api.reprotect("web", { operationId: "web.reprotect.1", note: "the site is back" });
  const ended = await watch("web.reprotect.1");
  assert.equal(ended.state, "done", JSON.stringify(ended.fault));
  const view = await untilView((one) => one.phase === "protected");
  assert.deepEqual(
    [view.sourceSite, view.targetSite, view.homeSite, view.reversed, view.activeSite],
    [TARGET, SOURCE, SOURCE, true, TARGET],
  );
  assert.equal(view.disks[0]?.source, `replica:${view.disks[0]?.id}`);
  await rejection(api.protect({ name: "other", disks: [DISK] }), "DISK_ALREADY_PROTECTED");
  const points = await api.points("web");
  assert.ok(points.some((point) => point.name === "before-reprotect-web.reprotect.1"));
  const drill = await api.startTestFailover("web", { leaseMs: 60_000, operationId: "web.test.9" });
  await untilView((one) =>
    one.operations.some(
      (operation) => (operation.machines ?? []).length > 0 && operation.operationId === drill.operationId,
    ),
  );
  await api.cleanUpTestFailover("web", drill.operationId);
  assert.equal((await watch(drill.operationId)).state, "done");
  const opened = await api.openExport("web", { point: "latest" });
  await api.closeExport(opened.operationId);
  const away = (await api.failoverCandidates()).find((one) => one.group === "web");
  assert.match(away?.command ?? "", /leeward failback web --yes/);

  await api.failback("web", { operationId: "web.failback.1" });
  const home = await watch("web.failback.1");
  assert.equal(home.state, "done", JSON.stringify(home.fault));
  assert.equal(home.machines?.[0]?.site, SOURCE);
  assert.equal((await api.group("web")).activeSite, SOURCE);
});

test("machines of a site's hypervisor are made once, started, shut down", async () => {
  const body = {
    operationId: "demo",
    name: "web",
    config: { cpus: 1, memoryMiB: 128, firmware: "bios" },
    disks: [],
    network: { mode: "isolated", forwards: [{ guestPort: 80, hostPort: 0 }] },
    start: true,
  } as const;
  const machine = await api.createMachine(TARGET, body);
  assert.equal(machine.power, "running");
  assert.equal((await api.createMachine(TARGET, body)).id, machine.id);
  assert.deepEqual(
    (await api.machines(TARGET)).map(({ id }) => id),
    [machine.id],
  );
  assert.equal((await api.shutdownMachine(TARGET, machine.id, { timeoutMs: 1000 })).power, "off");
  assert.equal((await api.powerOffMachine(TARGET, machine.id)).power, "off");
  await rejection(api.machines("moon"), "USAGE");
});

test("without a worker, and without Temporal, every answer comes in time and says what is missing", async () => {
  fleet.stop();
  await fleet.ended;
  const unanswered = await rejection(api.group("web"));
  assert.ok(["PEER_UNREACHABLE", "TIMED_OUT"].includes(unanswered.code), unanswered.code);
  assert.match(`${unanswered.message} ${unanswered.hint}`, /worker/);
  const before = await api.status();
  assert.deepEqual([before.temporal.reachable, before.groups.length], [true, 0]);
  assert.equal(before.problems.length, 1);

  await temporal.stop();
  const refused = await rejection(api.pause("web"), "PEER_UNREACHABLE");
  assert.match(refused.message, /Temporal does not answer/);
  const afterwards = await api.status();
  assert.deepEqual([afterwards.temporal.reachable, afterwards.problems[0]?.code], [false, "PEER_UNREACHABLE"]);
});

const report = {
  diskId: "",
  source: DISK,
  sizeBytes: DISK_BYTES,
  sectorBytes: 512,
  unsyncedBytes: 0,
  dirtyBytes: 0,
  writtenBytes: 0,
  holdMsMax: 0,
  sweepReason: "",
};

async function watch(
  operationId: string,
  until: (operation: Awaited<ReturnType<ApiClient["operation"]>>) => boolean = () => false,
) {
  for (let round = 0; ; round += 1) {
    const operation = await api.operation(operationId, { waitMs: 500 });
    if (operation.state !== "running" || until(operation)) return operation;
    assert.ok(round < 120, `"${operationId}" does not end: ${JSON.stringify(operation)}`);
  }
}

async function untilView(holds: (view: GroupView) => boolean): Promise<GroupView> {
  for (let round = 0; ; round += 1) {
    const view = await api.group("web");
    if (holds(view)) return view;
    assert.ok(round < 400, JSON.stringify(view));
    await systemClock.sleep(100);
  }
}

/** A site for the API, over the same world that the activities change. Methods it must not call are missing. */
function access(site: "primary" | "secondary"): SiteAccess {
  const unreachable = async (): Promise<never> => Promise.reject(new Fault("PEER_UNREACHABLE", "Not connected"));
  const machines = new Map<string, Machine>();
  const power = (id: string, to: Machine["power"]): Machine => {
    const machine = { ...machines.get(id)!, power: to };
    machines.set(id, machine);
    return machine;
  };
  return {
    masterTarget: {
      observeGroup: async ({ groupId }: { groupId: string }) => (asked.push(groupId), unreachable()),
      listPoints: async ({ limit, ...line }: { groupId: string; limit?: number; branch?: string }) =>
        (await sites.dependencies.masterTarget(site).listPoints(line)).slice(0, limit),
      exportStatus: unreachable,
      openExport: async ({
        operationId,
        groupId,
        point,
        mode,
      }: {
        operationId: string;
        groupId: string;
        point: string;
        mode: ExportStatus["mode"];
      }) => {
        const made = {
          operationId,
          groupId,
          pointId: point,
          mode,
          disks: [],
          barrier: 0,
          barrierCutAtMs: 0,
          overlayBytes: 0,
          writtenBytes: 0,
        };
        exports.set(operationId, made);
        return made;
      },
      listExports: async () => [
        ...exports.values(),
        ...Object.entries(sites.world.exports).map(([operationId, one]) => ({ operationId, mode: one.mode })),
      ],
      closeExport: async ({ operationId }: { operationId: string }) => void exports.delete(operationId),
    },
    processServer: {
      inspectDisks: async ({ sources }: { sources: readonly string[] }) =>
        sources.map((source) => {
          if (source === "tap:/missing.img") throw new Fault("IMAGE_MISSING", `No image "${source}"`);
          if (source === "tap:/elsewhere.img")
            throw new Fault("DISK_ALREADY_PROTECTED", `Disk "${source}" is protected already`);
          return { source, sizeBytes: DISK_BYTES, sectorBytes: 512 };
        }),
      listAgents: async () => (site === "primary" ? [{ machine: "web", connected: true, bootId: "b", disks: [] }] : []),
      groupState: async ({ groupId }: { groupId: string }) => {
        if (sites.world.claims.activeSite === TARGET)
          return { groupId, orderVersion: 9, state: "fenced", disks: [], spoolBytes: 0, lastCutAtMs: 0 };
        return unreachable();
      },
    },
    hypervisor: {
      createMachine: async ({
        operationId,
        name,
        config,
        network,
      }: Parameters<SiteAccess["hypervisor"]["createMachine"]>[0]) => {
        const id = `${operationId}-${name}`;
        const made: Machine = {
          id,
          operationId,
          name,
          config,
          power: "off",
          forwards: network.forwards,
          consoleTail: "",
        };
        if (!machines.has(id)) machines.set(id, made);
        return machines.get(id)!;
      },
      start: async (id: string) => power(id, "running"),
      shutdown: async (id: string) => power(id, "off"),
      powerOff: async (id: string) => power(id, "off"),
      list: async () => [...machines.values()],
    },
  } as unknown as SiteAccess; // Only what the API calls.
}
