/**
 * An object store in memory: the contract at its plainest, for tests and simulations. Every call takes effect at once, in the order
 * in which calls are made.
 */
import { Fault } from "#model/fault.ts";
import type { ObjectEntry, ObjectStore } from "#ports/object-store.ts";

export interface MemoryStore extends ObjectStore {
  /** What is there; for tests to look at, and to damage. */
  readonly objects: Map<string, Uint8Array>;
  /** Put `data` at `key`, whatever is there. */
  overwrite(key: string, data: Uint8Array): void;
  /** What `list` yields, at once. */
  entries(prefix: string, options?: { readonly startAfter?: string; readonly limit?: number }): ObjectEntry[];
}

export function memoryStore(): MemoryStore {
  const objects: Map<string, Uint8Array> = new Map();
  // Kept sorted as keys come and go: simulations list often, and keys mostly arrive in order.
  const keys: string[] = [];

  // Tests put and remove objects behind the store's back; its list must see that too.
  objects.set = (key, data) => {
    if (!objects.has(key)) insert(keys, key);
    return Map.prototype.set.call(objects, key, data) as typeof objects;
  };
  objects.delete = (key) => {
    if (objects.has(key)) keys.splice(firstFrom(keys, key), 1);
    return Map.prototype.delete.call(objects, key);
  };
  const entries: MemoryStore["entries"] = (prefix, { startAfter = "", limit = Number.POSITIVE_INFINITY } = {}) => {
    const found: ObjectEntry[] = [];
    const from = startAfter >= prefix ? firstAfter(keys, startAfter) : firstFrom(keys, prefix);
    for (let at = from; at < keys.length && found.length < limit && keys[at]!.startsWith(prefix); at++) {
      found.push({ key: keys[at]!, size: objects.get(keys[at]!)!.length });
    }
    return found;
  };

  return {
    objects,
    entries,
    overwrite: (key, data) => void objects.set(key, data),
    async create(key, body, options) {
      options?.signal?.throwIfAborted();
      if (objects.has(key)) return "exists";
      objects.set(key, joined(body));
      return "created";
    },
    async get(key, options) {
      options?.signal?.throwIfAborted();
      const object = objects.get(key);
      if (object === undefined) throw new Fault("OBJECT_MISSING", `There is no object "${key}"`, { details: { key } });
      const range = options?.range;
      return range === undefined ? object.slice() : object.slice(range.offset, range.offset + range.length);
    },
    async head(key, options) {
      options?.signal?.throwIfAborted();
      const object = objects.get(key);
      return object && { size: object.length };
    },
    async *list(prefix, options) {
      options?.signal?.throwIfAborted();
      yield* entries(prefix, options);
    },
    async delete(gone, options) {
      options?.signal?.throwIfAborted();
      for (const key of gone) objects.delete(key);
    },
  };
}

/** Pieces are copied: the caller may change them once the call has settled. */
function joined(body: Uint8Array | readonly Uint8Array[]): Uint8Array {
  if (body instanceof Uint8Array) return body.slice();
  const whole = new Uint8Array(body.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of body) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

function insert(keys: string[], key: string): void {
  if (keys.length === 0 || inOrder(keys.at(-1)!, key)) keys.push(key);
  else keys.splice(firstFrom(keys, key), 0, key);
}

function firstFrom(keys: readonly string[], key: string): number {
  let low = 0;
  let high = keys.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (inOrder(keys[middle]!, key)) low = middle + 1;
    else high = middle;
  }
  return low;
}

function firstAfter(keys: readonly string[], key: string): number {
  const at = firstFrom(keys, key);
  return keys[at] === key ? at + 1 : at;
}

/** UTF-8 byte order: that of code points. JavaScript compares UTF-16 units, where surrogates stand below U+E000 … U+FFFF. */
function inOrder(a: string, b: string): boolean {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at++) {
    const x = a.charCodeAt(at);
    const y = b.charCodeAt(at);
    if (x !== y) return rank(x) < rank(y);
  }
  return a.length < b.length;
}

function rank(unit: number): number {
  return unit >= 0xd800 && unit <= 0xdfff ? unit + 0x2000 : unit >= 0xe000 ? unit - 0x800 : unit;
}
