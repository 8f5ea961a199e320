/**
 * A simulated world: one group of one or two disks, replicated from site P to a store at site S, as everyone in it sees it, and what an
 * all-knowing observer writes down.
 */
import { diskNames } from "#model/format/object-names.ts";
import type { GroupContext } from "../../src/data-mover/barriers.ts";
import type { Checkpoint } from "../../src/data-mover/counting.ts";
import type { DiskContext } from "../../src/data-mover/disk-context.ts";
import type { FencedGroup } from "../../src/data-mover/group-fence.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { Protocol } from "./protocol.ts";
import { scheduler, type Actor, type Scheduler } from "./scheduler.ts";
import { simulatedStore, type SimulatedStore } from "./simulated-store.ts";

export const GROUP = "g";

/** A machine that writes its disks, and the process server beside it: numbers cuts, and forgets nothing. */
export interface Source {
  readonly site: string;
  readonly branch: string;
  /** What each disk was when this source began: the last write in it. */
  readonly start: ReadonlyMap<string, number>;
  /** Writes of each disk, in order. */
  readonly writes: ReadonlyMap<string, number[]>;
  readonly cuts: Map<number, Cut>;
  nextCycle: number;
}

export interface Cut {
  readonly cycle: number;
  readonly cutAtMs: number;
  readonly point: boolean;
  readonly disks: ReadonlyMap<
    string,
    { readonly after: number; readonly writes: readonly number[]; readonly last: number }
  >;
}

/** What an operator asked for; what its workflow remembers over crashes of its workers. */
export interface Operation {
  readonly id: string;
  readonly kind: "failover" | "undo";
  readonly site: string;
  /** Branch that is made, or returned to. */
  readonly branch: string;
  /** Newest group epoch that was known when it was ordered. */
  knownEpoch: number;
  point: RecoveryPoint | "none" | undefined;
  state: "running" | "done";
}

export interface Acknowledgement {
  readonly site: string;
  readonly diskId: string;
  readonly branch: string;
  readonly epoch: number;
  readonly seq: number;
  readonly commitHash: string;
}

export interface World {
  readonly protocol: Protocol;
  readonly scheduler: Scheduler;
  readonly store: SimulatedStore;
  readonly disks: readonly string[];
  /** Part of the cuts before which nothing was written. */
  readonly stillness: number;
  readonly sparesNothing: boolean;
  /** Most movers at a time. */
  readonly crowd: number;
  readonly actors: Set<Actor>;
  readonly sources: Map<string, Source>;
  readonly operations: Operation[];
  readonly acknowledged: Acknowledgement[];
  /** Acknowledged, or durable on all disks. */
  readonly barriers: {
    readonly branch: string;
    readonly barrier: number;
    readonly epochs: ReadonlyMap<string, number>;
  }[];
  readonly fences: FencedGroup[];
  readonly reads: {
    readonly diskId: string;
    readonly branch: string;
    readonly hashes: readonly string[];
    readonly from: number;
  }[];
  readonly points: RecoveryPoint[];
  /** The newest manifest: `{disk}/{branch}` → how far its commits are collected. */
  readonly checkpoints: Map<string, Checkpoint>;
  readonly violations: string[];
  /** Where the group is, as its workflow knows. */
  active: { site: string; branch: string };
  collections: number;
  quietBarriers: number;
  lastWrite: number;
  stormy: boolean;
  created: boolean;
  readonly trace: string[] | undefined;
}

export interface WorldOptions {
  /** A store whose create looks first and writes later. */
  readonly racyCreate?: boolean;
  /** Traits that chance decides otherwise: look where something shows. */
  readonly stillness?: number;
  readonly disks?: 1 | 2;
  readonly collects?: boolean;
  readonly freezes?: number;
  /** PUTs of keys that contain this often take long. */
  readonly slowKeys?: string;
  /** Events before the weather clears. */
  readonly storm?: number;
  /** Somebody enters at this part of all events. */
  readonly entries?: number;
  /** A collector that takes even the newest object of a branch. */
  readonly sparesNothing?: boolean;
  readonly trace?: boolean;
}

export function createWorld(protocol: Protocol, seed: number, options: WorldOptions = {}): World {
  const chance = scheduler(seed);
  const faults = chance.dice.pick([0, 0.02, 0.08, 0.2]);
  const slow = chance.dice.pick([0, 0.03, 0.1]);
  const world: World = {
    protocol,
    scheduler: chance,
    store: simulatedStore(chance, {
      faults: () => (world.stormy ? faults : 0),
      slow: (key) => (options.slowKeys !== undefined && key.includes(options.slowKeys) ? 0.6 : slow),
      racyCreate: options.racyCreate === true,
    }),
    disks: (options.disks ?? 1 + chance.dice.below(2)) === 1 ? ["d1"] : ["d1", "d2"],
    stillness: options.stillness ?? chance.dice.pick([0, 0, 0, 0, 0.7]),
    sparesNothing: options.sparesNothing === true,
    crowd: chance.dice.pick([1, 1, 2, 4]),
    actors: new Set(),
    sources: new Map(),
    operations: [],
    acknowledged: [],
    barriers: [],
    fences: [],
    reads: [],
    points: [],
    checkpoints: new Map(),
    violations: [],
    active: { site: "P", branch: "root" },
    collections: 0,
    quietBarriers: 0,
    lastWrite: 0,
    stormy: true,
    created: false,
    trace: options.trace === true ? [] : undefined,
  };
  const start = new Map(world.disks.map((diskId) => [diskId, 0]));
  const writes = new Map(world.disks.map((diskId) => [diskId, [0]]));
  world.sources.set("root", { site: "P", branch: "root", start, writes, cuts: new Map(), nextCycle: 1 });
  return world;
}

/** Start a process. Its end is nobody's business unless it ends with a bug. */
export function spawn(world: World, name: string, work: (actor: Actor) => Promise<void>): Actor {
  const actor: Actor = { name, dead: false, done: false, frozenUntil: 0 };
  world.actors.add(actor);
  note(world, actor, "starts");
  work(actor)
    .catch((error: unknown) =>
      violate(world, `${name} ended with ${error instanceof Error ? error.stack : String(error)}`),
    )
    .finally(() => {
      actor.done = true;
      world.actors.delete(actor);
    });
  return actor;
}

/** The group as a process reaches it, or as the observer does: at once, and without faults. */
export function groupOf(world: World, actor: Actor | undefined): GroupContext {
  const { dice } = world.scheduler;
  const call = <Result>(work: () => Promise<Result>): Promise<Result> =>
    actor === undefined ? work() : world.scheduler.call(actor, work);
  const context = {
    store: actor === undefined ? world.store.memory : world.store.of(actor),
    root: "",
    clock: {
      now: () => world.scheduler.now,
      monotonic: () => world.scheduler.now,
      sleep: () => call(async () => undefined),
    },
    random: { bytes: (length: number) => dice.bytes(length) },
    retry: { attempts: 4, firstMs: 1, mostMs: 8 },
  };
  const disks = new Map<string, DiskContext>(
    world.disks.map((diskId) => [
      diskId,
      {
        ...context,
        diskId,
        names: namesOf(diskId),
        codec: world.store.codec(diskId),
        checkpoint: (branch) => call(async () => world.checkpoints.get(`${diskId}/${branch}`)),
      },
    ]),
  );
  return world.protocol.groupContext(context, GROUP, (diskId) => disks.get(diskId)!);
}

const names = new Map<string, ReturnType<typeof diskNames>>();

function namesOf(diskId: string): ReturnType<typeof diskNames> {
  const known = names.get(diskId) ?? diskNames("", diskId);
  names.set(diskId, known);
  return known;
}

export function violate(world: World, what: string): void {
  world.violations.push(`at ${world.scheduler.now}: ${what}`);
}

export function note(world: World, actor: Actor, what: string): void {
  world.trace?.push(`${String(world.scheduler.now).padStart(5)} ${actor.name} ${what}`);
}
