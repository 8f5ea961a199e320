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

/** What one site's store and master target have of the group. */
interface Store {
  claims: { activeSite: string; branch: string; epoch: number; operations: Record<string, number> };
  prepared: boolean;
  disks: readonly { readonly diskId: string; readonly machine: string }[];
  released: boolean;
  /** Whose process server it takes. */
  sourceSite: string;
  /** `from`: at which site that was written. */
  barriers: { barrier: number; cutAtMs: number; branch: string; from: string; name?: string }[];
  /** Where each branch but the first left which other one. */
  forks: Record<string, { parent: string; barrier: number }>;
  syncRemainingBytes: number;
  /** `closed`: by a call, and so not opened again but for who says so. */
  exports: Record<string, { mode: ExportMode; point: string; open: boolean; closed: boolean; discarded: boolean }>;
}

/** Its own fields are those of the secondary's store. */
interface World extends Store {
  /** The newest, as control has it. */
  order: ReplicationOrder | undefined;
  /** What each site's process server has been told last. */
  readonly orders: Record<string, ReplicationOrder>;
  machines: Record<
    string,
    Machine & { readonly disks: readonly MachineDisk[]; readonly network: MachineNetwork; readonly site: string }
  >;
  cuts: Record<string, { barrier: number; cutAtMs: number }>;
  /** Moves of disks under way: where to, and how much is there. A quarter is copied at each look. */
  moves: Record<string, { url: string; copiedBytes: number }>;
  /** By machine: the point that its disks take; done at the second look. */
  takes: Record<string, { readonly requestId: string; readonly point: string; readonly done: boolean }>;
  /** By revision. */
  catalog: Map<number, JsonObject>;
  /** Kept records, by collection and name, then by number. */
  kept: Map<string, Map<number, { writtenAtMs: number; record: JsonObject }>>;
}

export interface FakeSites {
  readonly groupId: string;
  readonly world: World;
  /** By site; the secondary's is `world`. */
  readonly stores: Readonly<Record<string, Store>>;
  /** Every call, in order: `masterTarget.fence`. */
  readonly calls: string[];
  readonly activities: Activities;
  /** The same world for workers in another process. */
  readonly dependencies: ActivityDependencies;
  fail(rule: FailRule): void;
  /** No rule of `fail` holds any more. */
  mend(): void;
  /** From now on the first call of each kind and object acts, and its reply is lost: every one of them is made twice. */
  loseFirstReplies(): void;
  /** The source's site is gone: its process server and hypervisor cannot be reached. */
  loseSource(lost: boolean): void;
  /** The process of this machine dies, or its guest shuts it down. */
  goesOff(machineId: string, how: "told" | "died"): void;
  /** The same of any site, with its master target. */
  lose(site: string, lost: boolean): void;
  /** The guest of this name does not shut down when asked. */
  stubborn: Set<string>;
  /** What exists that a clean world would not have: open exports, machines at the target. */
  leftovers(): readonly string[];
}

export const SOURCE = "primary";
export const TARGET = "secondary";
export const DISK_BYTES = 64 << 20;
const FIRST_PORT = 20_000;
const SITES = [SOURCE, TARGET];
/** Who has the disks that were made at the secondary. */
export const AGENT = "localhost-secondary";

const tapUrl = (site: string, diskId: string): string => `nbd+unix:///${diskId}?socket=/tap/${site}`;

function emptyStore(): Store {
  return {
    claims: { activeSite: "", branch: "root", epoch: 0, operations: {} },
    prepared: false,
    disks: [],
    released: false,
    sourceSite: SOURCE,
    barriers: [],
    forks: {},
    syncRemainingBytes: DISK_BYTES,
    exports: {},
  };
}

export function createFakeSites(options: {
  readonly groupId: string;
  readonly machineNames?: readonly string[];
  readonly isOpen?: (workflowId: string, runId: string) => Promise<boolean>;
}): FakeSites {
  const { groupId, machineNames = ["web"] } = options;
  const stores: Record<string, Store> = { [SOURCE]: emptyStore() };
  const world: World = {
    ...emptyStore(),
    order: undefined,
    orders: {},
    machines: {},
    cuts: {},
    moves: {},
    takes: {},
    catalog: new Map(),
    kept: new Map(),
  };
  stores[TARGET] = world;
  const calls: string[] = [];
  const seenOnce = new Set<string>();
  let losingReplies = false;
  const rules: { rule: FailRule; seen: number }[] = [];
  const lostSites = new Set<string>();
  const stubborn = new Set<string>();

  // The source's machines run at the source, as an embedded installation has them.
  for (const name of machineNames)
    world.machines[`source-${name}`] = {
      ...machine(`source-${name}`, "source", name, SOURCE, "running"),
      disks: [{ diskId: `${name}-0`, url: tapUrl(SOURCE, `${name}-0`) }],
    };

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

  const storeOf = (site: string): Store => {
    const store = stores[site];
    if (store === undefined) throw new RangeError(`No site "${site}"`);
    return store;
  };

  const reach = (site: string): void => {
    if (lostSites.has(site)) throw new Fault("PEER_UNREACHABLE", `Site "${site}" is not connected`);
  };

  /** The process server of the site that `store` takes has an order for it, under which the store takes what it sends. */
  const replicating = (site: string): boolean => {
    const { claims, prepared, released, sourceSite } = storeOf(site);
    const order = world.orders[sourceSite];
    return (
      !lostSites.has(sourceSite) &&
      order?.state === "active" &&
      order.target.site === site &&
      prepared &&
      !released &&
      claims.activeSite === sourceSite &&
      order.groupEpoch === claims.epoch &&
      order.branch === claims.branch
    );
  };

  function cycle(store: Store, from: string): Store["barriers"][number] {
    store.syncRemainingBytes = Math.max(0, store.syncRemainingBytes - DISK_BYTES / 4);
    const { branch } = store.claims;
    const highest = Math.max(0, ...SITES.map((site) => storeOf(site).barriers.at(-1)?.barrier ?? 0));
    const made = { barrier: highest + 1, cutAtMs: Date.now(), branch, from };
    if (store.syncRemainingBytes === 0) store.barriers.push(made);
    return made;
  }

  /** A new branch from the newest point of the line that is ended, for the operation; again for a repeat. */
  function beginReturn(store: Store, operationId: string, activeSite: string, atLeastEpoch: number): number {
    const { claims } = store;
    const known = claims.operations[operationId];
    if (known !== undefined) return known;
    const newest = store.barriers.findLast((one) => isOnLine(store, one, claims.branch));
    const first = claims.epoch === 0;
    claims.epoch = Math.max(claims.epoch, atLeastEpoch) + 1;
    claims.operations[operationId] = claims.epoch;
    claims.activeSite = activeSite;
    if (!first && newest !== undefined) {
      const branch = `r-${operationId}`;
      store.forks[branch] = { parent: newest.branch, barrier: newest.barrier };
      claims.branch = branch;
    }
    store.sourceSite = activeSite;
    store.syncRemainingBytes = DISK_BYTES;
    return claims.epoch;
  }

  const pointOf = ({ barrier, cutAtMs, name }: Store["barriers"][number]): RecoveryPoint => ({
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

  function isOnLine({ forks }: Store, { branch, barrier }: Store["barriers"][number], line: string): boolean {
    let last = Number.POSITIVE_INFINITY;
    for (let at: string | undefined = line; at !== undefined;) {
      if (branch === at) return barrier <= last;
      const fork: { parent: string; barrier: number } | undefined = forks[at];
      last = Math.min(last, fork?.barrier ?? 0);
      at = fork?.parent;
    }
    return false;
  }

  const progress = (store: Store): GroupProgress => {
    const newest = store.barriers.at(-1);
    return {
      groupId,
      state:
        store.claims.activeSite !== store.sourceSite ? "fenced" : store.syncRemainingBytes > 0 ? "seeding" : "live",
      connected: !lostSites.has(store.sourceSite),
      disks: machineNames.map((name) => ({
        diskId: `${name}-0`,
        sizeBytes: DISK_BYTES,
        epoch: store.claims.epoch,
        seq: newest?.barrier ?? 0,
        cycle: newest?.barrier ?? 0,
        syncRemainingBytes: store.syncRemainingBytes,
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

  const exportOf = (store: Store, operationId: string): ExportStatus => {
    const found = store.exports[operationId];
    if (found === undefined || !found.open) throw new Fault("NOT_FOUND", `No export "${operationId}"`);
    return {
      operationId,
      groupId,
      pointId: found.point,
      mode: found.mode,
      disks: store.disks.map(({ diskId, machine }) => ({
        diskId,
        machine,
        url: `nbd+unix:///${diskId}?socket=/fake/${operationId}`,
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

  const masterTargetOf = (site: string): MasterTarget => masterTarget(site, storeOf(site));

  const masterTarget = (site: string, store: Store): MasterTarget => ({
    probeStore: async () =>
      await step("masterTarget.probeStore", true, () => {
        reach(site);
        return { storeId: `fake-${site}`, checkedAtMs: Date.now(), endpoint: "memory" };
      }),
    prepareGroup: async ({ operationId, sourceSite, atLeastEpoch, disks }) =>
      await step("masterTarget.prepareGroup", true, () => {
        reach(site);
        if (atLeastEpoch !== undefined) {
          const known = store.claims.operations[operationId] !== undefined;
          beginReturn(store, operationId, sourceSite, atLeastEpoch);
          if (!known) store.released = false;
        } else {
          if (!store.prepared && store.claims.epoch === 0)
            store.claims = { activeSite: sourceSite, branch: "root", epoch: 1, operations: { [operationId]: 1 } };
          store.released = false;
        }
        store.prepared = true;
        store.disks = disks;
        return { host: "127.0.0.1", port: 4000, branch: store.claims.branch, groupEpoch: store.claims.epoch };
      }),
    turn: async ({ operationId, activeSite, atLeastEpoch }) =>
      await step("masterTarget.turn", true, () => {
        reach(site);
        const fork = (): number | undefined => store.forks[`r-${operationId}`]?.barrier;
        const groupEpoch = beginReturn(store, operationId, activeSite, atLeastEpoch);
        const newest = store.barriers.find((one) => one.barrier === fork());
        const newestPoint = newest === undefined ? undefined : pointOf(newest);
        return { branch: store.claims.branch, groupEpoch, host: "127.0.0.1", port: 4000, newestPoint };
      }),
    observeGroup: async ({ cursor, waitMs }) => {
      if (!store.prepared || store.released) throw new Fault("NOT_FOUND", `No group "${groupId}"`);
      await new Promise((resolve) => setTimeout(resolve, Math.min(waitMs, 100)));
      return await step("masterTarget.observeGroup", false, () => {
        reach(site);
        if (replicating(site)) cycle(store, store.sourceSite);
        return { ...progress(store), cursor: `${Number(cursor) + 1}` };
      });
    },
    listPoints: async ({ branch }) =>
      await step("masterTarget.listPoints", false, () => {
        reach(site);
        return store.barriers
          .filter((one) => branch === undefined || isOnLine(store, one, branch))
          .map(pointOf)
          .reverse();
      }),
    bookmark: async ({ barrier, name }) =>
      await step("masterTarget.bookmark", true, () => {
        const found = store.barriers.find((one) => one.barrier === barrier);
        if (found === undefined) throw new Fault("POINT_NOT_FOUND", `No barrier ${barrier}`);
        const taken = store.barriers.find((one) => one.name === name);
        if (taken !== undefined && taken !== found) throw new Fault("REFUSED", `Bookmark "${name}" exists`);
        found.name = name;
        return pointOf(found);
      }),
    fence: async ({ operationId, activeSite, resume }) =>
      await step("masterTarget.fence", true, () => {
        const known = store.claims.operations[operationId];
        if (known === undefined) {
          store.claims.epoch += 1;
          store.claims.operations[operationId] = store.claims.epoch;
          store.claims.activeSite = activeSite;
          store.claims.branch = resume ?? store.claims.branch;
        }
        const newest = store.barriers.at(-1);
        return {
          groupEpoch: store.claims.operations[operationId]!,
          newestPoint: newest === undefined ? undefined : pointOf(newest),
        };
      }),
    openExport: async ({ operationId, point, mode, reopen }) =>
      await step("masterTarget.openExport", true, () => {
        const known = store.exports[operationId];
        const branch = `branch-${operationId}`;
        if (known?.closed === true && (reopen === undefined || known.discarded))
          throw new Fault("REFUSED", `The export "${operationId}" was closed`);
        if (mode === "read-write" && store.claims.activeSite !== site)
          throw new Fault(known === undefined ? "REFUSED" : "FENCED", "The group is active elsewhere");
        store.exports[operationId] = { mode, point, open: true, closed: false, discarded: false };
        // As the real store has it: the replica's writes go to a branch of their own, and a fence ends whatever branch is current.
        if (mode === "read-write") {
          const from = store.barriers.find((one) => pointOf(one).id === point);
          store.forks[branch] ??= { parent: from?.branch ?? "root", barrier: from?.barrier ?? 0 };
          store.claims.branch = branch;
        }
        return exportOf(store, operationId);
      }),
    takePoint: async ({ operationId, requestId, machine: name, point }) =>
      await step(
        "masterTarget.takePoint",
        true,
        () => {
          reach(site);
          exportOf(store, operationId);
          if (world.machines[`${operationId}-${name}`] !== undefined)
            throw new RangeError(`Disks of machine "${name}" are changed while there is a machine on them`);
          const before = world.takes[name];
          const repeat = before?.requestId === requestId;
          const comparedBytes = repeat ? DISK_BYTES : DISK_BYTES / 2;
          world.takes[name] = { requestId, point, done: repeat };
          return { done: repeat, comparedBytes, totalBytes: DISK_BYTES, writtenBytes: 4096 };
        },
        `${requestId}`,
      ),
    exportStatus: async ({ operationId }) =>
      await step("masterTarget.exportStatus", false, () => {
        reach(site);
        return exportOf(store, operationId);
      }),
    closeExport: async ({ operationId, discard }) =>
      await step("masterTarget.closeExport", true, () => {
        const found = store.exports[operationId];
        if (found === undefined) throw new Fault("NOT_FOUND", `No export "${operationId}"`);
        const user = Object.values(world.machines).find(
          (one) => one.power !== "off" && one.disks.some((disk) => disk.url.endsWith(`/fake/${operationId}`)),
        );
        if (user !== undefined) throw new RangeError(`Export "${operationId}" is closed under machine "${user.id}"`);
        // What the machines wrote last: a point of their branch, though nobody may write it any more once the group has moved.
        if (found.mode === "read-write" && !found.closed && store.claims.branch === `branch-${operationId}`)
          cycle(store, site);
        found.open = false;
        found.closed = true;
        found.discarded ||= discard;
      }),
    listExports: async () =>
      await step("masterTarget.listExports", false, () =>
        Object.keys(store.exports)
          .filter((id) => store.exports[id]!.open)
          .map((id) => exportOf(store, id)),
      ),
    expirePoints: async () => await step("masterTarget.expirePoints", false, () => []),
    recordGroup: async ({ revision, record }) =>
      await step("masterTarget.recordGroup", false, () => {
        world.catalog.set(revision, record);
        return { newest: Math.max(...world.catalog.keys()) };
      }),
    keepRecord: async ({ collection, name, number, record }) =>
      await step(
        "masterTarget.keepRecord",
        true,
        () => {
          reach(site);
          const key = `${collection}/${name}`;
          const series = world.kept.get(key) ?? new Map<number, { writtenAtMs: number; record: JsonObject }>();
          world.kept.set(key, series);
          const known = series.get(number);
          if (known === undefined) series.set(number, { writtenAtMs: Date.now(), record });
          return { kept: known === undefined || JSON.stringify(known.record) === JSON.stringify(record) };
        },
        `${collection}/${name}/${number}`,
      ),
    readRecords: async ({ collection, name, newest, upTo = Number.MAX_SAFE_INTEGER }) =>
      await step("masterTarget.readRecords", false, () => {
        reach(site);
        return [...world.kept].flatMap(([key, series]) => {
          const [kind, found = ""] = key.split("/");
          if (kind !== collection || (name !== undefined && found !== name)) return [];
          const numbers = [...series.keys()].sort((a, b) => a - b);
          const records = numbers
            .filter((one) => one <= upTo)
            .toReversed()
            .slice(0, newest);
          return [
            {
              name: found,
              numbers,
              records: records.map((number) => ({ number, ...series.get(number)! })),
              damaged: [],
            },
          ];
        });
      }),
    readCatalog: async () => {
      throw new RangeError("Nobody rebuilds control here");
    },
    keepControlKeys: async () => {
      throw new RangeError("There is no control here");
    },
    releaseGroup: async () =>
      await step("masterTarget.releaseGroup", true, () => {
        reach(site);
        store.released = true;
      }),
  });

  const processServer = (site: string): ProcessServer => ({
    putOrder: async () => {
      throw new RangeError("Orders go through control");
    },
    inspectDisks: async ({ sources }) =>
      await step("processServer.inspectDisks", true, () => {
        reach(site);
        return sources.map((source) => ({ source, sizeBytes: DISK_BYTES, sectorBytes: 512 }));
      }),
    groupState: async () =>
      await step("processServer.groupState", false, () => {
        reach(site);
        return {
          groupId,
          orderVersion: world.orders[site]?.version ?? 0,
          state: "live" as const,
          disks: (world.orders[site]?.members ?? []).flatMap(({ disks }) =>
            disks.map(({ diskId, source }) => ({
              diskId,
              source,
              sizeBytes: DISK_BYTES,
              sectorBytes: 512,
              tapUrl: tapUrl(site, diskId),
              clients: Object.values(world.machines).filter(
                (one) =>
                  one.site === site &&
                  one.power !== "off" &&
                  one.disks.some((disk) => disk.url === tapUrl(site, diskId)),
              ).length,
              unsyncedBytes: 0,
              dirtyBytes: 0,
              writtenBytes: 0,
              holdMsMax: 0,
              sweepReason: "",
            })),
          ),
          spoolBytes: 0,
          lastCutAtMs: 0,
        };
      }),
    cutNow: async ({ operationId }) =>
      await step("processServer.cutNow", true, () => {
        reach(site);
        const target = world.orders[site]?.target.site ?? "";
        if (target === "" || !replicating(target)) throw new Fault("SOURCE_UNREACHABLE", "Nothing is replicated");
        world.cuts[operationId] ??= cycle(storeOf(target), site);
        return world.cuts[operationId];
      }),
    listAgents: async () =>
      await step("processServer.listAgents", false, () => {
        reach(site);
        const names = site === TARGET ? [AGENT] : machineNames;
        return names.map((machine) => ({ machine, connected: true, bootId: "", disks: [] }));
      }),
  });

  const hypervisor = (site: string): Hypervisor => {
    const found = (machineId: string) => {
      reach(site);
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
    const assertMayRun = ({ id, name, disks, network }: World["machines"][string]): void => {
      if (world.takes[name]?.done === false) throw new RangeError(`Machine "${id}" is started on disks of no point`);
      const { exports } = storeOf(site);
      const closed = Object.keys(exports).find(
        (one) => !exports[one]!.open && disks.some((disk) => disk.url.endsWith(`/fake/${one}`)),
      );
      if (closed !== undefined)
        throw new RangeError(`Machine "${id}" is started on export "${closed}", which is closed`);
      const isolated = network.mode === "isolated";
      // On an export its own store says whether it may; on taps the one that it is replicated to.
      const isExported = disks.some((disk) => disk.url.includes("/fake/"));
      const says = storeOf(isExported ? site : SITES.find((one) => one !== site)!).claims;
      if (!isolated && says.activeSite !== site)
        throw new RangeError(`Machine "${id}" is started at "${site}" while "${says.activeSite}" is active`);
    };
    return {
      kind: "fake",
      createMachine: async ({ operationId, name, config, disks, network }) =>
        await step(
          "hypervisor.createMachine",
          true,
          () => {
            reach(site);
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
          reach(site);
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
            reach(site);
            delete world.machines[machineId];
          },
          machineId,
        ),
    };
  };

  const dependencies: ActivityDependencies = {
    masterTarget: masterTargetOf,
    processServer,
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
            const delivered = !lostSites.has(order.sourceSite);
            if (delivered) world.orders[order.sourceSite] = order;
            return { version: order.version, delivered };
          },
          `${order.version}`,
        ),
    },
    workflows: { isOpen: options.isOpen ?? (async () => true) },
    answers: async () => true,
    clock: systemClock,
  };

  /** One that comes back hears what control has for it. */
  function lose(site: string, lost: boolean): void {
    if (lost) lostSites.add(site);
    else lostSites.delete(site);
    if (!lost && world.order?.sourceSite === site) world.orders[site] = world.order;
  }

  return {
    groupId,
    world,
    stores,
    calls,
    activities: createActivities(dependencies),
    dependencies,
    fail: (rule) => void rules.push({ rule, seen: 0 }),
    mend: () => void rules.splice(0),
    loseFirstReplies: () => {
      losingReplies = true;
      seenOnce.clear();
    },
    goesOff: (machineId, how) => {
      const one = world.machines[machineId];
      if (one === undefined) throw new RangeError(`No machine "${machineId}"`);
      world.machines[machineId] = { ...one, power: "off", wentOff: how };
    },
    loseSource: (lost) => lose(SOURCE, lost),
    lose,
    stubborn,
    leftovers: () => [
      ...SITES.flatMap((site) =>
        Object.entries(storeOf(site).exports).flatMap(([id, one]) => (one.open ? [`export ${id}`] : [])),
      ),
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
