/** Values by number, the least recently used dropped first once their sizes pass a bound. */
export interface LruCache<Value> {
  readonly sizeBytes: number;
  get(key: number): Value | undefined;
  set(key: number, value: Value, sizeBytes: number): void;
  delete(key: number): void;
}

export function lruCache<Value>(limitBytes: number): LruCache<Value> {
  // A Map iterates in order of insertion, so re-inserting on use keeps the oldest in front.
  const entries = new Map<number, { readonly value: Value; readonly size: number }>();
  let total = 0;
  const remove = (key: number): void => {
    const entry = entries.get(key);
    if (entry === undefined) return;
    entries.delete(key);
    total -= entry.size;
  };
  return {
    get sizeBytes() {
      return total;
    },
    get(key) {
      const entry = entries.get(key);
      if (entry === undefined) return undefined;
      entries.delete(key);
      entries.set(key, entry);
      return entry.value;
    },
    set(key, value, size) {
      remove(key);
      if (size > limitBytes) return;
      entries.set(key, { value, size });
      total += size;
      for (const oldest of entries.keys()) {
        if (total <= limitBytes) break;
        remove(oldest);
      }
    },
    delete: remove,
  };
}
