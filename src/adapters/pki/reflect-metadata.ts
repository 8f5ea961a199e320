/**
 * The four functions of the "reflect-metadata" proposal that tsyringe, a dependency of @peculiar/x509, refuses to load without. Import this before
 * @peculiar/x509. A polyfill that is there already is left alone. Source: https://rbuckton.github.io/reflect-metadata/
 */
type Key = string | symbol | undefined;

const store = new WeakMap<object, Map<Key, Map<unknown, unknown>>>();

function getOwnMetadata(name: unknown, target: object, key?: Key): unknown {
  return store.get(target)?.get(key)?.get(name);
}

function getMetadata(name: unknown, target: object, key?: Key): unknown {
  for (let at: object | null = target; at !== null; at = Object.getPrototypeOf(at) as object | null) {
    if (store.get(at)?.get(key)?.has(name) === true) return getOwnMetadata(name, at, key);
  }
  return undefined;
}

function defineMetadata(name: unknown, value: unknown, target: object, key?: Key): void {
  const keys = store.get(target) ?? new Map<Key, Map<unknown, unknown>>();
  const values = keys.get(key) ?? new Map<unknown, unknown>();
  store.set(target, keys.set(key, values.set(name, value)));
}

function metadata(name: unknown, value: unknown): (target: object, key?: Key) => void {
  return (target, key) => defineMetadata(name, value, target, key);
}

if (!("getMetadata" in Reflect)) Object.assign(Reflect, { getOwnMetadata, getMetadata, defineMetadata, metadata });
