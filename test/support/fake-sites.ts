/**
 * Two sites in memory: full adapters of MasterTarget, ProcessServer and Hypervisor that keep a world one can look at, and that fail
 * where a test says.
 *
 * Invariants:
 * - every method is idempotent by its operation id, as the ports ask for; a repeat with other parameters is a bug and throws RangeError;
 * - replication happens in simulated cycles: while the order is active and its epoch is the claimed one, each look at the group makes a
 *   barrier;
 * - what must never happen throws RangeError: a machine on an export that is not served, and machines of the group at both sites;
 * - `fail` hits the Nth call that changes something (or a named one), either before it acts or after it acted (its reply is lost).
 */
import { Fault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { Hypervisor, Machine, MachineNetwork, MachineConfig, MachineDisk } from "#ports/hypervisor.ts";
import type { ExportMode, ExportStatus, MasterTarget } from "#ports/master-target.ts";
import type { ProcessServer } from "#ports/process-server.ts";
import type { GroupProgress, RecoveryPoint, ReplicationOrder } from "#ports/replication.ts";
import { createActivities, type ActivityDependencies } from "../../src/activities/create-activities.ts";
import type { Activities } from "../../src/activities/contract.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";

export interface FailRule {
  /** `masterTarget.fence`, … ; left out: counts every changing call. */
  readonly method?: string;
  /** 1 for the first matching call. */
  readonly at: number;
  /** How many matching calls fail from there on. */
  readonly times: number;
  readonly when: "before" | "after";
  readonly fault: Fault;
}

interface World {
  claims: { activeSite: string; branch: string; epoch: number; operations: Record<string, number> };
  prepared: boolean;
  released: boolean;
  order: ReplicationOrder | undefined;
  barriers: { barrier: number; cutAtMs: number; branch: string; name?: string }[];
  /** Where each branch but the first left which other one. */
  forks: Record<string, { parent: string; barrier: number }>;
  syncRemainingBytes: number;
  /** `closed`: by a call, and so not opened again but for who says so. */
  exports: Record<string, { mode: ExportMode; point: string; open: boolean; closed: boolean; discarded: boolean }>;
  machines: Record<
    string,
    Machine & { readonly disks: readonly MachineDisk[]; readonly network: MachineNetwork; readonly site: string }
  >;
  cuts: Record<string, { barrier: number; cutAtMs: number }>;
  /** Moves of disks under way: where to, and how much is there. A quarter is copied at each look. */
  moves: Record<string, { url: string; copiedBytes: number }>;
  /** By revision. */
  catalog: Map<number, JsonObject>;
}

export interface FakeSites {
  readonly world: World;
  /** Every call, in order: `masterTarget.fence`. */
  readonly calls: string[];
  readonly activities: Activities;
  /** The same world for workers in another process. */
  readonly dependencies: ActivityDependencies;
  fail(rule: FailRule): void;
  /** From now on the first call of each kind and object acts, and its reply is lost: every one of them is made twice. */
  loseFirstReplies(): void;
  /** The source's site is gone: its process server and hypervisor cannot be reached. */
  loseSource(lost: boolean): void;
  /** The process of this machine dies, or its guest shuts it down. */
  goesOff(machineId: string, how: "told" | "died"): void;
  /** The guest of this name does not shut down when asked. */
  stubborn: Set<string>;
  /** What exists that a clean world would not have: open exports, machines at the target. */
  leftovers(): readonly string[];
}

export const SOURCE = "primary";
export const TARGET = "secondary";
export const DISK_BYTES = 64 << 20;
const FIRST_PORT = 20_000;

export function createFakeSites(options: {
  readonly groupId: string;
  readonly machineNames?: readonly string[];
  readonly isOpen?: (workflowId: string, runId: string) => Promise<boolean>;
}): FakeSites {
  const { groupId, machineNames = ["web"] } = options;
  const world: World = {
    claims: { activeSite: "", branch: "root", epoch: 0, operations: {} },
    prepared: false,
    released: false,
    order: undefined,
    barriers: [],
    forks: {},
    syncRemainingBytes: DISK_BYTES,
    exports: {},
    machines: {},
    cuts: {},
    moves: {},
    catalog: new Map(),
  };
  const calls: string[] = [];
  const seenOnce = new Set<string>();
  let losingReplies = false;
  const rules: { rule: FailRule; seen: number }[] = [];
  let sourceLost = false;
  const stubborn = new Set<string>();

  // The source's machines run at the source, as an embedded installation has them.
  for (const name of machineNames)
    world.machines[`source-${name}`] = machine(`source-${name}`, "source", name, SOURCE, "running");

  /** Every call passes here. `changes`: it alters the world, so it counts as a step. */
  async function step<T>(method: string, changes: boolean, work: () => T, key = ""): Promise<T> {
    calls.push(method);
    const first = !seenOnce.has(`${method} ${key}`);
    seenOnce.add(`${method} ${key}`);
    const due = rules.filter(({ rule }) => (rule.method === undefined ? changes : rule.method === method));
    for (const one of due) one.seen += 1;
    const hit = due.find(({ rule, seen }) => seen >= rule.at && seen < rule.at + rule.times)?.rule;
    if (hit?.when === "before") throw hit.fault;
    const result = work();
    if (losingReplies && changes && first) throw new Fault("PEER_UNREACHABLE", `The reply of ${method} was lost`);
    if (hit !== undefined) throw hit.fault;
    return result;
  }

  const replicating = (): boolean =>
    !sourceLost &&
    world.order?.state === "active" &&
    world.prepared &&
    !world.released &&
    world.claims.activeSite === SOURCE &&
    world.order.groupEpoch === world.claims.epoch &&
    world.order.branch === world.claims.branch;

  function cycle(): World["barriers"][number] {
    world.syncRemainingBytes = Math.max(0, world.syncRemainingBytes - DISK_BYTES / 4);
    const { branch } = world.claims;
    const made = { barrier: (world.barriers.at(-1)?.barrier ?? 0) + 1, cutAtMs: Date.now(), branch };
    if (world.syncRemainingBytes === 0) world.barriers.push(made);
    return made;
  }

  const pointOf = ({ barrier, cutAtMs, name }: World["barriers"][number]): RecoveryPoint => ({
    id: `${String(cutAtMs).padStart(13, "0")}-${barrier.toString(16).padStart(16, "0")}`,
    groupId,
    barrier,
    cutAtMs,
    kind: name === undefined ? "recovery" : "bookmark",
    ...(name === undefined ? {} : { name }),
    consistency: "crash",
    grade: "committed",
    reasonKept: "journal",
    members: [],
  });

  function isOnLine({ branch, barrier }: World["barriers"][number], line: string): boolean {
    let last = Number.POSITIVE_INFINITY;
    for (let at: string | undefined = line; at !== undefined;) {
      if (branch === at) return barrier <= last;
      const fork: { parent: string; barrier: number } | undefined = world.forks[at];
      last = Math.min(last, fork?.barrier ?? 0);
      at = fork?.parent;
    }
    return false;
  }

  const progress = (): GroupProgress => {
    const newest = world.barriers.at(-1);
    return {
      groupId,
      state: world.claims.activeSite !== SOURCE ? "fenced" : world.syncRemainingBytes > 0 ? "seeding" : "live",
      connected: !sourceLost,
      disks: machineNames.map((name) => ({
        diskId: `${name}-0`,
        sizeBytes: DISK_BYTES,
        epoch: world.claims.epoch,
        seq: newest?.barrier ?? 0,
        cycle: newest?.barrier ?? 0,
        syncRemainingBytes: world.syncRemainingBytes,
        syncTotalBytes: DISK_BYTES,
      })),
      currentAsOfMs: newest?.cutAtMs ?? 0,
      barrier: newest?.barrier ?? 0,
      barrierCutAtMs: newest?.cutAtMs ?? 0,
      barrierCommittedAtMs: newest?.cutAtMs ?? 0,
      commits: newest?.barrier ?? 0,
      shippedBytes: 4096,
      storedBytes: 4096,
      syncBytesPerSecond: 1 << 20,
      backlogBytes: 0,
      writtenBytes: 8192,
      observedAtMs: Date.now(),
    };
  };

  const exportOf = (operationId: string): ExportStatus => {
    const found = world.exports[operationId];
    if (found === undefined || !found.open) throw new Fault("NOT_FOUND", `No export "${operationId}"`);
    return {
      operationId,
      groupId,
      pointId: found.point,
      mode: found.mode,
      disks: machineNames.map((name) => ({
        diskId: `${name}-0`,
        machine: name,
        url: `nbd+unix:///${name}-0?socket=/fake/${operationId}`,
        sizeBytes: DISK_BYTES,
        bootIndex: 0,
      })),
      ...(found.mode === "read-write" ? { branch: `branch-${operationId}` } : {}),
      barrier: 0,
      barrierCutAtMs: 0,
      overlayBytes: 0,
      writtenBytes: 0,
    };
  };

  const masterTarget: MasterTarget = {
    probeStore: async () =>
      await step("masterTarget.probeStore", true, () => ({
        storeId: "fake",
        checkedAtMs: Date.now(),
        endpoint: "memory",
      })),
    prepareGroup: async ({ sourceSite }) =>
      await step("masterTarget.prepareGroup", true, () => {
        if (!world.prepared && world.claims.epoch === 0)
          world.claims = { activeSite: sourceSite, branch: "root", epoch: 1, operations: {} };
        world.prepared = true;
        world.released = false;
        return { host: "127.0.0.1", port: 4000, branch: world.claims.branch, groupEpoch: world.claims.epoch };
      }),
    turn: async () => {
      throw new RangeError("not yet");
    },
    observeGroup: async ({ cursor, waitMs }) => {
      if (!world.prepared || world.released) throw new Fault("NOT_FOUND", `No group "${groupId}"`);
      await new Promise((resolve) => setTimeout(resolve, Math.min(waitMs, 100)));
      return await step("masterTarget.observeGroup", false, () => {
        if (replicating()) cycle();
        return { ...progress(), cursor: `${Number(cursor) + 1}` };
      });
    },
    listPoints: async ({ branch }) =>
      await step("masterTarget.listPoints", false, () =>
        world.barriers
          .filter((one) => branch === undefined || isOnLine(one, branch))
          .map(pointOf)
          .reverse(),
      ),
    bookmark: async ({ barrier, name }) =>
      await step("masterTarget.bookmark", true, () => {
        const found = world.barriers.find((one) => one.barrier === barrier);
        if (found === undefined) throw new Fault("POINT_NOT_FOUND", `No barrier ${barrier}`);
        const taken = world.barriers.find((one) => one.name === name);
        if (taken !== undefined && taken !== found) throw new Fault("REFUSED", `Bookmark "${name}" exists`);
        found.name = name;
        return pointOf(found);
      }),
    fence: async ({ operationId, activeSite, resume }) =>
      await step("masterTarget.fence", true, () => {
        const known = world.claims.operations[operationId];
        if (known === undefined) {
          world.claims.epoch += 1;
          world.claims.operations[operationId] = world.claims.epoch;
          world.claims.activeSite = activeSite;
          world.claims.branch = resume ?? world.claims.branch;
        }
        const newest = world.barriers.at(-1);
        return {
          groupEpoch: world.claims.operations[operationId]!,
          newestPoint: newest === undefined ? undefined : pointOf(newest),
        };
      }),
    openExport: async ({ operationId, point, mode, reopen }) =>
      await step("masterTarget.openExport", true, () => {
        const known = world.exports[operationId];
        const branch = `branch-${operationId}`;
        if (known?.closed === true && (reopen === undefined || known.discarded))
          throw new Fault("REFUSED", `The export "${operationId}" was closed`);
        if (mode === "read-write" && world.claims.activeSite !== TARGET)
          throw new Fault(known === undefined ? "REFUSED" : "FENCED", "The group is active elsewhere");
        world.exports[operationId] = { mode, point, open: true, closed: false, discarded: false };
        // As the real store has it: the replica's writes go to a branch of their own, and a fence ends whatever branch is current.
        if (mode === "read-write") {
          const from = world.barriers.find((one) => pointOf(one).id === point);
          world.forks[branch] ??= { parent: from?.branch ?? "root", barrier: from?.barrier ?? 0 };
          world.claims.branch = branch;
        }
        return exportOf(operationId);
      }),
    exportStatus: async ({ operationId }) =>
      await step("masterTarget.exportStatus", false, () => exportOf(operationId)),
    closeExport: async ({ operationId, discard }) =>
      await step("masterTarget.closeExport", true, () => {
        const found = world.exports[operationId];
        if (found === undefined) throw new Fault("NOT_FOUND", `No export "${operationId}"`);
        const user = Object.values(world.machines).find(
          (one) => one.power !== "off" && one.disks.some((disk) => disk.url.endsWith(`/fake/${operationId}`)),
        );
        if (user !== undefined) throw new RangeError(`Export "${operationId}" is closed under machine "${user.id}"`);
        // What the machines wrote last: a point of their branch, though nobody may write it any more once the group has moved.
        if (found.mode === "read-write" && !found.closed && world.claims.branch === `branch-${operationId}`) cycle();
        found.open = false;
        found.closed = true;
        found.discarded ||= discard;
      }),
    listExports: async () =>
      await step("masterTarget.listExports", false, () =>
        Object.keys(world.exports)
          .filter((id) => world.exports[id]!.open)
          .map(exportOf),
      ),
    recordGroup: async ({ revision, record }) =>
      await step("masterTarget.recordGroup", false, () => {
        world.catalog.set(revision, record);
        return { newest: Math.max(...world.catalog.keys()) };
      }),
    readCatalog: async () => {
      throw new RangeError("Nobody rebuilds control here");
    },
    keepControlKeys: async () => {
      throw new RangeError("There is no control here");
    },
    releaseGroup: async () =>
      await step("masterTarget.releaseGroup", true, () => {
        world.released = true;
      }),
  };

  const here = (): void => {
    if (sourceLost) throw new Fault("PEER_UNREACHABLE", `Site "${SOURCE}" is not connected`);
  };

  const processServer: ProcessServer = {
    putOrder: async () => {
      throw new RangeError("Orders go through control");
    },
    inspectDisks: async ({ sources }) =>
      await step("processServer.inspectDisks", true, () => {
        here();
        return sources.map((source) => ({ source, sizeBytes: DISK_BYTES, sectorBytes: 512 }));
      }),
    groupState: async () =>
      await step("processServer.groupState", false, () => {
        here();
        return {
          groupId,
          orderVersion: world.order?.version ?? 0,
          state: "live" as const,
          disks: machineNames.map((name) => ({
            diskId: `${name}-0`,
            source: `tap:/${name}.img`,
            sizeBytes: DISK_BYTES,
            sectorBytes: 512,
            tapUrl: `nbd+unix:///${name}?socket=/tap`,
            unsyncedBytes: 0,
            dirtyBytes: 0,
            writtenBytes: 0,
            holdMsMax: 0,
            sweepReason: "",
          })),
          spoolBytes: 0,
          lastCutAtMs: 0,
        };
      }),
    cutNow: async ({ operationId }) =>
      await step("processServer.cutNow", true, () => {
        here();
        if (!replicating()) throw new Fault("SOURCE_UNREACHABLE", "Nothing is replicated");
        world.cuts[operationId] ??= cycle();
        return world.cuts[operationId];
      }),
    listAgents: async () => await step("processServer.listAgents", false, () => []),
  };

  const hypervisor = (site: string): Hypervisor => {
    const reach = (): void => {
      if (site === SOURCE) here();
    };
    const found = (machineId: string) => {
      reach();
      const one = world.machines[machineId];
      if (one === undefined || one.site !== site) throw new Fault("NOT_FOUND", `No machine "${machineId}"`);
      return one;
    };
    const power = (machineId: string, to: Machine["power"]): Machine => {
      const before = found(machineId);
      if (to === "running") assertMayRun(before);
      const { wentOff: _wentOff, ...rest } = before;
      return (world.machines[machineId] = {
        ...rest,
        power: to,
        ...(to === "off" ? { wentOff: "told" as const } : {}),
        ...(to === "running" ? { startedAtMs: Date.now() } : {}),
      });
    };
    const assertMayRun = ({ id, disks, network }: World["machines"][string]): void => {
      const closed = Object.keys(world.exports).find(
        (one) => !world.exports[one]!.open && disks.some((disk) => disk.url.endsWith(`/fake/${one}`)),
      );
      if (closed !== undefined)
        throw new RangeError(`Machine "${id}" is started on export "${closed}", which is closed`);
      const isolated = network.mode === "isolated";
      if (!isolated && world.claims.activeSite !== site)
        throw new RangeError(`Machine "${id}" is started at "${site}" while "${world.claims.activeSite}" is active`);
    };
    return {
      kind: "fake",
      createMachine: async ({ operationId, name, config, disks, network }) =>
        await step(
          "hypervisor.createMachine",
          true,
          () => {
            reach();
            const id = `${operationId}-${name}`;
            world.machines[id] ??= {
              ...machine(id, operationId, name, site, "off", config),
              disks,
              network,
              forwards: network.forwards.map((one, at) => ({
                guestPort: one.guestPort,
                hostPort: one.hostPort === 0 ? FIRST_PORT + at : one.hostPort,
              })),
            };
            return world.machines[id];
          },
          `${operationId} ${name}`,
        ),
      start: async (machineId) => await step("hypervisor.start", true, () => power(machineId, "running"), machineId),
      shutdown: async (machineId, { timeoutMs }) =>
        await step(
          "hypervisor.shutdown",
          true,
          () => {
            if (stubborn.has(found(machineId).name))
              throw new Fault("TIMED_OUT", `Still running after ${timeoutMs} ms`);
            return power(machineId, "off");
          },
          machineId,
        ),
      powerOff: async (machineId) => await step("hypervisor.powerOff", true, () => power(machineId, "off")),
      inspect: async (machineId) => await step("hypervisor.inspect", false, () => found(machineId)),
      list: async (filter) =>
        await step("hypervisor.list", false, () => {
          reach();
          return Object.values(world.machines).filter(
            (one) => one.site === site && (filter?.operationId === undefined || one.operationId === filter.operationId),
          );
        }),
      moveDisk: async (machineId, { diskId, url, sizeBytes }) =>
        await step(
          "hypervisor.moveDisk",
          true,
          () => {
            const one = found(machineId);
            if (one.power !== "running") throw new Fault("REFUSED", `Machine "${one.name}" is off`);
            const key = `${machineId} ${diskId}`;
            const before = world.moves[key]?.url === url ? world.moves[key].copiedBytes : 0;
            delete world.moves[key];
            if (before < sizeBytes && one.disks.every((disk) => disk.diskId !== diskId || disk.url !== url)) {
              world.moves[key] = { url, copiedBytes: before + sizeBytes / 4 };
              return { state: "copying", copiedBytes: before, totalBytes: sizeBytes };
            }
            const disks = one.disks.map((disk) => (disk.diskId === diskId ? { ...disk, url } : disk));
            world.machines[machineId] = { ...one, disks };
            return { state: "done", copiedBytes: sizeBytes, totalBytes: sizeBytes };
          },
          `${machineId} ${diskId}`,
        ),
      destroy: async (machineId) =>
        await step(
          "hypervisor.destroy",
          true,
          () => {
            reach();
            delete world.machines[machineId];
          },
          machineId,
        ),
    };
  };

  const dependencies: ActivityDependencies = {
    masterTarget: (site) => {
      if (site !== TARGET) throw new RangeError(`No store of group at "${site}"`);
      return masterTarget;
    },
    processServer: () => processServer,
    hypervisor,
    orders: {
      put: async (_groupId, order) =>
        await step(
          "orders.put",
          true,
          () => {
            const same = JSON.stringify(order) === JSON.stringify(world.order);
            if (world.order !== undefined && !same && order.version <= world.order.version)
              throw new Fault("REFUSED", `Expected a version above ${world.order.version}, got ${order.version}`);
            world.order = order;
            return { version: order.version, delivered: !sourceLost };
          },
          `${order.version}`,
        ),
    },
    workflows: { isOpen: options.isOpen ?? (async () => true) },
    answers: async () => true,
    clock: systemClock,
  };

  return {
    world,
    calls,
    activities: createActivities(dependencies),
    dependencies,
    fail: (rule) => void rules.push({ rule, seen: 0 }),
    loseFirstReplies: () => {
      losingReplies = true;
      seenOnce.clear();
    },
    loseSource: (lost) => {
      sourceLost = lost;
    },
    goesOff: (machineId, how) => {
      const one = world.machines[machineId];
      if (one === undefined) throw new RangeError(`No machine "${machineId}"`);
      world.machines[machineId] = { ...one, power: "off", wentOff: how };
    },
    stubborn,
    leftovers: () => [
      ...Object.entries(world.exports).flatMap(([id, one]) => (one.open ? [`export ${id}`] : [])),
      ...Object.values(world.machines).flatMap((one) => (one.site === TARGET ? [`machine ${one.id}`] : [])),
    ],
  };
}

function machine(
  id: string,
  operationId: string,
  name: string,
  site: string,
  power: Machine["power"],
  config: MachineConfig = { cpus: 1, memoryMiB: 128, firmware: "bios" },
) {
  return {
    id,
    operationId,
    name,
    power,
    config,
    forwards: [],
    consoleTail: "",
    disks: [],
    network: { mode: "user" as const, forwards: [] },
    site,
  };
}
