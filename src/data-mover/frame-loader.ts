/**
 * Plain frames of an image, from a bounded cache or from the store.
 *
 * Invariants:
 * - a frame that is on its way is fetched once, however many readers wait for it;
 * - frames that lie beside each other in one object come with one ranged GET, of at most 1 MiB: large enough that the request costs
 *   little, small enough that the next one is on its way while this one is unpacked;
 * - nothing is cached or handed out before seal and digests hold. Damage is read a second time before it is believed: what comes
 *   over a network may have been damaged there. A damaged frame fails its own readers and no others;
 * - unpacking leaves the event loop free between two frames.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { isFault } from "#model/fault.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { frameCache } from "./frame-cache.ts";
import type { FrameDigests, ImageContainer } from "./image-container.ts";
import { lruCache } from "./lru-cache.ts";

export interface FrameAddress {
  readonly container: ImageContainer;
  readonly frame: number;
}

export interface FrameLoader {
  /**
   * Call `use` with the plain bytes of each frame, in any order; `plain` belongs to the cache and is read within the call.
   *
   * Returns undefined when every frame was at hand, else a promise that settles when `use` will not be called any more. It rejects
   * with OBJECT_CORRUPT, OBJECT_MISSING, STORE_…, KEY_MISSING.
   */
  load(frames: readonly FrameAddress[], use: (plain: Uint8Array, index: number) => void): Promise<void> | undefined;
  /** Fetch what is not at hand. An error is seen by the read that needs the frame: it asks again. */
  prefetch(frames: readonly FrameAddress[]): void;
  /** What the source said that the container's pieces hash to. Throws like `load`. */
  digests(container: ImageContainer): Promise<FrameDigests>;
  /** Whether more may be fetched ahead of need. */
  readonly mayPrefetch: boolean;
  readonly statistics: { readonly requests: number; readonly fetchedBytes: number };
}

interface Coming {
  readonly waiting: ((plain: Uint8Array) => void)[];
  readonly done: PromiseWithResolvers<void>;
}

interface Group {
  readonly container: ImageContainer;
  readonly frames: number[];
}

const GROUP_BYTES = 1 << 20;
/** Bytes between two frames that are fetched in vain rather than with a request of their own. */
const GAP_BYTES = 64 << 10;
/** Plain bytes on their way that nobody has asked for yet. */
const PREFETCH_BYTES = 16 << 20;
const DIGEST_CACHE_SHARE = 8;

export function frameLoader(store: ObjectStore, cacheBytes: number): FrameLoader {
  const cache = frameCache(cacheBytes);
  const digests = lruCache<Promise<FrameDigests>>(Math.max(1 << 20, cacheBytes / DIGEST_CACHE_SHARE));
  const coming = new Map<number, Coming>();
  const statistics = { requests: 0, fetchedBytes: 0 };
  let prefetching = 0;

  const numberOf = ({ container, frame }: FrameAddress): number => container.frameBase + frame;

  function digestsOf(container: ImageContainer): Promise<FrameDigests> {
    const known = digests.get(container.frameBase);
    if (known !== undefined) return known;
    const loading = container.loadDigests().catch((error: unknown) => {
      if (!isFault(error, "OBJECT_CORRUPT")) throw error;
      return container.loadDigests();
    });
    digests.set(container.frameBase, loading, 1024 + container.place.digestBytes);
    // A failure is the reader's to see, and the next reader's to try again.
    loading.catch(() => digests.delete(container.frameBase));
    return loading;
  }

  async function fetchRange({ container, frames }: Group): Promise<(frame: number) => Uint8Array> {
    const range = container.rangeOf(frames[0]!, frames.at(-1)!);
    statistics.requests++;
    statistics.fetchedBytes += range.length;
    const data = await store.get(container.place.key, { range });
    return (frame) => {
      const { offset, length } = container.rangeOf(frame, frame);
      return data.subarray(offset - range.offset, offset - range.offset + length);
    };
  }

  function expect(number: number): Coming {
    const one = { waiting: [], done: Promise.withResolvers<void>() };
    one.done.promise.catch(() => undefined); // Whoever waits for it sees the error; a frame that was only fetched ahead has no one waiting.
    coming.set(number, one);
    return one;
  }

  function settle(number: number, plain: Uint8Array | undefined, error?: unknown): void {
    const one = coming.get(number)!;
    coming.delete(number);
    if (plain === undefined) {
      one.done.reject(error);
      return;
    }
    cache.put(number, plain);
    for (const use of one.waiting) use(plain);
    one.done.resolve();
  }

  /** Throws OBJECT_CORRUPT. */
  function unpack(container: ImageContainer, sealed: Uint8Array, what: { frame: number; digests: FrameDigests }): void {
    const plain = cache.take(container.plainBytesOf(what.frame));
    try {
      container.openInto(plain, sealed, what);
    } catch (error) {
      cache.discard(plain);
      throw error;
    }
    settle(container.frameBase + what.frame, plain);
  }

  /** Every frame of the group is settled when this ends; it never rejects. */
  async function fetchGroup(group: Group): Promise<void> {
    const { container, frames } = group;
    const settleAll = (error: unknown): void => {
      for (const frame of frames)
        if (coming.has(container.frameBase + frame)) settle(container.frameBase + frame, undefined, error);
    };
    try {
      const [sealedOf, known] = await Promise.all([fetchRange(group), digestsOf(container)]);
      const doubtful: number[] = [];
      for (const [index, frame] of frames.entries()) {
        if (index > 0) await nextTurn();
        try {
          unpack(container, sealedOf(frame), { frame, digests: known });
        } catch (error) {
          if (!isFault(error, "OBJECT_CORRUPT")) throw error;
          doubtful.push(frame);
        }
      }
      for (const frame of doubtful) {
        const sealedAgain = await fetchRange({ container, frames: [frame] });
        try {
          unpack(container, sealedAgain(frame), { frame, digests: known });
        } catch (error) {
          settle(container.frameBase + frame, undefined, error);
        }
      }
    } catch (error) {
      settleAll(error);
    }
  }

  /** What is missing, in as few requests as its places allow. */
  function groupsOf(missing: readonly FrameAddress[]): Group[] {
    const groups: Group[] = [];
    const open = new Map<ImageContainer, Group>();
    for (const { container, frame } of missing) {
      const group = open.get(container);
      const last = group?.frames.at(-1);
      if (group !== undefined && last !== undefined && last < frame) {
        const { length } = container.rangeOf(group.frames[0]!, frame);
        const gap = last + 1 === frame ? 0 : container.rangeOf(last + 1, frame - 1).length;
        if (length <= GROUP_BYTES && gap <= GAP_BYTES) {
          group.frames.push(frame);
          continue;
        }
      }
      const next = { container, frames: [frame] };
      open.set(container, next);
      groups.push(next);
    }
    return groups;
  }

  return {
    statistics,
    load(wanted, use) {
      const missing: FrameAddress[] = [];
      const waiting: Promise<void>[] = [];
      for (const [index, address] of wanted.entries()) {
        const number = numberOf(address);
        const plain = cache.get(number);
        if (plain !== undefined) {
          use(plain, index);
          continue;
        }
        let one = coming.get(number);
        if (one === undefined) {
          one = expect(number);
          missing.push(address);
        }
        one.waiting.push((arrived) => use(arrived, index));
        waiting.push(one.done.promise);
      }
      for (const group of groupsOf(missing)) void fetchGroup(group);
      return waiting.length === 0 ? undefined : allSettled(waiting);
    },
    prefetch(frames) {
      const missing = frames.filter((address) => !cache.has(numberOf(address)) && !coming.has(numberOf(address)));
      for (const address of missing) expect(numberOf(address));
      for (const group of groupsOf(missing)) {
        const bytes = group.frames.reduce((sum, frame) => sum + group.container.plainBytesOf(frame), 0);
        prefetching += bytes;
        void fetchGroup(group).then(() => void (prefetching -= bytes));
      }
    },
    digests: digestsOf,
    get mayPrefetch() {
      return prefetching < PREFETCH_BYTES;
    },
  };
}

/** Rejects only when all have settled: until then somebody may still write to the reader's buffer. */
async function allSettled(work: readonly Promise<void>[]): Promise<void> {
  const outcomes = await Promise.allSettled(work);
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}
