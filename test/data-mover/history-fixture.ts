/**
 * Histories put together object by object, without the commit protocol: any number of branches, fences and stale commits, over a disk of
 * several map shards of which only a few windows are ever written; and what every block must read as after each commit.
 */
import { CODEC_ZERO, type FrameKind, KIND_DELTA, KIND_SWEEP } from "#model/frame-record.ts";
import { formatContainerId } from "#model/format/header.ts";
import { diskNames } from "#model/format/object-names.ts";
import { encodeBranchOrigin } from "#model/format/records.ts";
import { SHARD_BLOCKS } from "#model/shard-map.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { Clock } from "#ports/clock.ts";
import type { Log } from "#ports/log.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { memoryStore, type MemoryStore } from "../../src/adapters/memory/memory-store.ts";
import { NO_COMMIT } from "../../src/data-mover/branch-reader.ts";
import { containerCodec } from "../../src/data-mover/container-codec.ts";
import { containerWriter, type CommitDetails, type SealedSegment } from "../../src/data-mover/container-writer.ts";
import type { DiskContext, StoreContext } from "../../src/data-mover/disk-context.ts";
import { type DiskImage, openImage } from "../../src/data-mover/image.ts";
import { openKeyring } from "../../src/data-mover/keyring.ts";
import type { MapAccess } from "../../src/data-mover/map-access.ts";
import { blockData, DETAILS, DISK_ID, frameOf, seededRandom, STORE_ID } from "../support/format-samples.ts";

/** Blocks that may be written: at the borders of shards, inside one, and at the end of the disk. */
export const WINDOWS: readonly { readonly start: number; readonly blocks: number }[] = [
  { start: 0, blocks: 300 },
  { start: SHARD_BLOCKS - 150, blocks: 300 },
  { start: 2 * SHARD_BLOCKS + 1000, blocks: 300 },
  { start: 3 * SHARD_BLOCKS - 50, blocks: 100 },
];
/** The last block is partial. */
export const SIZE_BYTES: number = (3 * SHARD_BLOCKS + 50) * BLOCK_SIZE - 1536;

const clock: Clock = { now: () => 1_786_000_000_000, monotonic: () => 0, sleep: () => Promise.resolve() };

/** Version of each block that was written; 0 for zeroes. */
export type State = ReadonlyMap<number, number>;

export interface Place {
  readonly branch: string;
  readonly seq: number;
  readonly commitHash: string;
}

export interface History {
  readonly store: MemoryStore;
  readonly disk: DiskContext;
  readonly access: MapAccess;
  readonly random: ReturnType<typeof seededRandom>;
  /** What was said to the log, by `warn`. */
  readonly warnings: string[];
  readonly branches: readonly string[];
  /** Every commit that counts, in the order in which they were made. */
  readonly places: readonly (Place & { readonly state: State })[];
  tip(branch: string): Place;
  /** A commit of random writes, sometimes with segments, sometimes behind a stale one. */
  commit(branch: string): Promise<void>;
  fence(branch: string): Promise<void>;
  fork(from: Place): Promise<string>;
  open(place: Place, more?: { readonly mapBytes?: number }): Promise<DiskImage>;
}

interface Tip extends Place {
  readonly epoch: number;
  readonly state: State;
}

export async function createHistory(seed: string): Promise<History> {
  const store = memoryStore();
  const random = seededRandom(seed);
  const context: StoreContext = { store, root: "replica", clock, random };
  const diskKey = Buffer.alloc(32, 9);
  const keyring = await openKeyring(context, { storeId: STORE_ID, diskId: DISK_ID, diskKey, create: true });
  const shape = { sizeBytes: SIZE_BYTES, sectorBytes: 512 };
  const codec = containerCodec({
    storeId: STORE_ID,
    diskId: DISK_ID,
    keyring,
    random,
    now: clock.now,
    shape: () => shape,
  });
  const names = diskNames("replica", DISK_ID);
  const disk: DiskContext = { ...context, diskId: DISK_ID, names, codec };
  const warnings: string[] = [];
  const log: Log = { ...silentLog, warn: (message) => void warnings.push(message) };
  const access: MapAccess = { disk, keyring, storeId: STORE_ID, log };
  const dataKey = await keyring.current();
  const writerId = "0123456789abcdef";
  const tips = new Map<string, Tip>();
  const places: Tip[] = [];
  let counter = 0;

  const container = (kind: "journal" | "fence" = "journal") =>
    containerWriter({
      buffer: new Uint8Array(1 << 20),
      kind,
      cipher: keyring.cipher,
      dataKey,
      storeId: STORE_ID,
      diskId: DISK_ID,
      containerId: formatContainerId({ role: "writer", term: 1, counter: ++counter }),
      random,
    });

  const begin = async (branch: string, parent?: Place & { readonly state: State }): Promise<void> => {
    const origin = { branch, operation: "test", createdAtMs: 0 };
    const record =
      parent === undefined
        ? encodeBranchOrigin({ ...origin, reason: "root" })
        : encodeBranchOrigin({
            ...origin,
            reason: "failover",
            parent: { branch: parent.branch, seq: parent.seq, commitHash: parent.commitHash },
          });
    await store.create(names.origin(branch), record);
    const state = parent?.state ?? new Map<number, number>();
    tips.set(branch, { branch, seq: 0, commitHash: parent?.commitHash ?? NO_COMMIT, epoch: 1, state });
  };
  await begin("root");

  const put = async (
    branch: string,
    more: {
      readonly kind?: "fence";
      readonly writes?: readonly Write[];
      readonly epoch: number;
      readonly state: State;
      readonly counts?: false;
    },
  ): Promise<void> => {
    const tip = tips.get(branch)!;
    const cutMs = DETAILS.cutMs + places.length * 5000;
    const details: CommitDetails = {
      ...DETAILS,
      cycle: places.length + 1,
      cutMs,
      rawCutMs: cutMs,
      diskSizeBytes: SIZE_BYTES,
    };
    const writes = more.writes ?? [];
    const inSegments = writes.length > 2 ? random.below(3) : 0;
    const segments: SealedSegment[] = [];
    for (const write of writes.slice(0, inSegments)) {
      const one = container();
      one.append(recordOf(write));
      const { bytes, segment } = one.finishSegment({ branch, epoch: more.epoch, writerId }, details);
      await store.create(names.segment(1, counter), bytes);
      segments.push(segment);
    }
    const journal = container(more.kind);
    for (const write of writes.slice(inSegments)) journal.append(recordOf(write));
    const place = { branch, epoch: more.epoch, seq: tip.seq + 1, chain: tip.commitHash, writerId };
    const sealed = journal.finish(place, { ...details, ...(more.kind === undefined ? { segments } : { cycle: 0 }) });
    await store.create(names.commit(branch, place.seq), sealed.bytes.slice());
    if (more.counts === false) {
      tips.set(branch, { ...tip, seq: place.seq });
      return;
    }
    const next = { branch, seq: place.seq, commitHash: sealed.commitHash, epoch: more.epoch, state: more.state };
    tips.set(branch, next);
    places.push(next);
  };

  return {
    store,
    disk,
    access,
    random,
    warnings,
    places,
    get branches() {
      return [...tips.keys()];
    },
    tip: (branch) => tips.get(branch)!,
    async commit(branch) {
      const { epoch, state } = tips.get(branch)!;
      if (epoch > 1 && random.below(8) === 0)
        await put(branch, { writes: randomWrites(random, 60_000), epoch: epoch - 1, state, counts: false });
      const writes = randomWrites(random, places.length + 1);
      await put(branch, { writes, epoch, state: after(state, writes) });
    },
    async fence(branch) {
      const { epoch, state } = tips.get(branch)!;
      await put(branch, { kind: "fence", epoch: epoch + 1, state });
    },
    async fork(from) {
      const branch = `b-${tips.size}`;
      const parent = places.find((place) => place.branch === from.branch && place.seq === from.seq)!;
      await begin(branch, parent);
      return branch;
    },
    open: (place, more = {}) =>
      openImage(disk, {
        keyring,
        storeId: STORE_ID,
        log,
        branch: place.branch,
        seq: place.seq,
        commitHash: place.commitHash,
        ...more,
      }),
  };
}

interface Write {
  readonly block: number;
  readonly blocks: number;
  readonly kind: FrameKind;
  /** 0: zeroes. */
  readonly version: number;
}

function randomWrites(random: History["random"], version: number): Write[] {
  return Array.from({ length: 1 + random.below(6) }, () => {
    const window = WINDOWS[random.below(WINDOWS.length)]!;
    const blocks = 1 + random.below(random.below(4) === 0 ? 64 : 8);
    const kind = random.below(3) === 0 ? KIND_SWEEP : KIND_DELTA;
    const block = window.start + random.below(window.blocks - blocks + 1);
    return { block, blocks, kind, version: random.below(6) === 0 ? 0 : version };
  });
}

function recordOf({ block, blocks, kind, version }: Write) {
  if (version !== 0) return frameOf(block, blockData(block, blocks, version), kind);
  return { block, blocks, codec: CODEC_ZERO, kind, digests: new Uint8Array(), stored: new Uint8Array() } as const;
}

/** Deltas win over sweeps of the same commit. */
function after(state: State, writes: readonly Write[]): State {
  const next = new Map(state);
  for (const kind of [KIND_SWEEP, KIND_DELTA]) {
    for (const write of writes) {
      if (write.kind !== kind) continue;
      for (let block = write.block; block < write.block + write.blocks; block++) next.set(block, write.version);
    }
  }
  return next;
}

const ZEROES = Buffer.alloc(BLOCK_SIZE);
const known = new Map<string, Buffer>();

/** Made once: histories have few blocks and read them often. */
function knownBlock(block: number, version: number): Buffer {
  const name = `${block}/${version}`;
  const data = known.get(name) ?? blockData(block, 1, version);
  if (known.size > 20_000) known.clear();
  known.set(name, data);
  return data;
}

/** The first block in which `image` is not `state`, in all windows; undefined when it is the same. */
export async function firstDifference(image: DiskImage, state: State): Promise<number | undefined> {
  for (const { start, blocks } of WINDOWS) {
    const actual = Buffer.alloc(Math.min(blocks * BLOCK_SIZE, SIZE_BYTES - start * BLOCK_SIZE), 0xee);
    await image.read(actual, start * BLOCK_SIZE);
    for (let block = start; block < start + blocks; block++) {
      const version = state.get(block) ?? 0;
      const expected = version === 0 ? ZEROES : knownBlock(block, version);
      const read = actual.subarray((block - start) * BLOCK_SIZE, (block - start + 1) * BLOCK_SIZE);
      if (!read.equals(expected.subarray(0, read.length))) return block;
    }
  }
  return undefined;
}
