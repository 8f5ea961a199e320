/**
 * One disk's part of a replica store, as the commit protocol sees it: where its objects are, how its commits are read and
 * sealed, and the clock and chance that space out retries. (No decision about safety is made by either.)
 */
import { isFault, type Fault } from "#model/fault.ts";
import type { Position as LedgerPosition } from "#model/collection/ledger.ts";
import type { Anchor } from "#model/format/manifest.ts";
import type { DiskNames } from "#model/format/object-names.ts";
import type { Clock } from "#ports/clock.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import type { Random } from "#ports/random.ts";
import type { CommitCodec } from "./commit-codec.ts";
import type { Checkpoint } from "./counting.ts";

export interface StoreContext {
  readonly store: ObjectStore;
  /** Prefix of the replica store: "" or a path without a slash at its ends. */
  readonly root: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly signal?: AbortSignal;
  readonly retry?: RetryLimits;
}

export interface DiskContext extends StoreContext {
  readonly diskId: string;
  readonly names: DiskNames;
  readonly codec: CommitCodec;
  /** What the newest manifest says of a branch: commits up to it are not read, and may be gone. Without: the branch's origin. */
  readonly checkpoint?: (branch: string) => Promise<Checkpoint | undefined>;
  /** What is promised of its history, and how to be promised something. Without: nothing is ever collected. */
  readonly ledger?: DiskLedger;
}

/** See disk-ledger.ts. */
export interface DiskLedger {
  /** The anchor just there, if there is one. */
  anchorAt(position: LedgerPosition): Promise<Anchor | undefined>;
  /** Whether the disk can be opened there as far as the newest version says; that the commit exists it does not say. */
  isOpenable(position: LedgerPosition): Promise<boolean>;
  /** Needed before the branch exists: its start stays openable as long as it is read from there. Throws POINT_NOT_FOUND when it is no history any more. */
  beginBranch(branch: string, parent: LedgerPosition): Promise<void>;
  /** The position stays openable until `release`. Throws POINT_NOT_FOUND when it is no history any more. */
  pin(pin: { readonly id: string; readonly holder: string }, position: LedgerPosition): Promise<void>;
  release(id: string): Promise<void>;
}

export interface RetryLimits {
  /** Attempts in all, the first included. */
  readonly attempts: number;
  /** Wait before the second attempt; doubles from there. */
  readonly firstMs: number;
  readonly mostMs: number;
}

/** About half a minute in all: longer than a store's fail-over, shorter than anyone's patience. */
export const DEFAULT_RETRY: RetryLimits = { attempts: 12, firstMs: 50, mostMs: 5_000 };

/** Repeat `work` while it throws a fault of the store that may pass. */
export async function withRetries<Result>(context: StoreContext, work: () => Promise<Result>): Promise<Result> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (!isPassing(error) || attempt >= (context.retry ?? DEFAULT_RETRY).attempts) throw error;
    }
    await backOff(context, attempt);
  }
}

/** Between half and all of a wait that doubles with each attempt. Throws the signal's reason when it aborts. */
export async function backOff(context: StoreContext, attempt: number): Promise<void> {
  const { firstMs, mostMs } = context.retry ?? DEFAULT_RETRY;
  const wait = Math.min(mostMs, firstMs * 2 ** (attempt - 1));
  const part = context.random.bytes(1)[0]! / 255;
  await context.clock.sleep(wait * (0.5 + part / 2), context.signal);
}

/** The store may do better next time. Nothing is known about what a PUT did. */
export function isPassing(error: unknown): error is Fault {
  return isFault(error, "STORE_UNAVAILABLE") || isFault(error, "STORE_AMBIGUOUS") || isFault(error, "STORE_THROTTLED");
}

/** Options for a call of the store, with the signal of the context if it has one. */
export function storeOptions(context: StoreContext): { signal?: AbortSignal } {
  return context.signal === undefined ? {} : { signal: context.signal };
}

/** The object, or undefined when there is none. */
export async function readIfThere(context: StoreContext, key: string): Promise<Uint8Array | undefined> {
  try {
    return await withRetries(context, () => context.store.get(key, storeOptions(context)));
  } catch (error) {
    if (isFault(error, "OBJECT_MISSING")) return undefined;
    throw error;
  }
}

/**
 * What `read` yields, or undefined when the object is damaged or closed: for those who look for what is intact, and are not kept from it by the
 * rest. A flipped bit may also look like a later format, and a lost data key closes only what was sealed with it.
 */
export async function readIntact<Value>(read: () => Promise<Value | undefined>): Promise<Value | undefined> {
  try {
    return await read();
  } catch (error) {
    if (isFault(error, "OBJECT_CORRUPT") || isFault(error, "FORMAT_UNSUPPORTED") || isFault(error, "KEY_MISSING"))
      return undefined;
    throw error;
  }
}

/** Something of a branch is missing or not what it was. */
export function isDamage(error: unknown): boolean {
  return isFault(error, "CHAIN_BROKEN") || isFault(error, "OBJECT_CORRUPT");
}
