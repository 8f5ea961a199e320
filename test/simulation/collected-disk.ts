/**
 * One disk in a store that misbehaves, worked on by the real code: makers of anchors, those who pin a position, read it and sometimes begin a branch
 * there, and collectors. A seed decides who goes on next, which request is lost, late or doubled, and who dies or freezes at which await.
 *
 * What every block of every commit must read as is known from how the history was made (history-fixture.ts), which shares no code with the collector.
 */
import { setImmediate as settled } from "node:timers/promises";
import { floorOf, garbageKeys, isOpenable, type Position } from "#model/collection/ledger.ts";
import { isFault } from "#model/fault.ts";
import { faultyStore, type CreateFate } from "../../src/adapters/faulty/faulty-store.ts";
import type { CollectionMemory } from "../../src/data-mover/collection-listing.ts";
import type { DiskContext } from "../../src/data-mover/disk-context.ts";
import type { MapAccess } from "../../src/data-mover/map-access.ts";
import { STORE_ID } from "../support/format-samples.ts";
import { createHistory, firstDifference, type History, type Place } from "../data-mover/history-fixture.ts";
import { type Actor, scheduler, type Scheduler } from "./scheduler.ts";

/** The code at work: the modules that run in production, or a copy of them with one step removed. */
export type Shell = Awaited<ReturnType<typeof loadShell>>;

export async function loadShell(folder: URL = new URL("../../src/data-mover/", import.meta.url)) {
  const load = <Module>(name: string): Promise<Module> => import(new URL(name, folder).href) as Promise<Module>;
  const [collector, listing, ledger, maker, image] = await Promise.all([
    load<typeof import("../../src/data-mover/collector.ts")>("collector.ts"),
    load<typeof import("../../src/data-mover/collection-listing.ts")>("collection-listing.ts"),
    load<typeof import("../../src/data-mover/disk-ledger.ts")>("disk-ledger.ts"),
    load<typeof import("../../src/data-mover/anchor-maker.ts")>("anchor-maker.ts"),
    load<typeof import("../../src/data-mover/image.ts")>("image.ts"),
  ]);
  return { ...collector, ...listing, ...ledger, ...maker, ...image };
}

export interface Outcome {
  readonly deleted: number;
  readonly floors: number;
  readonly read: number;
  readonly left: number;
}

interface World {
  readonly shell: Shell;
  readonly history: History;
  readonly events: Scheduler;
  readonly actors: Actor[];
  /** What actors threw that is no fault of the world; the first one ends the history. */
  readonly wrong: unknown[];
  nowMs: number;
  storm: boolean;
  deleted: number;
  counter: number;
}

const FATES: readonly CreateFate[] = [
  "lost-request",
  "lost-reply",
  "lost-reply",
  "late",
  "late",
  "doubled",
  "doubled-early",
  "refused",
];
const MAKER_LIMITS = { commits: 4, extents: 1e6 };

/** Throws when anything that is promised cannot be read, is not what it was, or when garbage is left in the end. */
export async function runHistory(seed: number, shell: Shell): Promise<Outcome> {
  const world: World = {
    shell,
    history: await createHistory(`collection ${seed}`),
    events: scheduler(seed),
    actors: [],
    wrong: [],
    nowMs: 1_786_000_000_000,
    storm: true,
    deleted: 0,
    counter: 0,
  };
  const { history, events } = world;
  const { dice } = events;
  for (let number = 0; number < 12; number++) await history.commit("root");
  const memory = shell.collectionMemory();
  for (let round = 0; round < 36; round++) {
    const what = dice.below(10);
    if (what < 4) await write(world);
    if (world.actors.filter(({ done, dead }) => !done && !dead).length < 5) {
      if (what === 4) start(world, "maker", (access) => makeOne(world, access));
      if (what === 5 || what === 6) start(world, "pinner", (access, own) => pin(world, access, own));
      if (what >= 7)
        start(world, "collector", (access) => collect(world, access, dice.chance(0.5) ? memory : undefined));
    }
    if (dice.chance(0.15)) world.nowMs += dice.below(8000) - 3000;
    const alive = world.actors.filter(({ done, dead }) => !done && !dead);
    if (alive.length > 0 && dice.chance(0.1)) {
      const one = dice.pick(alive);
      if (dice.chance(0.5)) events.crash(one);
      else one.frozenUntil = events.now + dice.below(600);
    }
    await advance(world, 30 + dice.below(120));
  }
  // The weather clears: whoever is there finishes, then a collector has the store to itself.
  world.storm = false;
  for (const actor of world.actors) actor.frozenUntil = 0;
  await advance(world, Number.POSITIVE_INFINITY);
  let left = 1;
  for (let pass = 0; pass < 12 && left > 0; pass++) {
    start(world, "last", (access) => collect(world, access, memory));
    await advance(world, Number.POSITIVE_INFINITY);
    world.nowMs += 100_000;
    left = await leftOver(world);
  }
  const { read, floors } = await assertPromises(world);
  return { deleted: world.deleted, floors, read, left };
}

async function write({ history, events: { dice } }: World): Promise<void> {
  const branch = dice.pick(history.branches);
  for (let count = 1 + dice.below(3); count > 0; count--) {
    if (dice.below(10) === 0) await history.fence(branch);
    else await history.commit(branch);
  }
}

/** Let events happen, and promises settle in between. */
async function advance(world: World, steps: number): Promise<void> {
  for (let step = 0; step < steps; step++) {
    // Whoever computes for a while gives others a turn, and asks for nothing meanwhile.
    for (let turns = 0; world.events.idle && turns < 100 && isBusy(world); turns++) await settled();
    if (world.events.idle) return;
    world.events.step({ calm: !world.storm });
    await settled();
    if (world.wrong.length > 0) throw world.wrong[0];
  }
}

function isBusy({ actors }: World): boolean {
  return actors.some(({ done, dead }) => !done && !dead);
}

type Work = (access: MapAccess, own: Actor) => Promise<void>;

function start(world: World, kind: string, work: Work): void {
  const actor: Actor = { name: `${kind} ${++world.counter}`, dead: false, done: false, frozenUntil: 0 };
  world.actors.push(actor);
  void work(accessOf(world, actor), actor)
    .catch((error: unknown) => {
      if (!isFault(error) || kind === "last") world.wrong.push(error);
    })
    .finally(() => (actor.done = true));
}

/** The disk as a process of its own reaches it. */
function accessOf(world: World, actor: Actor | undefined): MapAccess {
  const { history, events, shell } = world;
  const { dice } = events;
  const inner = {
    ...history.store,
    async delete(keys: readonly string[]) {
      const before = history.store.objects.size;
      await history.store.delete(keys);
      world.deleted += before - history.store.objects.size;
    },
  };
  const faulty = faultyStore(inner, {
    create: () => (world.storm && dice.chance(0.08) ? dice.pick(FATES) : "pass"),
    fails: () => world.storm && dice.chance(0.02),
    later: (put) => events.add(undefined, "request", () => void put(), dice.chance(0.8)),
  });
  const call = <Result>(work: () => Promise<Result>): Promise<Result> =>
    actor === undefined ? work() : events.call(actor, work, world.storm && dice.chance(0.02));
  const store: DiskContext["store"] = {
    create: (key, body) => call(() => faulty.create(key, body)),
    get: (key, options) => call(() => faulty.get(key, options)),
    head: (key) => call(() => faulty.head(key)),
    delete: (keys) => call(() => faulty.delete(keys)),
    async *list(prefix, options) {
      yield* await call(async () => history.store.entries(prefix, options));
    },
  };
  const disk: DiskContext = {
    ...history.disk,
    store: actor === undefined ? history.store : store,
    clock: { now: () => world.nowMs, monotonic: () => 0, sleep: () => call(() => Promise.resolve()) },
    random: { bytes: (length) => dice.bytes(length) },
    retry: { attempts: 6, firstMs: 1, mostMs: 1 },
  };
  // A keyring of its own: nothing that this process has read is known to another.
  const access: MapAccess = { disk, keyring: { ...history.access.keyring }, storeId: STORE_ID };
  return { ...access, disk: shell.withLedger(access) };
}

async function makeOne(world: World, access: MapAccess): Promise<void> {
  const place = world.events.dice.pick(world.history.places);
  await world.shell.makeAnchors(access, place, { limits: MAKER_LIMITS });
}

async function pin(world: World, access: MapAccess, own: Actor): Promise<void> {
  const { history, events, shell } = world;
  const { dice } = events;
  const place = dice.pick(history.places);
  const ledger = shell.diskLedger(access);
  const id = own.name;
  await ledger.pin({ id, holder: "test" }, place);
  // From here on whatever goes wrong is the collector's.
  const readIt = async (): Promise<void> => {
    const image = await shell.openImage(access.disk, {
      ...place,
      keyring: access.keyring,
      storeId: STORE_ID,
      mapBytes: 1,
    });
    for (let reads = 1 + dice.below(2); reads > 0; reads--) {
      for (let turns = dice.below(30); turns > 0; turns--) await access.disk.clock.sleep(1);
      const block = await firstDifference(image, place.state);
      if (block !== undefined) throw new Error(`Block ${block} of ${nameOf(place)} is not what it was`);
    }
  };
  await readIt().catch((error: unknown) => {
    const passing = isFault(error) && error.code.startsWith("STORE_");
    if (!passing) throw new Error(`${own.name} cannot read ${nameOf(place)}: ${String(error)}`, { cause: error });
  });
  if (dice.chance(0.3) && history.branches.length < 4 && !own.dead) {
    await ledger.beginBranch(`b-${history.branches.length}`, place);
    if (own.dead) return;
    await history.commit(await history.fork(place));
  }
  await ledger.release(id);
}

async function collect(world: World, access: MapAccess, memory: CollectionMemory | undefined): Promise<void> {
  const { history, events, shell } = world;
  const { dice } = events;
  const share = dice.below(4);
  const kept = history.places.filter(({ seq }) => seq % 10 < share);
  const windowFrom = Object.fromEntries(
    history.branches.map((branch) => [branch, Math.max(0, history.tip(branch).seq - dice.below(8))]),
  );
  await shell.collectDisk(access, {
    kept: kept.map(({ branch, seq }) => ({ branch, seq })),
    windowFrom,
    holder: "test",
    memory: memory ?? shell.collectionMemory(),
    graceMs: dice.below(3) * 1000,
    batch: 1 + dice.below(40),
    paceMs: 1,
  });
}

/** Whatever the newest version promises opens, and reads as it was, block by block. */
async function assertPromises(world: World): Promise<{ readonly read: number; readonly floors: number }> {
  const { history, shell } = world;
  const access = accessOf(world, undefined);
  const { ledger, record } = await shell.readVersion(access, { condemned: true });
  const anchored = new Set(ledger.anchors.map(nameOf));
  let read = 0;
  for (const { state, ...place } of history.places) {
    if (!isOpenable(ledger, place)) continue;
    // Those that only anchors hold, the ends, and some of the others.
    const isPlain = place.seq > floorOf(ledger, place.branch) && place.seq !== history.tip(place.branch).seq;
    if (isPlain && world.events.dice.chance(0.7)) continue;
    read++;
    const context = { keyring: access.keyring, storeId: STORE_ID, mapBytes: 1 };
    const image = await shell.openImage(access.disk, { ...place, ...context }).catch((error: unknown) => {
      if (isFault(error, "NO_POINT") && state.size === 0) return undefined;
      throw new Error(`${nameOf(place)} is promised and cannot be opened: ${String(error)}`, { cause: error });
    });
    const block = image && (await firstDifference(image, state));
    if (block !== undefined)
      throw new Error(
        `Block ${block} of ${nameOf(place)}${anchored.has(nameOf(place)) ? " (anchor)" : ""} is not what it was`,
      );
  }
  const promised: Position[] = [...record.points, ...record.pins];
  for (const position of promised)
    if (!isOpenable(ledger, position)) throw new Error(`${nameOf(position)} is promised and not openable`);
  for (const branch of history.branches) {
    const { seq } = history.tip(branch);
    if (seq > 0 && !history.store.objects.has(history.disk.names.commit(branch, seq)))
      throw new Error(`The newest commit of ${branch} is gone`);
  }
  return { read, floors: history.branches.filter((branch) => floorOf(ledger, branch) > 0).length };
}

async function leftOver(world: World): Promise<number> {
  const { shell } = world;
  const access = accessOf(world, undefined);
  const { ledger, anchors } = await shell.readVersion(access, { condemned: true });
  const { listing } = await shell.lookAtDisk(access, { ledger, anchors }, shell.collectionMemory());
  return garbageKeys(ledger, listing).length + ledger.condemned.length;
}

function nameOf({ branch, seq }: Pick<Place, "branch" | "seq">): string {
  return `${branch}/${seq}`;
}
