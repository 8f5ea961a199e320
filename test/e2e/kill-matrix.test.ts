/**
 * docs/kill-matrix.md with real processes: a machine that writes all the time goes out and comes home by every move there is, and while a step of a move runs,
 * a role is killed, or the mover stands still. After each move the world must be in order (test/support/move-circle.ts).
 *
 * Without LEEWARD_LONG one seeded choice: out and home once, one strike in each move. The seed is printed; LEEWARD_SEED repeats the choice. With
 * LEEWARD_LONG each role is struck at every step, in as many laps as it takes to hit each of them while it runs, at most LAPS_MAX; LEEWARD_ROLES has the names of
 * the roles that are of interest, separated by commas.
 */
import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { seededRandom } from "../capture/seeded-random.ts";
import { readKillTable, ROLES, type KillTable, type Role } from "../support/kill-table.ts";
import {
  acknowledged,
  JOURNEYS,
  ordered,
  setOut,
  settled,
  type Journey,
  type Traveller,
} from "../support/move-circle.ts";
import { striker, type Striker } from "../support/strikes.ts";
import { startSystem, type System } from "../support/system.ts";

const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));
const long = process.env["LEEWARD_LONG"] !== undefined;
const roles = process.env["LEEWARD_ROLES"]?.split(",") ?? ROLES;
const MOVE_MS = 400_000;
const LAPS_MAX = 3;
/** A move that was ended by a kill is given again, without one. */
const ORDERS_MAX = 3;

type Name = keyof typeof JOURNEYS;
/** Out and home by every move but one. */
const CIRCLE: readonly Name[] = [
  ...([
    "failover",
    "retry",
    "retry-at-point",
    "change-point",
    "undo",
    "test-failover",
    "planned-failover",
    "commit",
  ] as const),
  ...(["reprotect", "failback", "commit", "reprotect", "unprotect"] as const),
];
const FOR_GOOD: readonly Name[] = ["planned-failover", "commit", "unprotect-replica"];

interface Lap {
  readonly of: Traveller;
  readonly blows: Striker;
  readonly table: KillTable;
  /** What is to be struck in the next move of this name. */
  choose(journey: Journey): { readonly role: Role; readonly steps: ReadonlySet<string> };
  told(line: string): void;
  hit(move: string, step: string, state: string): void;
}

if (long) {
  for (const role of ROLES.filter((one) => roles.includes(one)))
    test(
      `${role}: struck at every step of every move, all goes on, and nothing is lost`,
      { timeout: 7_200_000 },
      async (t) => {
        const system = await startSystem(t);
        const table = readKillTable();
        const left = new Map([...table].map(([move, rows]) => [move, new Set(rows.map(({ step }) => step))]));
        for (let lap = 0; lap < LAPS_MAX; lap += 1) {
          for (const [index, way] of [CIRCLE, FOR_GOOD].entries()) {
            // A commit is over before anybody sees it run.
            if (way.every((name) => name === "commit" || left.get(JOURNEYS[name].move)?.size === 0)) continue;
            await travel(t, system, {
              name: `lap${lap}-${index}`,
              way,
              choose: ({ move }) => ({ role, steps: new Set(left.get(move)) }),
              hit: (move, step, state) => void (state === "running" && left.get(move)?.delete(step)),
            });
          }
        }
        const missed = [...left].flatMap(([move, steps]) => [...steps].map((step) => `${move}, ${step}`));
        t.diagnostic(
          `${role}: ${missed.length} steps were over before they were struck: ${missed.join("; ") || "none"}`,
        );
      },
    );
} else {
  test(
    "a strike in each move, out and home again: all goes on, and nothing is lost",
    { timeout: 600_000 },
    async (t) => {
      t.diagnostic(`seed ${seed}`);
      const random = seededRandom(seed);
      const system = await startSystem(t);
      const pick = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)]!;
      const table = readKillTable();
      await travel(t, system, {
        name: "circle",
        way: CIRCLE,
        choose: ({ move }) => ({ role: pick(ROLES), steps: new Set([pick(table.get(move) ?? []).step]) }),
        hit: () => undefined,
      });
    },
  );
}

async function travel(
  t: TestContext,
  system: System,
  { name, way, ...lap }: Pick<Lap, "choose" | "hit"> & { readonly name: string; readonly way: readonly Name[] },
): Promise<void> {
  const of = await setOut(system, name);
  const blows = striker(system, MOVE_MS);
  t.after(async () => await blows.thawed());
  let arrived = true;
  for (const [index, journey] of way.entries()) {
    if (!arrived) break; // It is not where the next move begins.
    arrived = false;
    await t.test(`${name}: ${journey}`, async (one) => {
      await make({ ...lap, of, blows, table: readKillTable(), told: (line) => one.diagnostic(line) }, journey, index);
      arrived = true;
    });
  }
}

async function make(lap: Lap, name: Name, index: number): Promise<void> {
  const journey: Journey = JOURNEYS[name];
  const { of, blows } = lap;
  const { role, steps } = lap.choose(journey);
  for (let order = 1; order <= ORDERS_MAX; order += 1) {
    await journey.prepare?.(of);
    await acknowledged(of);
    const wanted = `${of.name}.${name}.${index}x${order}`;
    // The first steps, and a move of one step, are over in a moment: they are struck when the order is given.
    const [first] = lap.table.get(journey.move) ?? [];
    const atOnce = order === 1 && first !== undefined && steps.has(first.step);
    const giving = ordered(of, journey, wanted);
    if (atOnce && blows.strike(role)) lap.hit(journey.move, first.step, "running");
    const operationId = await giving;
    const rest = new Set(order === 1 ? [...steps].filter((step) => !atOnce || step !== first.step) : []);
    const { operation, strikes } = await blows.follow(operationId, role, rest, async (seen) =>
      journey.during?.(of, seen),
    );
    for (const { step, state } of strikes) lap.hit(journey.move, step, state);
    const struck = [...(atOnce ? [first.step] : []), ...strikes.map(({ step }) => step)];
    const told = strikes.map(({ step, state }) => `${step} (${state})`);
    lap.told(
      `${role}: ${[...(atOnce ? [`${first.step} (order)`] : []), ...told].join(", ") || "nothing"}: ${operation.state}`,
    );
    await blows.thawed();
    if (operation.state === "done") {
      await journey.arrive(of, operation);
      await settled(of, operation);
      return;
    }
    const rows = lap.table.get(journey.move) ?? [];
    assert.ok(
      rows.some(({ step, outcomes }) => struck.includes(step) && outcomes[role] === "on or ended"),
      `${role} struck at ${struck.join()}: ${JSON.stringify(operation)}`,
    );
    await settled(of, operation);
  }
  assert.fail(`${name} did not succeed when it was not struck`);
}
