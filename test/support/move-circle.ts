/**
 * A machine that goes out and comes home by every move there is, and what must hold after each of them, whatever was killed meanwhile.
 *
 * Invariants: `settled` below is the list: one active side, no orphan, nothing acknowledged lost, and an operation that ended says so.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Client, Connection } from "@temporalio/client";
import type { Machine } from "#ports/hypervisor.ts";
import { isFault } from "#model/fault.ts";
import type { GroupView, OperationState } from "../../src/api/contract.ts";
import { readInstallation } from "../../src/embedded/installation.ts";
import { SITES, siteFolder, type SiteName } from "../../src/embedded/layout.ts";
import { readSiteStatus } from "../../src/embedded/site-leader.ts";
import { siteProcessesAlive } from "../../src/embedded/site-processes.ts";
import type { Move } from "./kill-table.ts";
import { createStubDisk, readLedger, STUB_CONFIG } from "./stub-guest.ts";
import { until, type System } from "./system.ts";

const MIB = 1 << 20;
const SIZES = [4 * MIB, 2 * MIB];
const PATIENCE_MS = 120_000;

interface Here {
  readonly site: SiteName;
  readonly machineId: string;
}

export interface Traveller {
  readonly system: System;
  readonly name: string;
  /** Where its machine runs. */
  here: Here;
  /** The source of a failover that may still be undone. */
  origin: Here | undefined;
  /** The operation on whose export it runs; undefined: on taps. */
  replica: string | undefined;
  /** The newest record that any machine of it was seen to acknowledge. */
  acknowledged: number;
  /** What was acknowledged before and after the bookmark "before" was made. */
  bookmark: readonly [number, number];
  /** Operations that succeeded, and so may have left a machine. */
  readonly done: Set<string>;
  /** Its protection ended with its machine. */
  stopped: boolean;
}

export interface Journey {
  readonly move: Move;
  /** Give the order under this id; called again until it is taken. */
  begin(of: Traveller, operationId: string): Promise<unknown>;
  /** While it runs. */
  during?(of: Traveller, operation: OperationState): Promise<void>;
  /** What the move is for; the machine is followed to where it runs now. */
  arrive(of: Traveller, operation: OperationState): Promise<void>;
  /** Before the order. */
  prepare?(of: Traveller): Promise<void>;
}

const source = async (of: Traveller): Promise<void> => await freshPoint(of);

async function pullPlug({ system: { client }, name, here }: Traveller): Promise<void> {
  await until("the machine off", PATIENCE_MS, () => client.powerOffMachine(here.site, here.machineId));
  await until("the group to see it", PATIENCE_MS, async () =>
    (await client.group(name)).allowedOperations.includes("retry-member"),
  );
}

export const JOURNEYS = {
  failover: {
    move: "failover",
    prepare: async (of) => {
      const before = of.acknowledged;
      await of.system.client.bookmark(of.name, `before-${before}`);
      of.bookmark = [before, await acknowledged(of)];
      await freshPoint(of);
    },
    begin: async ({ system, name }, operationId) =>
      await system.client.failover(name, { operationId, mode: "unplanned" }),
    arrive: async (of, operation) => await movedOut(of, operation, "crash"),
  },
  "planned-failover": {
    move: "planned-failover",
    prepare: source,
    begin: async ({ system, name }, operationId) =>
      await system.client.failover(name, { operationId, mode: "planned" }),
    arrive: async (of, operation) => await movedOut(of, operation, "shutdown"),
  },
  failback: {
    move: "failback",
    prepare: source,
    begin: async ({ system, name }, operationId) => await system.client.failback(name, { operationId }),
    arrive: async (of, operation) => await movedOut(of, operation, "shutdown"),
  },
  retry: {
    move: "retry-member",
    prepare: pullPlug,
    begin: async ({ system, replica = "" }, operationId) =>
      await system.client.retryOperation(replica, { operationId }),
    arrive: async (of, operation) => {
      assert.equal(operation.machines?.[0]?.machineId, of.here.machineId);
      // Its plug was pulled, and what it had acknowledged is in the overlay.
      await booted(of, "power cut");
    },
  },
  "retry-at-point": {
    move: "retry-at-point",
    prepare: pullPlug,
    begin: async ({ system, replica = "", bookmark }, operationId) =>
      await system.client.retryOperation(replica, { operationId, point: `@before-${bookmark[0]}` }),
    arrive: async (of, operation) => {
      of.here = { site: of.here.site, machineId: machineOf(operation) };
      of.acknowledged = await foundAtBookmark(of);
    },
  },
  "change-point": {
    move: "change-point",
    begin: async ({ system, name, bookmark }, operationId) =>
      await system.client.changePoint(name, { operationId, point: `@before-${bookmark[0]}` }),
    arrive: async (of, operation) => {
      of.here = { site: "secondary", machineId: machineOf(operation) };
      of.replica = operation.operationId;
      of.acknowledged = await foundAtBookmark(of); // What it had written since is set aside.
    },
  },
  undo: {
    move: "undo",
    begin: async ({ system, name }, operationId) => await system.client.undo(name, { operationId }),
    arrive: async (of) => {
      assert.ok(of.origin !== undefined);
      of.here = of.origin;
      of.origin = undefined;
      of.replica = undefined;
      await isProtected(of);
      const ledger = await until("the source's ledger", PATIENCE_MS, async () => {
        const seen = await readLedger(of.system.state, of.here.site, of.here.machineId);
        return seen?.found !== undefined && seen;
      });
      assert.equal(ledger.found?.[0], ledger.found?.[1], "it was shut down, or never stopped");
      of.acknowledged = ledger.acknowledged;
    },
  },
  "test-failover": {
    move: "test-failover",
    prepare: source,
    begin: async ({ system, name }, operationId) =>
      await system.client.startTestFailover(name, { operationId, leaseMs: 600_000 }),
    during: async ({ system, name }, operation) => {
      const lease = operation.steps.find((step) => step.name === "lease");
      if (lease?.state === "running" && Date.now() - (lease.startedAtMs ?? 0) > 3_000)
        await system.client.cleanUpTestFailover(name, operation.operationId);
    },
    arrive: async () => undefined,
  },
  commit: {
    move: "commit",
    begin: async ({ system, name }, operationId) => await system.client.commit(name, { operationId }),
    arrive: async (of) => {
      of.origin = undefined;
      const before = of.acknowledged;
      await until("the machine to go on", PATIENCE_MS, async () => (await acknowledged(of)) > before);
    },
  },
  unprotect: {
    move: "unprotect",
    prepare: source,
    begin: async ({ system, name }, operationId) => await system.client.unprotect(name, { operationId }),
    arrive: async (of) => {
      const before = of.acknowledged;
      await until("the machine to go on", PATIENCE_MS, async () => (await acknowledged(of)) > before);
    },
  },
  "unprotect-replica": {
    move: "unprotect-replica",
    begin: async ({ system, name }, operationId) =>
      await system.client.unprotect(name, { operationId, stopReplica: true }),
    arrive: async (of) => {
      of.replica = undefined;
      of.stopped = true;
    },
  },
  reprotect: {
    move: "reprotect",
    begin: async ({ system, name }, operationId) => await system.client.reprotect(name, { operationId }),
    arrive: async (of) => {
      const before = of.acknowledged;
      of.replica = undefined;
      await isProtected(of);
      await until("the machine to go on", PATIENCE_MS, async () => (await acknowledged(of)) > before);
    },
  },
} satisfies Record<string, Journey>;

/** A machine at the primary site, protected, with a point. */
export async function setOut(system: System, name: string): Promise<Traveller> {
  const { client, folder } = system;
  const images = SIZES.map((_, index) => join(folder, `${name}-${index}.img`));
  for (const [index, image] of images.entries()) await createStubDisk(image, SIZES[index] ?? 0, index + name.length);
  await until("the order to protect", PATIENCE_MS, () =>
    client.protect({
      operationId: `protect-${name}`,
      name,
      disks: images.map((image) => `tap:${image}`),
      policy: { intervalMs: 500 },
      config: STUB_CONFIG,
    }),
  );
  const view = await until("taps", PATIENCE_MS, async () => {
    const group = await client.group(name);
    return group.phase === "protected" && group.disks.every((disk) => disk.tapUrl !== undefined) && group;
  });
  const machine = await client.createMachine("primary", {
    operationId: `source-${name}`,
    name: `source-${name}`,
    config: STUB_CONFIG,
    disks: view.disks.map(({ id, tapUrl = "" }, index) => ({
      diskId: id,
      url: tapUrl,
      ...(index === 0 ? { bootIndex: 1 } : {}),
    })),
    network: { mode: "isolated", forwards: [] },
    start: true,
  });
  const of: Traveller = {
    system,
    name,
    here: { site: "primary", machineId: machine.id },
    origin: undefined,
    replica: undefined,
    acknowledged: 0,
    bookmark: [0, 0],
    done: new Set([`source-${name}`]),
    stopped: false,
  };
  await until("its ledger", PATIENCE_MS, async () => (await acknowledged(of)) > 5);
  return of;
}

/** The newest acknowledged record by now. */
export async function acknowledged(of: Traveller): Promise<number> {
  const seen = await readLedger(of.system.state, of.here.site, of.here.machineId);
  of.acknowledged = Math.max(of.acknowledged, seen?.acknowledged ?? 0);
  return of.acknowledged;
}

async function movedOut(of: Traveller, operation: OperationState, how: "crash" | "shutdown"): Promise<void> {
  // Shut down, it is still there with its last word.
  await acknowledged(of);
  of.origin = of.here;
  of.here = { site: of.here.site === "primary" ? "secondary" : "primary", machineId: machineOf(operation) };
  of.replica = operation.operationId;
  await booted(of, how);
}

/**
 * crash: up to the newest point, which a journey waits for before; power cut: all that was acknowledged, and perhaps the record that was under way;
 * shutdown: exactly what was acknowledged.
 */
async function booted(of: Traveller, how: "crash" | "power cut" | "shutdown"): Promise<void> {
  const [first, second] = await foundAtBoot(of);
  const before = of.acknowledged;
  if (how === "shutdown") assert.deepEqual([first, second], [before, before], "what was acknowledged last");
  if (how === "power cut") assert.ok(second >= before && first <= before + 1, `${first}, ${second} after ${before}`);
  if (how === "crash") assert.ok(second >= of.bookmark[1], `${first}, ${second}; ${of.bookmark[1]} was in a point`);
  of.acknowledged = second;
  await until("the machine to go on", PATIENCE_MS, async () => (await acknowledged(of)) > second);
}

async function foundAtBookmark(of: Traveller): Promise<number> {
  const [first, second] = await foundAtBoot(of);
  const [before, after] = of.bookmark;
  assert.ok(
    second >= before && first <= after + 1,
    `found ${first}, ${second} at a point between ${before} and ${after}`,
  );
  return second;
}

async function foundAtBoot(of: Traveller): Promise<readonly [number, number]> {
  const found = await until("the ledger at boot", PATIENCE_MS, async () => {
    const ledger = await readLedger(of.system.state, of.here.site, of.here.machineId);
    return ledger?.found;
  });
  const [first, second] = found;
  assert.ok(first === second || first === second + 1, `disks of two instants: ${first} and ${second}`);
  return found;
}

/** Wait until the replica has all that is acknowledged now. */
async function freshPoint(of: Traveller): Promise<void> {
  await isProtected(of);
  const nowMs = Date.now();
  await until("a fresh point", PATIENCE_MS, async () => {
    const { rpoMs } = await of.system.client.group(of.name);
    return rpoMs !== null && Date.now() - rpoMs > nowMs;
  });
}

async function isProtected(of: Traveller): Promise<GroupView> {
  return await until("protected", PATIENCE_MS, async () => {
    const group = await of.system.client.group(of.name);
    return group.phase === "protected" && group;
  });
}

function machineOf(operation: OperationState): string {
  const [machine] = operation.machines ?? [];
  assert.ok(machine !== undefined, JSON.stringify(operation));
  return machine.machineId;
}

/** One active side, no orphan, and an operation that ended says how. Waits for what may take a moment; fails with what is not so. */
export async function settled(of: Traveller, operation: OperationState | undefined): Promise<void> {
  if (operation?.state === "done") {
    of.done.add(operation.operationId);
    for (const { name, state } of operation.steps)
      assert.ok(state === "done" || state === "skipped", `${name}: ${state}`);
  } else if (operation !== undefined) {
    assert.ok((operation.fault?.message ?? "") !== "", `it says nothing: ${JSON.stringify(operation)}`);
    assert.ok(
      !operation.steps.some(({ state }) => state === "running" || state === "waiting"),
      JSON.stringify(operation),
    );
  }
  let wrong = "";
  await until("the world to be in order", PATIENCE_MS, async () => {
    wrong = (await disorder(of)).join("; ");
    if (wrong !== "") throw new Error(wrong);
    return true;
  });
}

async function disorder(of: Traveller): Promise<readonly string[]> {
  const { system, name, here, replica } = of;
  const wrong: string[] = [];
  const group = await groupIfThere(of);
  if (group !== undefined && group.phase !== "unprotected" && group.activeSite !== here.site)
    wrong.push(`active at ${group.activeSite}, runs at ${here.site}`);
  for (const site of SITES) {
    const machines = await system.client.machines(site);
    // A former traveller's machine may go on where its protection has ended.
    const own = machines.filter(({ operationId }) => ownedBy(name, operationId));
    const running = own.filter(({ power }) => power !== "off");
    const wanted = site === here.site && !of.stopped ? [here.machineId] : [];
    if (running.map(({ id }) => id).join() !== wanted.join())
      wrong.push(`${site} runs ${running.map(described).join()}`);
    const orphans = own.filter(({ operationId }) => !of.done.has(operationId));
    if (orphans.length > 0) wrong.push(`orphans at ${site}: ${orphans.map(described).join()}`);
    wrong.push(...exportsLeft(of, site, site === here.site ? replica : undefined));
    const { guests, strays } = processesOf(system.state, site);
    if (guests !== machines.filter(({ power }) => power !== "off").length)
      wrong.push(`${guests} machines' processes at ${site}`);
    wrong.push(...strays.map((command) => `nobody's process at ${site}: ${command}`));
  }
  for (const id of await workflowsOf(of)) if (id !== `group/${name}`) wrong.push(`workflow ${id} still runs`);
  return wrong;
}

/** Its operations, and the one that made its machine at the source. */
function ownedBy(name: string, operationId: string): boolean {
  return operationId === `source-${name}` || operationId.startsWith(`${name}.`);
}

function described({ operationId, id, power }: Machine): string {
  return `${operationId} (${id}, ${power})`;
}

async function groupIfThere({ system, name }: Traveller): Promise<GroupView | undefined> {
  try {
    return await system.client.group(name);
  } catch (error) {
    if (isFault(error) && error.code === "NOT_FOUND") return undefined; // Its protection has ended.
    throw error;
  }
}

/** Open exports, and overlays, but those of `wanted`. */
function exportsLeft(
  { system: { state }, name }: Traveller,
  site: SiteName,
  wanted: string | undefined,
): readonly string[] {
  const folder = join(siteFolder(state, site), "master-target", "exports");
  const open: string[] = [];
  for (const file of readdirSync(folder).filter((one) => one.endsWith(".json"))) {
    const record = JSON.parse(readFileSync(join(folder, file), "utf8")) as { operationId: string; closed: boolean };
    if (!record.closed && ownedBy(name, record.operationId)) open.push(record.operationId);
  }
  const left = open.filter((one) => one !== wanted).map((one) => `export ${one} is open at ${site}`);
  return wanted === undefined || open.includes(wanted) ? left : [...left, `export ${wanted} is not open at ${site}`];
}

async function workflowsOf({ system, name }: Traveller): Promise<readonly string[]> {
  const { urls } = readInstallation(system.state) ?? {};
  const connection = await Connection.connect({ address: urls?.["temporal"] ?? "" });
  try {
    const ids: string[] = [];
    const query = `ExecutionStatus = 'Running' AND LeewardGroup = '${name}'`;
    for await (const one of new Client({ connection }).workflow.list({ query })) ids.push(one.workflowId);
    return ids;
  } finally {
    await connection.close();
  }
}

/** How many machines' processes a site has, and the commands of those that come from none of the roles that its leader keeps. */
function processesOf(state: string, site: SiteName): { readonly guests: number; readonly strays: readonly string[] } {
  const folder = siteFolder(state, site);
  const managed = new Set(readSiteStatus(folder)?.processes.flatMap(({ pid }) => pid ?? []));
  const alive = siteProcessesAlive(folder).map(({ pid }) => ({
    pid,
    command: procFile(pid, "cmdline").replaceAll("\0", " "),
  }));
  const known = ({ pid, command }: (typeof alive)[number]): boolean => {
    // A machine's process outlives whoever started it; the leader is what keeps the others.
    if (command.includes("-pidfile") || command.includes("site-leader")) return true;
    for (let at = pid; at > 1; at = parentOf(at)) if (managed.has(at)) return true;
    return command === ""; // It has ended meanwhile.
  };
  const guests = alive.filter(({ command }) => command.includes("-pidfile")).length;
  return { guests, strays: alive.filter((one) => !known(one)).map(({ pid, command }) => `${pid} ${command}`) };
}

function parentOf(pid: number): number {
  const stat = procFile(pid, "stat");
  return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1] ?? 0);
}

function procFile(pid: number, name: string): string {
  try {
    return readFileSync(`/proc/${pid}/${name}`, "utf8");
  } catch {
    return ""; // It ended.
  }
}

/** The order is given until it is taken: under one id, since an answer that was lost is no second move; under another after a refusal. Returns the id. */
export async function ordered(of: Traveller, journey: Journey, operationId: string): Promise<string> {
  let refusals = 0;
  return await until(`${journey.move} to be taken`, PATIENCE_MS, async () => {
    const id = refusals === 0 ? operationId : `${operationId}r${refusals}`;
    try {
      await journey.begin(of, id);
    } catch (error) {
      if (isFault(error) && error.code === "REFUSED") refusals += 1;
      throw error;
    }
    return id;
  });
}
