/**
 * One schedule: a seed decides how a world begins, who enters it when, who dies or freezes, and in which order everything happens. Then the
 * weather clears, what was begun is finished, and the world must go on by itself.
 */
import { setImmediate as turn } from "node:timers/promises";
import { collector, mover, reader, worker } from "./actors.ts";
import { checkWorld, lineOf } from "./oracle.ts";
import { isFault } from "#model/fault.ts";
import type { Protocol } from "./protocol.ts";
import type { Actor } from "./scheduler.ts";
import {
  createWorld,
  GROUP,
  groupOf,
  note,
  spawn,
  violate,
  type Operation,
  type World,
  type WorldOptions,
} from "./world.ts";

export interface Outcome {
  readonly seed: number;
  readonly violations: readonly string[];
  readonly events: number;
  readonly acknowledged: number;
  readonly operations: number;
  readonly fences: number;
  readonly collections: number;
  readonly trace: readonly string[];
}

/** Run schedules beside each other: they share the turns of the event loop, and nothing else. Yields outcomes as they end. */
export async function* runSchedules(
  protocol: Protocol,
  seeds: Iterable<number>,
  options: WorldOptions = {},
): AsyncGenerator<Outcome, void, void> {
  const waiting = seeds[Symbol.iterator]();
  let running: { seed: number; world: World; advance: () => boolean }[] = [];
  for (let more = true; more || running.length > 0;) {
    while (more && running.length < BESIDE) {
      const next = waiting.next();
      if (next.done === true) more = false;
      else running.push({ seed: next.value, ...start(protocol, next.value, options) });
    }
    const ended: Outcome[] = [];
    running = running.filter(({ seed, world, advance }) => {
      if (advance()) return true;
      ended.push(outcomeOf(seed, world));
      return false;
    });
    yield* ended;
    await turn();
  }
}

const BESIDE = 16;
/** Far more than any schedule needs. */
const EVENTS_MOST = 20_000;

function outcomeOf(seed: number, world: World): Outcome {
  return {
    seed,
    violations: world.violations,
    events: world.scheduler.now,
    acknowledged: world.acknowledged.length,
    operations: world.operations.length,
    fences: world.fences.length,
    collections: world.collections,
    trace: world.trace ?? [],
  };
}

/** `advance` lets one event happen; false when the world has ended and was checked. */
function start(protocol: Protocol, seed: number, options: WorldOptions): { world: World; advance: () => boolean } {
  const world = createWorld(protocol, seed, options);
  const { scheduler } = world;
  const { dice } = scheduler;
  // Collection needs a long life, and shows its worst to those who slept through it.
  const collects = options.collects ?? dice.chance(0.2);
  const stormUntil = options.storm ?? (collects ? 200 : 50) + dice.below(170);
  const crashes = dice.pick([0, 0.005, 0.02]);
  const freezes = options.freezes ?? dice.pick(collects ? [0.02] : [0, 0.01, 0.03]);
  const longest = collects ? 400 : 150;
  let phase: "storm" | "calm" | "end" = "storm";
  // Most worlds begin with the group there and its source replicating; in some its making is part of the storm.
  spawn(world, "control", (actor) => create(world, dice.chance(0.85) ? undefined : actor));
  if (dice.chance(0.8)) {
    const limits = { cycles: 4 + dice.below(10), reopens: 2, points: 99, stormyOnly: true };
    spawn(world, "mover-P", async (actor) => void (await mover(world, actor, world.sources.get("root")!, limits)));
  }

  const advance = (): boolean => {
    if (scheduler.now > EVENTS_MOST) {
      violate(world, `it did not come to an end: ${[...world.actors].map((actor) => actor.name).join(", ")}`);
      return false;
    }
    if (phase === "storm" && scheduler.now >= stormUntil) {
      phase = "calm";
      world.stormy = false;
      // Some go on in the calm; what the others sent last may still land.
      for (const actor of [...world.actors]) if (dice.chance(0.7)) crash(world, actor);
    }
    if (phase === "storm") {
      if (dice.chance(options.entries ?? 0.06)) enter(world, collects);
      if (world.actors.size > 0 && dice.chance(freezes)) freeze(world, dice.pick([...world.actors]), longest);
      if (world.actors.size > 0 && dice.chance(crashes)) crash(world, dice.pick([...world.actors]));
    }
    if (phase === "calm" && scheduler.idle) {
      phase = "end";
      spawn(world, "last", (actor) => goOn(world, actor));
    } else if (phase === "end" && scheduler.idle) {
      if (world.actors.size > 0)
        violate(
          world,
          `nothing happens any more, and ${[...world.actors].map((actor) => actor.name).join(", ")} still waits`,
        );
      checkWorld(world);
      return false;
    }
    scheduler.step({ calm: phase !== "storm" });
    return world.violations.length === 0;
  };
  return { world, advance };
}

function freeze(world: World, actor: Actor, longest: number): void {
  const { now, dice } = world.scheduler;
  if (actor.frozenUntil <= now) actor.frozenUntil = now + 20 + dice.below(longest);
}

function crash(world: World, actor: Actor): void {
  note(world, actor, "dies");
  world.scheduler.crash(actor);
  world.actors.delete(actor);
}

/** Somebody new, or somebody again. */
function enter(world: World, collects: boolean): void {
  const { dice } = world.scheduler;
  const { operations } = world;
  const last = operations.at(-1);
  const movers = [...world.actors].filter((actor) => actor.name.startsWith("mover")).length;
  const name = (kind: string): string => `${kind}-${world.scheduler.now}`;
  switch (dice.below(12)) {
    case 0:
    case 1:
    case 2:
    case 3: {
      // The primary, which does not know what was decided elsewhere, or the site that has the group.
      const source = dice.chance(0.5) ? world.sources.get("root") : world.sources.get(world.active.branch);
      if (source === undefined || movers >= world.crowd) return;
      spawn(
        world,
        name(`mover-${source.site}`),
        async (actor) =>
          void (await mover(world, actor, source, {
            cycles: 3 + dice.below(8),
            reopens: dice.below(4),
            points: 99,
            stormyOnly: true,
          })),
      );
      return;
    }
    case 4:
    case 5:
    case 6:
      if (last?.state === "running") spawn(world, name("worker"), (actor) => worker(world, actor, last));
      else if (last !== undefined && dice.chance(0.2))
        spawn(world, name("worker-again"), (actor) => worker(world, actor, last));
      else if (!world.created) spawn(world, name("control"), (actor) => create(world, actor));
      return;
    case 7:
      order(world);
      return;
    case 8:
    case 9:
      spawn(world, name("reader"), (actor) => reader(world, actor, dice.pick([...world.sources.keys()])));
      return;
    default:
      if (collects) spawn(world, name("collector"), (actor) => collector(world, actor));
      else order(world);
  }
}

/** An operator gives an order. */
function order(world: World): void {
  if (world.operations.length >= 4 || !world.created) return;
  const operation = nextOperation(world);
  if (operation === undefined) return;
  spawn(world, `worker-${world.scheduler.now}`, (actor) => worker(world, actor, operation));
}

/** A failover from where the group is, or the way back home; only the way back may overtake what is still under way. */
function nextOperation(world: World): Operation | undefined {
  const { operations, active } = world;
  const last = operations.at(-1);
  const id = `op${operations.length + 1}`;
  const back = active.branch === "" || (last?.kind === "failover" && world.scheduler.dice.chance(0.5));
  const knownEpoch = groupEpochOf(world);
  let operation: Operation;
  if (back) operation = { id, kind: "undo", site: "P", branch: "root", knownEpoch, point: undefined, state: "running" };
  else if (last?.state === "running") return undefined;
  else
    operation = {
      id,
      kind: "failover",
      site: "S",
      branch: `b${operations.length + 1}`,
      knownEpoch,
      point: undefined,
      state: "running",
    };
  operations.push(operation);
  return operation;
}

function groupEpochOf(world: World): number {
  return [...world.store.memory.objects.keys()].filter((key) => key.startsWith(`groups/${GROUP}/epochs/`)).length;
}

/** The group comes into being; whoever finds it half made, repeats it. */
async function create(world: World, actor: Actor | undefined): Promise<void> {
  const group = groupOf(world, actor);
  const request = { operation: "protect", activeSite: "P", disks: world.disks, holder: actor?.name ?? "observer" };
  for (let attempt = 0; attempt < 4 && !world.created; attempt++) {
    try {
      const { groupEpoch } = await world.protocol.claimGroupEpoch(group, { ...request, branch: "root" });
      for (const diskId of world.disks) await world.protocol.createDisk(group.disk(diskId), { ...request, groupEpoch });
      world.created = true;
    } catch (error) {
      if (!isFault(error)) throw error;
    }
  }
}

/** In fair weather everything that was begun comes to its end, and the rightful source goes on. */
async function goOn(world: World, actor: Actor): Promise<void> {
  await create(world, actor);
  for (let attempt = 0; attempt < 4 && world.operations.at(-1)?.state === "running"; attempt++) {
    const operation = world.operations.at(-1)!;
    operation.knownEpoch = groupEpochOf(world); // The operator looks again, and insists.
    await worker(world, actor, operation);
  }
  if (world.active.branch === "") await worker(world, actor, nextOperation(world)!);
  if (world.operations.at(-1)?.state === "running")
    return violate(world, `${world.operations.at(-1)!.id} does not come to its end`);

  const source = world.sources.get(world.active.branch)!;
  let points = 0;
  for (let attempt = 0; attempt < 4 && points === 0; attempt++) {
    points = await mover(world, actor, source, { cycles: 40, reopens: 3, points: 1, stormyOnly: false });
  }
  if (points === 0) return violate(world, `site ${source.site} cannot go on with branch ${source.branch}`);

  const newest = Math.max(
    ...world.barriers.filter(({ branch }) => branch === source.branch).map(({ barrier }) => barrier),
  );
  const atOnce = groupOf(world, undefined);
  const [point] = await world.protocol.listPoints(atOnce, { limit: 1, branch: source.branch });
  if (point?.barrier !== newest)
    violate(world, `the newest point is ${point?.barrier}, and barrier ${newest} was acknowledged`);
  for (const diskId of world.disks) {
    for (const branch of world.sources.keys()) {
      const hashes: string[] = [];
      for await (const { header } of world.protocol.readBranch(atOnce.disk(diskId), branch))
        hashes.push(header.commitHash);
      const whole = lineOf(world, diskId, branch);
      if (hashes.join() !== whole.slice(whole.length - hashes.length).join())
        violate(world, `${diskId}/${branch} reads as something else in the end`);
      if (world.collections === 0 && hashes.length !== whole.length)
        violate(world, `${diskId}/${branch} reads short in the end`);
    }
  }
}
