/**
 * Plain frames of an image, from a bounded cache or from the store.
 *
 * Invariants:
 * - a frame that is on its way is fetched once, however many readers wait for it;
 * - frames that lie beside each other in one object come with one ranged GET, of at most 4 MiB;
 * - nothing is cached or handed out before seal and digests hold. Damage is read a second time before it is believed: what comes
 *   over a network may have been damaged there.
 */
import { isFault } from "#model/fault.ts";
import { digestBytesOf } from "#model/format/frame-directory.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import type { ImageContainer } from "./image-container.ts";
import { lruCache } from "./lru-cache.ts";

export interface FrameAddress {
  readonly container: ImageContainer;
  readonly frame: number;
}

export interface FrameLoader {
  /**
   * Plain bytes of each frame, in the order asked for. Throws OBJECT_CORRUPT, OBJECT_MISSING, STORE_…, KEY_MISSING.
   * The arrays belong to the cache: read only.
   */
  load(frames: readonly FrameAddress[]): Promise<readonly Uint8Array[]>;
  /** Whether all of them are at hand or on their way. */
  has(frame: FrameAddress): boolean;
  readonly statistics: { readonly requests: number; readonly fetchedBytes: number };
}

const GROUP_BYTES = 4 << 20;
const DIGEST_CACHE_SHARE = 8;

export function frameLoader(store: ObjectStore, cacheBytes: number): FrameLoader {
  const frames = lruCache<Uint8Array>(cacheBytes);
  const digests = lruCache<Promise<Uint8Array>>(Math.max(1 << 20, cacheBytes / DIGEST_CACHE_SHARE));
  const coming = new Map<number, Promise<Uint8Array>>();
  const statistics = { requests: 0, fetchedBytes: 0 };

  const numberOf = ({ container, frame }: FrameAddress): number => container.frameBase + frame;

  function digestsOf(container: ImageContainer): Promise<Uint8Array> {
    const known = digests.get(container.frameBase);
    if (known !== undefined) return known;
    const loading = withSecondLook(() => container.loadDigests());
    digests.set(container.frameBase, loading, 1024 + digestBytesOf(container.place.directory));
    // A failure is the reader's to see, and the next reader's to try again.
    loading.catch(() => digests.delete(container.frameBase));
    return loading;
  }

  async function fetchGroup(container: ImageContainer, first: number, last: number): Promise<Uint8Array[]> {
    const range = container.rangeOf(first, last);
    statistics.requests++;
    statistics.fetchedBytes += range.length;
    const [data, known] = await Promise.all([store.get(container.place.key, { range }), digestsOf(container)]);
    const plain: Uint8Array[] = [];
    for (let frame = first; frame <= last; frame++) {
      const { offset, length } = container.rangeOf(frame, frame);
      const at = offset - range.offset;
      plain.push(container.open(frame, data.subarray(at, at + length), known));
    }
    return plain;
  }

  function start(container: ImageContainer, first: number, last: number): void {
    const group = withSecondLook(() => fetchGroup(container, first, last));
    for (let frame = first; frame <= last; frame++) {
      const number = container.frameBase + frame;
      const one = group.then(
        (plain) => {
          coming.delete(number);
          frames.set(number, plain[frame - first]!, plain[frame - first]!.length);
          return plain[frame - first]!;
        },
        (error: unknown) => {
          coming.delete(number);
          throw error;
        },
      );
      one.catch(() => undefined); // Whoever waits for it sees the error; a frame that was only read ahead has no one waiting.
      coming.set(number, one);
    }
  }

  return {
    statistics,
    has: (address) => coming.has(numberOf(address)) || frames.get(numberOf(address)) !== undefined,
    async load(wanted) {
      const found: (Uint8Array | Promise<Uint8Array> | undefined)[] = wanted.map(
        (address) => frames.get(numberOf(address)) ?? coming.get(numberOf(address)),
      );
      for (let index = 0; index < wanted.length; index++) {
        if (found[index] !== undefined) continue;
        const { container, frame } = wanted[index]!;
        let last = frame;
        // Later missing frames that lie right behind it in the same object come along.
        for (let next = index + 1; next < wanted.length; next++) {
          const more = wanted[next]!;
          if (found[next] !== undefined || more.container !== container || more.frame !== last + 1) break;
          if (container.rangeOf(frame, more.frame).length > GROUP_BYTES) break;
          last = more.frame;
        }
        if (!coming.has(numberOf(wanted[index]!))) start(container, frame, last);
        for (let number = frame; number <= last; number++) {
          found[index + number - frame] = coming.get(container.frameBase + number)!;
        }
      }
      return Promise.all(found as (Uint8Array | Promise<Uint8Array>)[]); // Each hole was filled above.
    },
  };
}

/** `work` again, once, when it found damage. */
async function withSecondLook<Result>(work: () => Promise<Result>): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    if (!isFault(error, "OBJECT_CORRUPT")) throw error;
    return await work();
  }
}
