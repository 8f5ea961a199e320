import assert from "node:assert/strict";
import { test } from "node:test";
import { garbageKeys } from "#model/collection/ledger.ts";
import { type Actor, ALL_TEETH, collector, type Context, maker, pinner, type Teeth } from "./collection-actors.ts";
import {
  assertPromises,
  BLOCKS,
  commit,
  createStore,
  listing,
  nameOf,
  newest,
  readAt,
  type Store,
} from "./collection-world.ts";

const HISTORIES = Number(process.env["LEEWARD_HISTORIES"] ?? 3000);
const SEED = Number(process.env["LEEWARD_SEED"] ?? 20261123);

/** mulberry32: fast, and the same everywhere. */
function below(seed: number): (limit: number) => number {
  let state = seed >>> 0;
  return (limit) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
}

interface Outcome {
  readonly deleted: number;
  readonly floors: number;
  readonly left: number;
}

/** One history; throws when anything that is promised cannot be read. */
function run(seed: number, teeth: Teeth = ALL_TEETH): Outcome {
  const random = below(seed);
  const store = createStore();
  const context: Context = { store, below: random, teeth, reading: new Map() };
  const actors: { readonly actor: Actor; answer: unknown }[] = [];
  let deleted = 0;
  const writeSome = (): void => {
    const branches = [...store.tips.keys()];
    const blocks = new Set(Array.from({ length: 1 + random(3) }, () => random(BLOCKS)));
    commit(store, branches[random(branches.length)]!, [...blocks]);
  };
  const advance = (index: number): void => {
    const one = actors[index]!;
    const { value, done } = one.actor.next(one.answer);
    if (done === true) {
      actors.splice(index, 1);
      return;
    }
    const before = store.objects.size;
    const lost = value.mayGetLost === true && random(10) === 0;
    if (lost && random(2) === 0)
      one.answer = "lost"; // It never arrived.
    else {
      const answer = value.run();
      one.answer = lost ? "lost" : answer;
    }
    if (store.objects.size < before) {
      deleted++;
      check(context);
    }
  };

  for (let number = 0; number < 5; number++) writeSome();
  for (let step = 0; step < 260; step++) {
    const what = random(100);
    if (what < 12) writeSome();
    else if (what < 20 && actors.length < 6) {
      const kind = random(4);
      const grace = random(3) * 1000;
      const actor =
        kind === 0
          ? maker(context)
          : kind === 1
            ? pinner(context)
            : collector(context, { graceMs: grace, keepShare: random(4) });
      actors.push({ actor, answer: undefined });
    } else if (what === 20 && actors.length > 0)
      actors.splice(random(actors.length), 1); // Killed.
    else if (what < 24) store.nowMs += random(2) === 0 ? random(5000) : -random(5000);
    else if (actors.length > 0) advance(random(actors.length));
    if (step % 20 === 0) check(context);
  }
  // The weather clears: whoever is there finishes, then a collector has the store to itself.
  while (actors.length > 0) advance(random(actors.length));
  for (
    let pass = 0;
    pass < 40 && (garbageKeys(newest(store), listing(store)).length > 0 || newest(store).condemned.length > 0);
    pass++
  ) {
    actors.push({ actor: collector(context, { graceMs: 0, keepShare: 2 }), answer: undefined });
    while (actors.length > 0) advance(0);
    store.nowMs += 10_000;
  }
  check(context);
  const floors = Object.values(newest(store).floors).filter((floor) => floor > 0).length;
  return { deleted, floors, left: garbageKeys(newest(store), listing(store)).length + newest(store).condemned.length };
}

function check({ store, reading }: { readonly store: Store; readonly reading: Context["reading"] }): void {
  assertPromises(store);
  for (const position of reading.values()) {
    const content = readAt(store, newest(store), position);
    assert.deepEqual(content, store.truth.get(nameOf(position)), `${nameOf(position)} is being read`);
    for (const container of content!)
      assert.ok(container === undefined || store.objects.has(container), `${container} is being read`);
  }
}

test("Nothing live is ever deleted: random histories with branches, pins, clock jumps, killed collectors and several at once", () => {
  let [deleted, floors] = [0, 0];
  for (let number = 0; number < HISTORIES; number++) {
    try {
      const outcome = run(SEED + number);
      deleted += outcome.deleted;
      floors += outcome.floors;
      assert.equal(outcome.left, 0, "garbage is left when nobody disturbs");
    } catch (error) {
      throw new Error(`History ${SEED + number}: ${error instanceof Error ? error.message : String(error)}`, {
        cause: error,
      });
    }
  }
  assert.ok(deleted > HISTORIES && floors > HISTORIES / 2, `${deleted} objects deleted, ${floors} floors raised`);
});

for (const tooth of Object.keys(ALL_TEETH) as (keyof Teeth)[]) {
  test(`Without "${tooth}" something live is deleted`, () => {
    const teeth = { ...ALL_TEETH, [tooth]: false };
    for (let number = 0; number < 2000; number++) {
      try {
        run(SEED + number, teeth);
      } catch {
        return;
      }
    }
    assert.fail("The simulation does not see the difference");
  });
}
