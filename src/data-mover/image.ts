/**
 * A disk as of one commit, read straight from the store.
 *
 * Opening reads the indexes of the commits that count on the branch's line, up to the commit asked for, and lays their extents
 * over each other. Reading finds the frame of each block and fetches it.
 *
 * Invariants:
 * - an image never changes: the commits it was built from are immutable;
 * - a block is served as it was hashed at the source, or not at all (OBJECT_CORRUPT);
 * - memory is bounded: 20 bytes an extent and 14 a frame that is still in use, and the cache.
 *
 * Source: docs/format.md, "Reading a disk".
 */
import { type ExtentMap, overlayStack, type Run, runsOf, SOURCE_LIMIT, SOURCE_ZERO } from "#model/extent-map.ts";
import { Fault } from "#model/fault.ts";
import type { CommitIndex } from "#model/format/commit-index.ts";
import { parseContainerId } from "#model/format/header.ts";
import { BLOCK_SIZE, blockCount } from "#model/units.ts";
import type { AllocationRun, BlockDevice } from "#ports/block-device.ts";
import { readBranch } from "./branch-reader.ts";
import { openHead, readIndex } from "./container-reader.ts";
import type { DiskContext } from "./disk-context.ts";
import { type FrameAddress, type FrameLoader, frameLoader } from "./frame-loader.ts";
import { type ContainerPlace, type ImageContainer, imageContainer } from "./image-container.ts";
import type { Keyring } from "./keyring.ts";
import { readAhead } from "./read-ahead.ts";

export interface ImagePosition {
  readonly branch: string;
  /** 0: the branch's start. */
  readonly seq: number;
  /** 32 hex digits, as a barrier names it. Without, whatever commit has that number. */
  readonly commitHash?: string;
}

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

/**
 * Open the disk at a commit.
 *
 * Throws: CHAIN_BROKEN, OBJECT_CORRUPT, NOT_FOUND (branch), NO_POINT when there is no commit with data at all, FORMAT_UNSUPPORTED,
 *         KEY_…, STORE_….
 */
export async function openImage(
  disk: DiskContext,
  options: ImagePosition & { readonly keyring: Keyring; readonly storeId: string; readonly cacheBytes?: number },
): Promise<DiskImage> {
  const { keyring, branch, seq, commitHash } = options;
  await keyring.refresh();
  const line = await readLine(disk, keyring, { branch, seq, ...(commitHash !== undefined && { commitHash }) });
  if (line.shape === undefined) {
    throw new Fault("NO_POINT", `Disk "${disk.diskId}" has no data on branch "${branch}" up to commit ${seq}`, {
      details: { diskId: disk.diskId, branch, seq },
      hint: "Wait for the first recovery point of the group.",
    });
  }
  const { sizeBytes, sectorBytes } = line.shape;
  const containers = containersInUse(line, disk, options);
  const loader = frameLoader(disk.store, options.cacheBytes ?? CACHE_BYTES);
  const ahead = readAhead({
    reach: AHEAD_REACH_BLOCKS,
    least: AHEAD_LEAST_BLOCKS,
    most: AHEAD_MOST_BLOCKS,
    end: blockCount(sizeBytes),
  });
  const { map } = line;

  const addressOf = (run: DataRun): FrameAddress => ({ container: containers[run.source]!, frame: run.frame });

  const prefetch = (start: number, end: number): void => {
    const frames = new Map<number, FrameAddress>();
    for (const run of runsOf(map, start, end - start)) {
      if (!isData(run)) continue;
      const address = addressOf(run);
      frames.set(numberOf(address), address);
    }
    if (frames.size > 0) loader.prefetch([...frames.values()]);
  };

  /** At most `STEP_BLOCKS`. */
  const readStep = (target: Uint8Array, offset: number): Promise<void> | undefined => {
    const start = Math.floor(offset / BLOCK_SIZE);
    const end = Math.ceil((offset + target.length) / BLOCK_SIZE);
    // Each frame once, with what is wanted of it.
    const wanted = new Map<number, { readonly address: FrameAddress; readonly runs: DataRun[] }>();
    for (const run of runsOf(map, start, end - start)) {
      if (!isData(run)) {
        const from = Math.max(run.start * BLOCK_SIZE, offset);
        target.fill(0, from - offset, Math.min((run.start + run.length) * BLOCK_SIZE - offset, target.length));
        continue;
      }
      const address = addressOf(run);
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
    allocation: (offset, length) => allocationOf(map, offset, length),
    dataRuns(start, blocks) {
      const found: FrameRun[] = [];
      for (const run of runsOf(map, start, blocks))
        if (isData(run)) found.push({ ...addressOf(run), start: run.start, length: run.length });
      return found;
    },
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

function allocationOf(map: ExtentMap, offset: number, length: number): AllocationRun[] {
  const start = Math.floor(offset / BLOCK_SIZE);
  const end = Math.ceil((offset + length) / BLOCK_SIZE);
  const runs: { length: number; hole: boolean; zero: boolean }[] = [];
  for (const run of runsOf(map, start, end - start)) {
    const from = Math.max(run.start * BLOCK_SIZE, offset);
    const to = Math.min((run.start + run.length) * BLOCK_SIZE, offset + length);
    const zero = !isData(run);
    const hole = zero && run.source !== SOURCE_ZERO;
    const last = runs.at(-1);
    if (last?.zero === zero && last.hole === hole) last.length += to - from;
    else runs.push({ length: to - from, hole, zero });
  }
  return runs;
}

type DataRun = Run & { readonly source: number };

function isData(run: Run): run is DataRun {
  return run.source !== undefined && run.source < SOURCE_LIMIT;
}

function numberOf(address: FrameAddress): number {
  return address.container.frameBase + address.frame;
}

interface Line {
  readonly map: ExtentMap;
  readonly places: readonly ContainerPlace[];
  /** Undefined: no commit with data. */
  readonly shape: { readonly sizeBytes: number; readonly sectorBytes: number } | undefined;
}

/** All commits of the line laid over each other. */
async function readLine(disk: DiskContext, keyring: Keyring, position: ImagePosition): Promise<Line> {
  const maps = overlayStack();
  const places: ContainerPlace[] = [];
  let shape: Line["shape"];
  for await (const commit of readBranch(disk, position.branch, position)) {
    if (commit.header.kind === "fence") continue;
    const head = openHead(commit.prefix, keyring);
    if ("needBytes" in head) throw new RangeError("A commit is yielded with its whole index");
    const index = readIndex(head);
    const base = places.length;
    const { containerId, salt, dataKeyId, indexBytes } = head.header;
    const { headSha256 } = head;
    places.push({
      key: commit.key,
      containerId,
      headSha256,
      salt,
      dataKeyId,
      indexBytes,
      directory: index.directories[0]!,
    });
    places.push(...segmentPlaces(disk, index));
    const { extents } = index;
    for (let run = 0; run < extents.count; run++) if (extents.source[run]! < SOURCE_LIMIT) extents.source[run]! += base;
    maps.add(extents);
    shape = { sizeBytes: head.header.diskSizeBytes, sectorBytes: head.header.sectorBytes };
  }
  return { map: maps.finish(), places, shape };
}

function segmentPlaces(disk: DiskContext, index: CommitIndex): ContainerPlace[] {
  return index.segments.map((segment, position) => {
    const id = parseContainerId(segment.containerId)!; // The decoder let only such ids pass.
    return { ...segment, key: disk.names.segment(id.term, id.counter), directory: index.directories[position + 1]! };
  });
}

/** Containers by source number; those that no block refers to any more are left out, with their directories. */
function containersInUse(
  line: Line,
  disk: DiskContext,
  options: { readonly keyring: Keyring; readonly storeId: string },
): (ImageContainer | undefined)[] {
  const used = new Set(line.map.source.subarray(0, line.map.count));
  let frameBase = 0;
  return line.places.map((place, source) => {
    if (!used.has(source)) return undefined;
    const { store, diskId } = disk;
    const { keyring, storeId } = options;
    const container = imageContainer(place, { store, keyring, cipher: keyring.cipher, storeId, diskId, frameBase });
    frameBase += place.directory.count;
    return container;
  });
}
