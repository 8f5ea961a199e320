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
  readonly map: ExtentMap;
  /** Fill `target` from byte `offset`; anything inside the disk. Throws OBJECT_CORRUPT, OBJECT_MISSING, STORE_…, KEY_MISSING. */
  read(target: Uint8Array, offset: number): Promise<void>;
  readonly statistics: FrameLoader["statistics"];
}

const CACHE_BYTES = 64 << 20;
/** Data that one read may hold beside the cache. */
const STEP_BLOCKS = (8 << 20) / BLOCK_SIZE;
const AHEAD_BLOCKS = (4 << 20) / BLOCK_SIZE;
/** Frames fetched ahead that may be outstanding; beyond that the reader is faster than the store anyway. */
const AHEAD_FRAMES_MOST = 64;

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
  const ahead = readAhead(AHEAD_BLOCKS, blockCount(sizeBytes));
  const { map } = line;

  const framesOf = (start: number, end: number): FrameAddress[] => {
    const frames: FrameAddress[] = [];
    for (const run of runsOf(map, start, end - start)) if (isData(run)) frames.push(addressOf(run));
    return frames;
  };
  const addressOf = (run: DataRun): FrameAddress => ({ container: containers[run.source]!, frame: run.frame });

  let aheadFrames = 0;
  const fetchAhead = (start: number, end: number): void => {
    const frames = uniqueFrames(framesOf(start, end).filter((frame) => !loader.has(frame)));
    if (frames.length === 0 || aheadFrames + frames.length > AHEAD_FRAMES_MOST) return;
    aheadFrames += frames.length;
    const done = (): void => void (aheadFrames -= frames.length);
    // An error is seen by the read that needs the frame; it asks again.
    loader.load(frames).then(done, done);
  };

  const readStep = async (target: Uint8Array, offset: number): Promise<void> => {
    const start = Math.floor(offset / BLOCK_SIZE);
    const end = Math.ceil((offset + target.length) / BLOCK_SIZE);
    const runs = [...runsOf(map, start, end - start)];
    const wanted = uniqueFrames(runs.filter(isData).map(addressOf));
    const loading = loader.load(wanted);
    const next = ahead.observe(start, end);
    if (next !== undefined) fetchAhead(next.start, next.end);
    const plain = new Map((await loading).map((data, index) => [numberOf(wanted[index]!), data]));
    for (const run of runs) {
      const from = Math.max(run.start * BLOCK_SIZE, offset);
      const to = Math.min((run.start + run.length) * BLOCK_SIZE, offset + target.length);
      if (!isData(run)) {
        target.fill(0, from - offset, to - offset);
        continue;
      }
      const address = addressOf(run);
      const first = address.container.place.directory.block[run.frame]! * BLOCK_SIZE;
      target.set(plain.get(numberOf(address))!.subarray(from - first, to - first), from - offset);
    }
  };

  return {
    sizeBytes,
    sectorBytes,
    map,
    statistics: loader.statistics,
    async read(target, offset) {
      if (offset < 0 || offset + target.length > sizeBytes)
        throw new RangeError(`Read of ${target.length} bytes at ${offset}`);
      for (let at = 0; at < target.length;) {
        // Steps end at block boundaries, so that no frame is wanted by two of them more than it must.
        const blockAt = Math.floor((offset + at) / BLOCK_SIZE) + STEP_BLOCKS;
        const end = Math.min(target.length, blockAt * BLOCK_SIZE - offset);
        await readStep(target.subarray(at, end), offset + at);
        at = end;
      }
    },
  };
}

/** The image as a device that can be exported; nothing can be written to it. */
export function imageDevice(image: DiskImage): BlockDevice {
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
    status: (offset, length) => allocationOf(image.map, offset, length),
    close: () => Promise.resolve(),
  };
}

/** Runs of equal allocation that cover [offset, offset + length) in bytes. */
export function allocationOf(map: ExtentMap, offset: number, length: number): AllocationRun[] {
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

/** Each frame once, in the order of first appearance. */
function uniqueFrames(frames: readonly FrameAddress[]): FrameAddress[] {
  const seen = new Set<number>();
  return frames.filter((frame) => !seen.has(numberOf(frame)) && seen.add(numberOf(frame)));
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
