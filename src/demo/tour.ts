/**
 * The tour: a running machine is protected, its whole site dies while it writes, and it comes up at the other site straight from the store. When the
 * first site is there again it is protected towards that one, and a drill from a schedule shows that it would come back from there too.
 *
 * Nothing here has a private way into the system: it uses the API like the CLI does, and asks the ledger over the network like a user would.
 * The one thing it does with its own hands is to burn the primary site down.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { Fault } from "#model/fault.ts";
import type { ApiClient, GroupView } from "../api/contract.ts";
import { drillBySchedule, failureOf, protectAgain } from "./drill.ts";
import { eventually } from "./eventually.ts";
import { ledgerStatus, verifyLedger, type LedgerVerdict } from "./ledger.ts";
import { createRecorder, type DemoReport, type Recorder } from "./report.ts";
import { durableAt, possibleAt, watchLedger, type Sighting } from "./watch.ts";

export interface TourDependencies {
  readonly client: ApiClient;
  readonly urls: Readonly<Record<string, string>>;
  readonly say: (line: string) => void;
  /** Fresh images: the disk the guest boots from, the one its ledger is mirrored to, and one that is just full. */
  readonly images: { readonly system: string; readonly data: string; readonly archive: string };
  /** kill -9 of every process of the site at once. */
  readonly loseSite: (site: string) => Promise<number>;
  /** Switch a lost site on again. */
  readonly startSite: (site: string) => Promise<void>;
  /** Where the drill's report is kept. */
  readonly reports: string;
}

const GROUP = "ledger";
const LEDGER_PORT = 8080;
const GUEST = { cpus: 1, memoryMiB: 160, firmware: "bios" } as const;
const BOOKMARK = "before-the-fire";

export async function tour(dependencies: TourDependencies): Promise<DemoReport> {
  const { client, say, images, urls } = dependencies;
  const recorder = createRecorder(say);

  const protection = await recorder.step("Protect the machine's three disks", () =>
    client.protect({
      name: GROUP,
      disks: [images.system, images.data, images.archive].map((image) => `tap:${image}`),
      policy: { intervalMs: 2_000 },
      config: GUEST,
      forwards: [{ guestPort: LEDGER_PORT, hostPort: 0 }],
    }),
  );
  const protectedAt = performance.now();
  const [sourcePort] = await recorder.step("The machine boots on its disks, beside their initial sync", () =>
    Promise.all([
      startSource(client).then(async (port) => {
        await untilLedger(port, 90_000);
        say("  its ledger answers");
        return port;
      }),
      initialSync(client, protection.operationId, { say, recorder, protectedAt }),
    ]),
  );

  const watch = watchLedger(sourcePort);
  try {
    await recorder.step("Delta cycles", () => watchDeltas(client, say, recorder));
    const bookmark = await recorder.step(`Bookmark @${BOOKMARK}`, () => client.bookmark(GROUP, BOOKMARK));
    await recorder.step("Test failover from the bookmark, isolated, while replication goes on", () =>
      testFailover(client, recorder, { sightings: watch.sightings, cutAtMs: bookmark.cutAtMs }),
    );
    await recorder.step("The machine goes on writing", () => sleep(5_000));
    const lastSeen = watch.sightings.at(-1)?.record ?? 0;
    const lostAtMs = Date.now();
    const killed = await recorder.step("The primary site burns down: kill -9 of every process while it writes", () =>
      dependencies.loseSite("primary"),
    );
    await watch.stop();
    recorder.check(
      "the source is gone",
      await ledgerStatus(sourcePort, 500).then(
        () => false,
        () => true,
      ),
      `${killed} processes killed, last record seen ${lastSeen}`,
    );
    await failOver(client, recorder, { sightings: watch.sightings, lostAtMs, say });
    await recorder.step("The primary is switched on again", () => returnOfThePrimary(dependencies, recorder));
  } finally {
    await watch.stop();
  }
  await protectAgain(client, recorder, GROUP);
  const drill = await recorder.step("A drill: the schedule starts the plan in test mode", () =>
    drillBySchedule(client, recorder, { group: GROUP, port: LEDGER_PORT, folder: dependencies.reports }),
  );
  return recorder.report(urls, drill);
}

async function startSource(client: ApiClient): Promise<number> {
  const disks = await eventually("the taps of its disks", 30_000, async () => {
    const { disks } = await client.group(GROUP);
    return disks.length === 3 && disks.every((disk) => disk.tapUrl !== undefined) ? disks : undefined;
  });
  const machine = await client.createMachine("primary", {
    operationId: "demo-source",
    name: GROUP,
    config: GUEST,
    disks: disks.map((disk, index) => ({
      diskId: disk.id,
      url: disk.tapUrl ?? "",
      ...(index === 0 ? { bootIndex: 1 } : {}),
    })),
    network: { mode: "isolated", forwards: [{ guestPort: LEDGER_PORT, hostPort: 0 }] },
    start: true,
  });
  return forwardedPort(machine.forwards);
}

async function initialSync(
  client: ApiClient,
  operationId: string,
  {
    say,
    recorder,
    protectedAt,
  }: { readonly say: (line: string) => void; readonly recorder: Recorder; readonly protectedAt: number },
): Promise<void> {
  let total = 0;
  await eventually("the first recovery point", 180_000, async () => {
    await failEarly(client, operationId);
    const view = await client.group(GROUP);
    total = Math.max(total, view.syncTotalBytes);
    if (view.syncRemainingBytes > 0) {
      const done = view.syncTotalBytes - view.syncRemainingBytes;
      const eta = view.etaMs === null ? "?" : `${(view.etaMs / 1000).toFixed(0)} s`;
      say(`  ${mib(done)} of ${mib(view.syncTotalBytes)} MiB, ${mib(view.syncBytesPerSecond)} MiB/s, ETA ${eta}`);
    }
    return view.phase === "protected" ? true : undefined;
  });
  say("  the first recovery point is there");
  const seconds = (performance.now() - protectedAt) / 1000;
  recorder.figure("Initial sync, disks", mib(total), "MiB");
  recorder.figure("Initial sync, until the first recovery point", seconds.toFixed(1), "s");
  recorder.figure("Initial sync, rate", (total / 2 ** 20 / seconds).toFixed(0), "MiB/s");
}

async function watchDeltas(client: ApiClient, say: (line: string) => void, recorder: Recorder): Promise<void> {
  const before = await client.group(GROUP);
  let worst = 0;
  for (let round = 0; round < 6; round += 1) {
    await sleep(2_000);
    const view = await client.group(GROUP);
    worst = Math.max(worst, view.rpoMs ?? 0);
    say(
      `  RPO ${((view.rpoMs ?? 0) / 1000).toFixed(1)} s, backlog ${kib(view.backlogBytes)} KiB, newest point ${view.newestPoint?.id ?? "none"}`,
    );
  }
  const after = await client.group(GROUP);
  recorder.figure("Written by the guest during the delta step", kib(after.writtenBytes - before.writtenBytes), "KiB");
  recorder.figure("Shipped for it", kib(after.shippedBytes - before.shippedBytes), "KiB");
  recorder.figure("Largest RPO seen", (worst / 1000).toFixed(1), "s");
  recorder.check(
    "new recovery points keep coming",
    (after.newestPoint?.barrier ?? 0) > (before.newestPoint?.barrier ?? 0),
    `newest ${after.newestPoint?.id ?? "none"}`,
  );
}

async function testFailover(
  client: ApiClient,
  recorder: Recorder,
  expected: { readonly sightings: readonly Sighting[]; readonly cutAtMs: number },
): Promise<void> {
  const bornAt = performance.now();
  const barrierBefore = (await client.group(GROUP)).newestPoint?.barrier ?? 0;
  const { operationId } = await client.startTestFailover(GROUP, { point: `@${BOOKMARK}`, leaseMs: 600_000 });
  const port = await replicaPort(client, operationId);
  const status = await untilLedger(port, 120_000);
  recorder.figure("Test failover, order to ledger answering", seconds(bornAt), "s");
  checkLedger(recorder, "test failover", await verifyLedger(port), expected);
  const barrierDuring = (await client.group(GROUP)).newestPoint?.barrier ?? 0;
  recorder.check(
    "replication went on during the test",
    barrierDuring > barrierBefore,
    `barrier ${barrierBefore} → ${barrierDuring}, test booted with record ${status.foundAtBoot[0]}`,
  );
  await client.cleanUpTestFailover(GROUP, operationId);
  const ended = await eventually("the clean-up of the test", 60_000, async () => {
    const operation = await client.operation(operationId, { waitMs: 1_000 });
    return operation.state === "running" ? undefined : operation;
  });
  const left = (await client.machines("secondary")).filter((machine) => machine.operationId === operationId);
  recorder.check(
    "the test is cleaned up",
    ended.state === "done" && left.length === 0,
    `${ended.state}, ${left.length} machines left`,
  );
}

async function failOver(
  client: ApiClient,
  recorder: Recorder,
  seen: { readonly sightings: readonly Sighting[]; readonly lostAtMs: number; readonly say: (line: string) => void },
): Promise<void> {
  const bornAt = performance.now();
  const { operationId } = await recorder.step("Failover is ordered", () =>
    client.failover(GROUP, { mode: "unplanned", sourceLost: true, note: "demo: the primary site burned down" }),
  );
  const port = await recorder.step("The machine is made from the newest point", () => replicaPort(client, operationId));
  await recorder.step("The ledger answers at the secondary site", () => untilLedger(port, 120_000));
  recorder.figure("RTO: order to ledger answering", seconds(bornAt), "s");
  const operation = await eventually("the end of the failover", 60_000, async () => {
    const state = await client.operation(operationId, { waitMs: 1_000 });
    return state.state === "running" ? undefined : state;
  });
  recorder.check("the failover finished", operation.state === "done", operation.state);
  const cutAtMs = operation.pointCutAtMs ?? 0;
  recorder.figure("RPO: age of the point when the site was lost", ((seen.lostAtMs - cutAtMs) / 1000).toFixed(1), "s");
  const verdict = await verifyLedger(port);
  checkLedger(recorder, "failover", verdict, { sightings: seen.sightings, cutAtMs });
  recorder.figure(
    "Records that were written after the point and are lost",
    Math.max(0, (seen.sightings.at(-1)?.record ?? 0) - verdict.foundAtBoot[1]),
    "records",
  );
  const later = await eventually("the ledger to go on", 30_000, async () => {
    const status = await ledgerStatus(port);
    return status.a > verdict.a ? status : undefined;
  });
  recorder.check(
    "the machine goes on writing at the secondary site",
    later.a > verdict.foundAtBoot[0],
    `record ${verdict.foundAtBoot[0]} → ${later.a}`,
  );
  const local = await eventually("its writes in the store", 60_000, async () => {
    const view = await client.group(GROUP);
    return view.activeSite === "secondary" && view.phase === "failed-over" ? view : undefined;
  });
  recorder.check(
    "the group is active at the secondary site",
    local.activeSite === "secondary",
    `phase ${local.phase}, epoch ${local.epoch}`,
  );
}

async function returnOfThePrimary({ startSite, client }: TourDependencies, recorder: Recorder): Promise<void> {
  const before = await client.group(GROUP);
  await startSite("primary");
  const view = await eventually("the returned primary to be noticed as fenced", 60_000, async () => {
    const group = await client.group(GROUP);
    return isFenced(group) ? group : undefined;
  });
  recorder.check(
    "the returned primary replicates nothing and says why",
    view.activeSite === "secondary" && view.epoch === before.epoch,
    view.health.map((reason) => reason.code).join(", "),
  );
}

function isFenced(view: GroupView): boolean {
  return (
    view.health.some((reason) => reason.code.includes("FENCED")) ||
    view.conditions.some((condition) => condition.includes("fenced"))
  );
}

/** Nothing before the point is missing, nothing after it is there, both disks agree. */
function checkLedger(
  recorder: Recorder,
  where: string,
  verdict: LedgerVerdict,
  expected: { readonly sightings: readonly Sighting[]; readonly cutAtMs: number },
): void {
  const [a, b] = verdict.foundAtBoot;
  const least = durableAt(expected.sightings, expected.cutAtMs);
  const most = possibleAt(expected.sightings, expected.cutAtMs);
  recorder.check(
    `${where}: no record before the point is missing, every checksum holds`,
    verdict.ok && verdict.whole && b >= least,
    `last record ${b}, at least ${least} expected`,
  );
  recorder.check(`${where}: both disks are of one instant`, a - b >= 0 && a - b <= 1, `A ${a}, B ${b}`);
  recorder.check(
    `${where}: nothing from after the point`,
    b <= most,
    `last record ${b}, at most ${most === Number.MAX_SAFE_INTEGER ? "any" : most}`,
  );
}

async function replicaPort(client: ApiClient, operationId: string): Promise<number> {
  return eventually("the replica machine", 120_000, async () => {
    const operation = await client.operation(operationId, { waitMs: 1_000 });
    if (operation.state === "failed" || operation.state === "cancelled") throw failureOf(operation);
    const machine = operation.machines?.[0];
    return machine === undefined ? undefined : forwardedPort(machine.forwards);
  });
}

async function failEarly(client: ApiClient, operationId: string): Promise<void> {
  const operation = await client.operation(operationId);
  if (operation.state === "failed" || operation.state === "cancelled") throw failureOf(operation);
}

function forwardedPort(forwards: readonly { readonly guestPort: number; readonly hostPort: number }[]): number {
  const port = forwards.find((one) => one.guestPort === LEDGER_PORT)?.hostPort;
  if (port === undefined || port === 0)
    throw new Fault("MACHINE_NOT_STARTED", `Port ${LEDGER_PORT} of the machine is not published`);
  return port;
}

function untilLedger(port: number, timeoutMs: number): ReturnType<typeof ledgerStatus> {
  return eventually(`the ledger at port ${port}`, timeoutMs, async () => {
    const status = await ledgerStatus(port, 1_000).catch(() => undefined); // Not up yet.
    return status !== undefined && status.a > status.foundAtBoot[0] ? status : undefined;
  });
}

const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);
const kib = (bytes: number): string => (bytes / 1024).toFixed(0);
const seconds = (bornAt: number): string => ((performance.now() - bornAt) / 1000).toFixed(1);
