/**
 * A store that misbehaves as networks and stores do, around any other store. Who decides what happens to which call is the caller:
 * a test, or a simulation with a seed.
 *
 * A create can meet these fates, and together they are all there is between a client and a store that is correct:
 *
 * | fate          | what the store sees            | what the caller sees                  |
 * | ------------- | ------------------------------ | ------------------------------------- |
 * | pass          | the PUT                        | the outcome                           |
 * | lost-request  | nothing                        | STORE_AMBIGUOUS                       |
 * | lost-reply    | the PUT                        | STORE_AMBIGUOUS                       |
 * | late          | the PUT, some time afterwards  | STORE_AMBIGUOUS                       |
 * | doubled       | the PUT, and again later       | the outcome of the first              |
 * | doubled-early | the PUT twice                  | the outcome of the second: "exists"   |
 * | refused       | nothing                        | STORE_THROTTLED                       |
 *
 * Reads, lists and deletes pass or fail with STORE_UNAVAILABLE.
 */
import { Fault } from "#model/fault.ts";
import type { ObjectStore } from "#ports/object-store.ts";

export const CREATE_FATES = [
  "pass",
  "lost-request",
  "lost-reply",
  "late",
  "doubled",
  "doubled-early",
  "refused",
] as const;
export type CreateFate = (typeof CREATE_FATES)[number];

export interface FaultPlan {
  /** Default: all pass. */
  readonly create?: (key: string) => CreateFate;
  /** Whether a get, head, list or delete fails; default: never. `key` is the prefix of a list, the first key of a delete. */
  readonly fails?: (operation: "get" | "head" | "list" | "delete", key: string) => boolean;
  /** Run a PUT that arrives late: when, and in which order, is the plan's. Default: after what is going on now. */
  readonly later?: (put: () => Promise<void>) => void;
}

export function faultyStore(inner: ObjectStore, plan: FaultPlan): ObjectStore {
  const later = plan.later ?? ((put) => setImmediate(() => void put()));
  const check = (operation: "get" | "head" | "list" | "delete", key: string): void => {
    if (plan.fails?.(operation, key) === true) {
      throw new Fault("STORE_UNAVAILABLE", `The store did not answer "${operation}" of "${key}"`, { details: { key } });
    }
  };
  return {
    async create(key, body, options) {
      const fate = plan.create?.(key) ?? "pass";
      // Whoever sent it is not told, as with a packet that arrives after its connection is gone.
      const sendLater = (): void => later(async () => void (await inner.create(key, copy)));
      const copy = fate === "late" || fate === "doubled" ? copyOf(body) : body;
      switch (fate) {
        case "refused":
          throw new Fault("STORE_THROTTLED", `The store asked to slow down at "${key}"`, { details: { key } });
        case "lost-request":
          throw ambiguous(key);
        case "lost-reply":
          await inner.create(key, body, options);
          throw ambiguous(key);
        case "late":
          sendLater();
          throw ambiguous(key);
        case "doubled": {
          const outcome = await inner.create(key, body, options);
          sendLater();
          return outcome;
        }
        case "doubled-early":
          await inner.create(key, body, options);
          return inner.create(key, body, options);
        case "pass":
          return inner.create(key, body, options);
      }
    },
    async get(key, options) {
      check("get", key);
      return inner.get(key, options);
    },
    async head(key, options) {
      check("head", key);
      return inner.head(key, options);
    },
    async *list(prefix, options) {
      check("list", prefix);
      yield* inner.list(prefix, options);
    },
    async delete(keys, options) {
      check("delete", keys[0] ?? "");
      return inner.delete(keys, options);
    },
  };
}

function ambiguous(key: string): Fault {
  return new Fault("STORE_AMBIGUOUS", `No answer came to the PUT of "${key}"`, { details: { key } });
}

/** The caller may change its bytes as soon as it has been told something. */
function copyOf(body: Uint8Array | readonly Uint8Array[]): Uint8Array | readonly Uint8Array[] {
  return body instanceof Uint8Array ? body.slice() : body.map((piece) => piece.slice());
}
