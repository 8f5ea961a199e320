/**
 * An S3-compatible store, reduced to what the replica store may rely on.
 *
 * Invariants every adapter must hold (test/contract/object-store.contract.ts):
 * - `create` never overwrites and never retries by itself: a lost reply is STORE_AMBIGUOUS, and the caller looks before it acts;
 * - read-after-write and list-after-write are strong;
 * - `list` yields keys in ascending UTF-8 byte order, each once;
 * - nothing here decides about safety by a clock.
 */
export interface ObjectStore {
  /**
   * Create-only PUT (If-None-Match: *). `body` is one object, possibly in several pieces; it is not changed, and must not be
   * changed by the caller before the promise settles.
   *
   * Returns "created", or "exists" when the key is taken (412; by whom is not known).
   * Throws STORE_AMBIGUOUS when the outcome is unknown (time-out, cut connection, 5xx, 409), STORE_DENIED, STORE_THROTTLED
   * (surely not written), DISK_FULL.
   */
  create(key: string, body: Uint8Array | readonly Uint8Array[], options?: StoreOptions): Promise<"created" | "exists">;

  /**
   * The object, or the given range of it. A range past the end yields what there is (possibly less than asked).
   * Throws OBJECT_MISSING, STORE_UNAVAILABLE (retried inside, bounded), STORE_DENIED.
   */
  get(
    key: string,
    options?: StoreOptions & { readonly range?: { readonly offset: number; readonly length: number } },
  ): Promise<Uint8Array>;

  /** Size in bytes, or undefined when there is no such object. Throws like `get`. */
  head(key: string, options?: StoreOptions): Promise<{ readonly size: number } | undefined>;

  /** Objects whose key starts with `prefix` and sorts after `startAfter`. */
  list(
    prefix: string,
    options?: StoreOptions & { readonly startAfter?: string; readonly limit?: number },
  ): AsyncIterable<ObjectEntry>;

  /** Delete; a key that is not there is no error. */
  delete(keys: readonly string[], options?: StoreOptions): Promise<void>;
}

export interface StoreOptions {
  readonly signal?: AbortSignal;
}

export interface ObjectEntry {
  readonly key: string;
  readonly size: number;
}
