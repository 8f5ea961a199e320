/**
 * A disk as of one commit, read straight from the store.
 *
 * Opening finds the nearest anchor and reads the indexes of the commits since (image-maps.ts). Reading finds the frame of each block, in
 * the shard of the map that has it, and fetches it.
 *
 * Invariants:
 * - an image never changes: the commits it was built from are immutable;
 * - a block is served as it was hashed at the source, or not at all (OBJECT_CORRUPT);
 * - memory is bounded: the commits since the anchor (20 bytes an extent and 14 a frame), the shards that were used last, and the cache.
 *
 * Source: docs/format.md, "Reading a disk".
 */
import { type Run, runsOf, SOURCE_LIMIT } from "#model/extent-map.ts";
import { Fault } from "#model/fault.ts";
import { SHARD_BLOCKS, shardOf } from "#model/shard-map.ts";
import { BLOCK_SIZE, blockCount } from "#model/units.ts";
import type { AllocationRun, BlockDevice } from "#ports/block-device.ts";
import type { Log } from "#ports/log.ts";
import type { DiskContext } from "./disk-context.ts";
import { type FrameAddress, type FrameLoader, frameLoader } from "./frame-loader.ts";
import { openImageMaps, type ShardView } from "./image-maps.ts";
import type { Keyring } from "./keyring.ts";
import type { ImagePosition } from "./line-replay.ts";
import { readAhead } from "./read-ahead.ts";

export type { ImagePosition } from "./line-replay.ts";

export interface DiskImage {
  readonly sizeBytes: number;
  readonly sectorBytes: number;
  /**
   * Runs of equal allocation that cover [offset, offset + length) in bytes; at once when what says so is at hand.
   * Throws OBJECT_CORRUPT, OBJECT_MISSING, STORE_…, KEY_MISSING.
   */
  allocation(offset: number, length: number): readonly AllocationRun[] | Promise<readonly AllocationRun[]>;
  /**
   * Fill `target` from byte `offset`; anything inside the disk. At once when all of it is at hand.
   * Throws OBJECT_CORRUPT, OBJECT_MISSING, STORE_…, KEY_MISSING; `target` may be filled in part then.
   */
  read(target: Uint8Array, offset: number): void | Promise<void>;
  /** Fetch a range ahead of need; errors are left to the read that needs it. */
  prefetch(offset: number, length: number): void;
  /**
   * Runs of blocks with data in `blocks` blocks from `start`, in the order of the disk, each with the frame that holds it: for who copies the
   * image in another order. Throws as `allocation` does.
   */
  dataRuns(start: number, blocks: number): readonly FrameRun[] | Promise<readonly FrameRun[]>;
  /**
   * What the source said that a piece of a frame (64 KiB, counted from its start) hashes to: 16 bytes. The frame itself is not looked at.
   * Throws OBJECT_CORRUPT, OBJECT_MISSING, STORE_…, KEY_MISSING.
   */
  pieceDigest(address: FrameAddress, piece: number): Promise<Uint8Array>;
  readonly statistics: FrameLoader["statistics"];
}

/** Blocks that lie in one frame. */
export interface FrameRun extends FrameAddress {
  /** First block on the disk. */
  readonly start: number;
  readonly length: number;
}

const CACHE_BYTES = 64 << 20;
/** Data that one read may hold beside the cache. */
const STEP_BLOCKS = (8 << 20) / BLOCK_SIZE;
const AHEAD_REACH_BLOCKS = (2 << 20) / BLOCK_SIZE;
const AHEAD_LEAST_BLOCKS = (512 << 10) / BLOCK_SIZE;
const AHEAD_MOST_BLOCKS = (8 << 20) / BLOCK_SIZE;
/** Who exports a disk looks first at its start (partition table, boot loader) and at its end (backup of the partition table). */
const WARM_START_BYTES = 2 << 20;
const WARM_END_BYTES = 64 << 10;

/** Of shards of the map that were used last; one stays in any case. */
const MAP_BYTES = 12 << 20;

/**
 * Open the disk at a commit.
 *
 * `log` hears of damaged maps and manifests: an image does without them.
 * Throws: CHAIN_BROKEN, OBJECT_CORRUPT, NOT_FOUND (branch), NO_POINT when there is no commit with data at all, FORMAT_UNSUPPORTED,
 *         KEY_…, STORE_….
 */
export async function openImage(
  disk: DiskContext,
  options: ImagePosition & {
    readonly keyring: Keyring;
    readonly storeId: string;
    readonly cacheBytes?: number;
    readonly mapBytes?: number;
    readonly log?: Log;
  },
): Promise<DiskImage> {
  const { keyring, storeId, log, branch, seq, commitHash } = options;
  await keyring.refresh();
  const maps = await openImageMaps(
    { disk, keyring, storeId, ...(log !== undefined && { log }) },
    { branch, seq, ...(commitHash !== undefined && { commitHash }) },
    { mapBytes: options.mapBytes ?? MAP_BYTES },
  );
  if (maps.shape === undefined) {
    throw new Fault("NO_POINT", `Disk "${disk.diskId}" has no data on branch "${branch}" up to commit ${seq}`, {
      details: { diskId: disk.diskId, branch, seq },
      hint: "Wait for the first recovery point of the group.",
    });
  }
  const { sizeBytes, sectorBytes } = maps.shape;
  const loader = frameLoader(disk.store, options.cacheBytes ?? CACHE_BYTES);
  const ahead = readAhead({
    reach: AHEAD_REACH_BLOCKS,
    least: AHEAD_LEAST_BLOCKS,
    most: AHEAD_MOST_BLOCKS,
    end: blockCount(sizeBytes),
  });

  const prefetchFrom = (placed: Iterable<PlacedRun>): void => {
    const frames = new Map<number, FrameAddress>();
    for (const one of placed) {
      const address = addressOf(one);
      if (address !== undefined) frames.set(numberOf(address), address);
    }
    if (frames.size > 0) loader.prefetch([...frames.values()]);
  };
  const prefetch = (start: number, end: number): void => {
    const views = viewsOf(maps.at, start, end);
    if (!(views instanceof Promise)) prefetchFrom(placedRuns(views, start, end));
    else
      void views.then(
        (loaded) => prefetchFrom(placedRuns(loaded, start, end)),
        () => undefined, // The read that needs the map asks again, and says what is wrong.
      );
  };

  const readLoaded = (views: readonly ShardView[], target: Uint8Array, offset: number): Promise<void> | undefined => {
    const start = Math.floor(offset / BLOCK_SIZE);
    const end = Math.ceil((offset + target.length) / BLOCK_SIZE);
    // Each frame once, with what is wanted of it.
    const wanted = new Map<number, { readonly address: FrameAddress; readonly runs: Run[] }>();
    for (const placed of placedRuns(views, start, end)) {
      const { run } = placed;
      const address = addressOf(placed);
      if (address === undefined) {
        const from = Math.max(run.start * BLOCK_SIZE, offset);
        target.fill(0, from - offset, Math.min((run.start + run.length) * BLOCK_SIZE - offset, target.length));
        continue;
      }
      const known = wanted.get(numberOf(address));
      if (known) known.runs.push(run);
      else wanted.set(numberOf(address), { address, runs: [run] });
    }
    const parts = [...wanted.values()];
    const loading = loader.load(
      parts.map(({ address }) => address),
      (plain, index) => {
        const { address, runs } = parts[index]!;
        const first = address.container.place.directory.block[address.frame]! * BLOCK_SIZE;
        for (const run of runs) {
          const from = Math.max(run.start * BLOCK_SIZE, offset);
          const to = Math.min((run.start + run.length) * BLOCK_SIZE, offset + target.length);
          target.set(plain.subarray(from - first, to - first), from - offset);
        }
      },
    );
    const next = ahead.observe(start, end, loader.mayPrefetch);
    if (next !== undefined) prefetch(next.start, next.end);
    return loading;
  };

  /** At most `STEP_BLOCKS`. */
  const readStep = (target: Uint8Array, offset: number): Promise<void> | undefined => {
    const views = viewsOf(maps.at, Math.floor(offset / BLOCK_SIZE), Math.ceil((offset + target.length) / BLOCK_SIZE));
    if (!(views instanceof Promise)) return readLoaded(views, target, offset);
    return views.then((loaded) => readLoaded(loaded, target, offset));
  };

  const readInSteps = async (target: Uint8Array, offset: number): Promise<void> => {
    for (let at = 0; at < target.length;) {
      // Steps end at block boundaries, so that no frame is wanted by two of them more than it must.
      const blockAt = Math.floor((offset + at) / BLOCK_SIZE) + STEP_BLOCKS;
      const end = Math.min(target.length, blockAt * BLOCK_SIZE - offset);
      await readStep(target.subarray(at, end), offset + at);
      at = end;
    }
  };

  return {
    sizeBytes,
    sectorBytes,
    allocation(offset, length) {
      const start = Math.floor(offset / BLOCK_SIZE);
      const end = Math.ceil((offset + length) / BLOCK_SIZE);
      const runs = allocationRuns(offset, length);
      const rest = (from: number): undefined | Promise<void> => {
        for (let shard = from; shard * SHARD_BLOCKS < end; shard++) {
          const view = maps.at(shard);
          // One shard at a time, however long the range is.
          if (view instanceof Promise)
            return view.then((loaded) => {
              runs.add(placedRuns([loaded], Math.max(start, shard * SHARD_BLOCKS), end));
              return rest(shard + 1);
            });
          runs.add(placedRuns([view], Math.max(start, shard * SHARD_BLOCKS), end));
        }
        return undefined;
      };
      return rest(shardOf(start))?.then(() => runs.made) ?? runs.made;
    },
    dataRuns(start, blocks) {
      const views = viewsOf(maps.at, start, start + blocks);
      const runsIn = (loaded: readonly ShardView[]): FrameRun[] => {
        const found: FrameRun[] = [];
        for (const placed of placedRuns(loaded, start, start + blocks)) {
          const address = addressOf(placed);
          if (address !== undefined) found.push({ ...address, start: placed.run.start, length: placed.run.length });
        }
        return found;
      };
      return views instanceof Promise ? views.then(runsIn) : runsIn(views);
    },
    pieceDigest: async ({ container, frame }, piece) =>
      container.digestOf(await loader.digests(container), frame, piece),
    statistics: loader.statistics,
    read(target, offset) {
      if (offset < 0 || offset + target.length > sizeBytes)
        throw new RangeError(`Read of ${target.length} bytes at ${offset}`);
      if (target.length === 0) return;
      return target.length < STEP_BLOCKS * BLOCK_SIZE ? readStep(target, offset) : readInSteps(target, offset);
    },
    prefetch(offset, length) {
      const start = Math.max(0, Math.floor(offset / BLOCK_SIZE));
      prefetch(start, Math.max(start, Math.ceil(Math.min(offset + length, sizeBytes) / BLOCK_SIZE)));
    },
  };
}

/** The image as a device that can be exported; nothing can be written to it. What every client reads first is fetched already. */
export function imageDevice(image: DiskImage): BlockDevice {
  image.prefetch(0, WARM_START_BYTES);
  image.prefetch(image.sizeBytes - WARM_END_BYTES, WARM_END_BYTES);
  const refuse = (): never => {
    throw new RangeError("An image is read only");
  };
  return {
    sizeBytes: image.sizeBytes,
    preferredBlockBytes: BLOCK_SIZE,
    readOnly: true,
    read: (target, offset) => image.read(target, offset),
    write: refuse,
    trim: refuse,
    zero: refuse,
    flush: () => undefined,
    status: (offset, length) => image.allocation(offset, length),
    close: () => Promise.resolve(),
  };
}

/** Joins neighbours of equal allocation, inside [offset, offset + length) in bytes. */
function allocationRuns(
  offset: number,
  length: number,
): {
  readonly made: readonly AllocationRun[];
  add(placed: Iterable<PlacedRun>): void;
} {
  const made: { length: number; hole: boolean; zero: boolean }[] = [];
  return {
    made,
    add(placed) {
      for (const { run } of placed) {
        const from = Math.max(run.start * BLOCK_SIZE, offset);
        const to = Math.min((run.start + run.length) * BLOCK_SIZE, offset + length);
        // Zeroes that were written are a hole too: the store keeps nothing for them, and who copies the image need not read them.
        const zero = !isData(run);
        const last = made.at(-1);
        if (last?.zero === zero) last.length += to - from;
        else made.push({ length: to - from, hole: zero, zero });
      }
    },
  };
}

interface PlacedRun {
  readonly run: Run;
  readonly view: ShardView;
}

/** Undefined: reads as zeroes. */
function addressOf({ run, view }: PlacedRun): FrameAddress | undefined {
  return isData(run) ? { container: view.container(run.source), frame: run.frame } : undefined;
}

function isData(run: Run): run is Run & { readonly source: number } {
  return run.source !== undefined && run.source < SOURCE_LIMIT;
}

/** Runs that cover blocks `start` … `end` − 1 as far as `views`, the maps of the shards from that of `start` on, reach. */
function* placedRuns(views: readonly ShardView[], start: number, end: number): Generator<PlacedRun> {
  let at = start;
  for (const view of views) {
    const stop = Math.min(end, (shardOf(at) + 1) * SHARD_BLOCKS);
    for (const run of runsOf(view.extents, at, stop - at)) yield { run, view };
    at = stop;
  }
}

/** The maps of all shards of blocks `start` … `end` − 1, at once when all are at hand. */
function viewsOf(
  mapOf: (shard: number) => ShardView | Promise<ShardView>,
  start: number,
  end: number,
): readonly ShardView[] | Promise<ShardView[]> {
  const views: (ShardView | Promise<ShardView>)[] = [];
  for (let shard = shardOf(start); shard * SHARD_BLOCKS < end; shard++) views.push(mapOf(shard));
  const loaded = views.filter((view): view is ShardView => !(view instanceof Promise));
  return loaded.length === views.length ? loaded : Promise.all(views);
}

function numberOf(address: FrameAddress): number {
  return address.container.frameBase + address.frame;
}
