/**
 * Chance and time of a simulated world. Whatever could happen next is an event; a seed picks which one does. Nothing else moves: actors
 * are async functions that wait only for events, so a seed is a schedule.
 */

export interface Dice {
  /** A whole number in [0, below). */
  below(below: number): number;
  chance(part: number): boolean;
  pick<Item>(items: readonly Item[]): Item;
  bytes(length: number): Uint8Array;
}

/** Mulberry32: small, fast, and the same everywhere. */
export function dice(seed: number): Dice {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
  const below = (limit: number): number => next() % limit;
  return {
    below,
    chance: (part) => next() < part * 2 ** 32,
    pick: (items) => items[below(items.length)]!,
    bytes: (length) => Uint8Array.from({ length }, () => next() & 0xff),
  };
}

/** A process. Dead: nothing it waits for ever comes. Frozen: not before it thaws. */
export interface Actor {
  readonly name: string;
  dead: boolean;
  done: boolean;
  frozenUntil: number;
}

interface Event {
  /** Whose process it happens in; undefined: on the network, where nobody can stop it. */
  actor: Actor | undefined;
  readonly kind: "request" | "reply";
  /** Late: put back most of the times it is picked. */
  readonly late: boolean;
  readonly run: () => void;
}

export interface Scheduler {
  readonly dice: Dice;
  /** Events so far. */
  readonly now: number;
  readonly idle: boolean;
  add(actor: Actor | undefined, kind: Event["kind"], run: () => void, late?: boolean): void;
  /** `work` takes effect at some later event (much later, if `late`), and its outcome arrives at another one. */
  call<Result>(actor: Actor, work: () => Promise<Result>, late?: boolean): Promise<Result>;
  /** Let one event happen. The caller then lets all promises settle. */
  step(options: { readonly calm: boolean }): void;
  crash(actor: Actor): void;
}

export function scheduler(seed: number): Scheduler {
  const chance = dice(seed);
  const events: Event[] = [];
  let now = 0;
  const self: Scheduler = {
    dice: chance,
    get now() {
      return now;
    },
    get idle() {
      return events.length === 0;
    },
    add(actor, kind, run, late = false) {
      events.push({ actor, kind, run, late });
    },
    call<Result>(actor: Actor, work: () => Promise<Result>, late = false): Promise<Result> {
      return new Promise((resolve, reject) => {
        const arrive = (): void => {
          work().then(
            (result) => self.add(actor, "reply", () => resolve(result)),
            (error) => self.add(actor, "reply", () => reject(error)),
          );
        };
        self.add(actor, "request", arrive, late);
      });
    },
    step({ calm }) {
      now++;
      for (let attempt = 0; attempt < 6 && events.length > 0; attempt++) {
        const at = chance.below(events.length);
        const event = events[at]!;
        if (!calm && event.late && !chance.chance(0.06)) continue;
        if (!calm && event.actor !== undefined && event.actor.frozenUntil > now) continue;
        events[at] = events.at(-1)!;
        events.pop();
        if (event.actor?.dead !== true) event.run();
        return;
      }
    },
    crash(actor) {
      actor.dead = true;
      for (let at = events.length - 1; at >= 0; at--) {
        const event = events[at]!;
        if (event.actor !== actor) continue;
        // What it had sent may still arrive, soon or late; its process is not there to hear of it.
        if (event.kind === "request" && chance.chance(0.5)) {
          events[at] = { ...event, actor: undefined, late: chance.chance(0.5) };
        } else {
          events[at] = events.at(-1)!;
          events.pop();
        }
      }
    },
  };
  return self;
}
