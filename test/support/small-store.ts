/**
 * A small replica store with one object of every kind in it, made by the program's own writers: a group of two disks, an initial sync with
 * segments, deltas, trims, a bookmark, a failover to a branch of its own, and what each disk holds at each point.
 */
import { createHmac, createSecretKey } from "node:crypto";
import { CODEC_ZERO, type FrameKind, KIND_DELTA, KIND_SWEEP } from "#model/frame-record.ts";
import { FLAG_POINT_CLEAN, FLAG_SYNC_IN_PROGRESS, formatContainerId } from "#model/format/header.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { Clock } from "#ports/clock.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { barrierMember, readBarrier, writeBarrier, type GroupContext } from "../../src/data-mover/barriers.ts";
import { type DiskWriter, openWriter } from "../../src/data-mover/commit-log.ts";
import { containerWriter, type SealedSegment } from "../../src/data-mover/container-writer.ts";
import type { StoreContext } from "../../src/data-mover/disk-context.ts";
import { claimBranch, createBranch, createDisk } from "../../src/data-mover/disk-moves.ts";
import { claimGroupEpoch, fenceGroup } from "../../src/data-mover/group-fence.ts";
import {
  ensureStoreRecord,
  openMoverStore,
  type MoverStore,
  type OpenedDisk,
} from "../../src/data-mover/mover-store.ts";
import { bookmark, type Bookmarks } from "../../src/data-mover/points.ts";
import { deriveMacKey } from "../../src/data-mover/sealing.ts";
import { blockData, frameOf, seededRandom } from "./format-samples.ts";

export const SMALL_GROUP = "payroll";
export const SMALL_ROOT = "replica";

export interface SmallStore {
  readonly context: StoreContext;
  readonly tenantKey: Uint8Array;
  readonly keys: ReadonlyMap<string, Uint8Array>;
  readonly bookmarks: Bookmarks;
  /** What each disk holds at each barrier. */
  readonly states: ReadonlyMap<number, ReadonlyMap<string, Buffer>>;
  /** As a fresh process would. */
  open(objects?: ObjectStore): MoverStore;
  group(store: MoverStore): Promise<GroupContext>;
}

interface Write {
  readonly block: number;
  readonly blocks: number;
  readonly kind?: FrameKind;
  /** Left out: zeroes. "trim": trimmed. */
  readonly version?: number | "trim";
}

/** Disks in blocks; the last block of `web-data` is partial. */
export const SMALL_DISKS = [
  { diskId: "web-system", sizeBytes: 400 * BLOCK_SIZE, sectorBytes: 512 },
  { diskId: "web-data", sizeBytes: 300 * BLOCK_SIZE - 1536, sectorBytes: 512 },
] as const;

/** The point that has a bookmark. */
export const MARKED = 3;

export async function smallStore(objects: ObjectStore, options: { readonly scale?: number } = {}): Promise<SmallStore> {
  const scale = options.scale ?? 1;
  let now = 1_786_000_000_000;
  const clock: Clock = { now: () => now, monotonic: () => performance.now(), sleep: () => Promise.resolve() };
  const random = seededRandom("small store");
  const context: StoreContext = { store: objects, root: SMALL_ROOT, clock, random };
  const disks = SMALL_DISKS.map((disk) => ({ ...disk, sizeBytes: disk.sizeBytes * scale }));
  const keys = new Map<string, Uint8Array>(disks.map(({ diskId }) => [diskId, random.bytes(32)]));
  const tenantKey = random.bytes(32);
  const { storeId } = await ensureStoreRecord(context);
  const open = (other?: ObjectStore): MoverStore =>
    openMoverStore(other === undefined ? context : { ...context, store: other }, {
      keys: (diskId) => keys.get(diskId),
    });
  const group = async (store: MoverStore): Promise<GroupContext> => {
    for (const disk of disks) await store.openDisk(disk);
    return store.group(
      SMALL_GROUP,
      disks.map(({ diskId }) => diskId),
    );
  };
  const macKey = deriveMacKey(createSecretKey(tenantKey), storeId);
  const bookmarks: Bookmarks = { mac: (data) => createHmac("sha256", macKey).update(data).digest(), log: silentLog };

  const store = open();
  const opened = new Map<string, OpenedDisk>();
  for (const disk of disks) opened.set(disk.diskId, await store.openDisk(disk, { create: true }));
  const own = await group(store);
  const diskIds = disks.map(({ diskId }) => diskId);
  const move = { operation: "protect", activeSite: "primary", holder: "test" };
  await claimGroupEpoch(own, { ...move, disks: diskIds, branch: "root" });
  for (const diskId of diskIds) await createDisk(own.disk(diskId), { ...move, groupEpoch: 1 });

  const contents = new Map<string, Buffer>(disks.map(({ diskId, sizeBytes }) => [diskId, Buffer.alloc(sizeBytes)]));
  const states = new Map<number, ReadonlyMap<string, Buffer>>();
  let counter = 0;

  const commit = async (
    writers: ReadonlyMap<string, DiskWriter>,
    cycle: number,
    writes: Readonly<Record<string, readonly Write[]>>,
    more: { readonly inSegments?: number; readonly point?: boolean } = {},
  ): Promise<void> => {
    now += 5_000;
    const cycleDisks = Object.keys(writes).length;
    for (const [diskId, list] of Object.entries(writes)) {
      const disk = opened.get(diskId)!;
      const writer = writers.get(diskId)!;
      const dataKey = await disk.keyring.current();
      const container = () =>
        containerWriter({
          buffer: new Uint8Array(8 << 20),
          kind: "journal",
          cipher: disk.keyring.cipher,
          dataKey,
          storeId,
          diskId,
          containerId: formatContainerId({ role: "writer", term: writer.epoch, counter: ++counter }),
          random,
        });
      const details = {
        cycle,
        cycleDisks,
        flags: more.point === false ? FLAG_SYNC_IN_PROGRESS : FLAG_POINT_CLEAN,
        firstWriteMs: now - 4_000,
        cutMs: now,
        rawCutMs: now - 3,
        diskSizeBytes: disk.shape.sizeBytes,
        sectorBytes: disk.shape.sectorBytes,
      };
      const segments: SealedSegment[] = [];
      const content = contents.get(diskId)!;
      // Deltas win over sweeps of the same commit.
      for (const kind of [KIND_SWEEP, KIND_DELTA])
        for (const write of list) if ((write.kind ?? KIND_DELTA) === kind) apply(content, write);
      for (const write of list.slice(0, more.inSegments ?? 0)) {
        const part = container();
        append(part, write);
        const { bytes, segment } = part.finishSegment(writer, details);
        await objects.create(disk.context.names.segment(writer.epoch, counter), bytes);
        segments.push(segment);
      }
      const journal = container();
      for (const write of list.slice(more.inSegments ?? 0)) append(journal, write);
      await writer.commit({
        cycle,
        cutAtMs: now,
        seal(place) {
          const sealed = journal.finish(place, {
            ...details,
            segments,
            barrier: { groupId: SMALL_GROUP, groupEpoch: 1, barrier: cycle, point: more.point ?? true },
          });
          return { body: sealed.bytes, commitHash: sealed.commitHash };
        },
      });
    }
    if (more.point === false) return;
    const members = diskIds.map((diskId) => {
      const writer = writers.get(diskId)!;
      return barrierMember(diskId, writer.branch, writer.data);
    });
    await writeBarrier(own, {
      barrier: cycle,
      groupId: SMALL_GROUP,
      groupEpoch: 1,
      cutAtMs: now,
      consistency: "crash",
      members,
    });
    states.set(cycle, new Map([...contents].map(([diskId, content]) => [diskId, Buffer.from(content)])));
  };
  const writersOf = async (site: string, branch: string): Promise<Map<string, DiskWriter>> => {
    const writers = new Map<string, DiskWriter>();
    for (const diskId of diskIds)
      writers.set(diskId, await openWriter(own.disk(diskId), { site, branch, holder: "test", operation: "stream" }));
    return writers;
  };

  const sweep = (first: number, count: number): Write[] =>
    Array.from({ length: count }, (_, index) => ({
      block: first + index * 50,
      blocks: 50,
      kind: KIND_SWEEP,
      version: 1,
    }));
  const root = await writersOf("primary", "root");
  await commit(
    root,
    1,
    {
      "web-system": [...sweep(0, 6 * scale), { block: 350, blocks: 20, kind: KIND_SWEEP }],
      "web-data": sweep(0, 4 * scale),
    },
    { inSegments: 2, point: false },
  );
  await commit(root, 2, {
    "web-system": [{ block: 10, blocks: 8, version: 2 }],
    "web-data": [{ block: 299 * scale, blocks: 1, version: 2 }],
  });
  await commit(root, 3, {
    "web-system": [
      { block: 12, blocks: 3, version: 3 },
      { block: 60, blocks: 4, version: "trim" },
    ],
  });
  await bookmark(own, { operation: "mark", barrier: MARKED, name: "before the move" }, bookmarks);
  await commit(root, 4, {
    "web-data": [
      { block: 100, blocks: 30, version: 4 },
      { block: 5, blocks: 2 },
    ],
  });
  await commit(root, 5, {
    "web-system": [{ block: 200, blocks: 64, version: 5 }],
    "web-data": [{ block: 101, blocks: 2, version: 5 }],
  });

  // A failover to point 4: what came after it stays on root.
  now += 40 * 86_400_000; // Another month: what follows is sealed with another data key.
  const failover = { operation: "failover", activeSite: "secondary", holder: "test" };
  const { groupEpoch } = await fenceGroup(own, { ...failover, disks: diskIds });
  for (const diskId of diskIds) {
    const member = (await readBarrier(own, 4))!.members.find((one) => one.diskId === diskId)!;
    await createBranch(own.disk(diskId), {
      branch: "x-1",
      parent: { branch: member.branch, seq: member.seq, commitHash: member.commitHash },
      reason: "failover",
      operation: "failover",
    });
    await claimBranch(own.disk(diskId), { ...failover, groupEpoch, branch: "x-1" });
    states.get(4)!.get(diskId)!.copy(contents.get(diskId)!);
  }
  const second = await writersOf("secondary", "x-1");
  await commit(second, 7, { "web-system": [{ block: 0, blocks: 5, version: 7 }] });
  await commit(
    second,
    8,
    { "web-system": [{ block: 11, blocks: 60, version: 8 }], "web-data": [{ block: 100, blocks: 1, version: 8 }] },
    { inSegments: 1 },
  );
  return { context, tenantKey, keys, bookmarks, states, open, group };
}

function apply(content: Buffer, { block, blocks, version }: Write): void {
  const data = typeof version === "number" ? blockData(block, blocks, version) : Buffer.alloc(blocks * BLOCK_SIZE);
  data.copy(content, block * BLOCK_SIZE);
}

function append(
  container: ReturnType<typeof containerWriter>,
  { block, blocks, kind = KIND_DELTA, version }: Write,
): void {
  if (version === "trim") container.appendTrim({ block, blocks, kind });
  else if (version === undefined)
    container.append({ block, blocks, codec: CODEC_ZERO, kind, digests: new Uint8Array(), stored: new Uint8Array() });
  else container.append(frameOf(block, blockData(block, blocks, version), kind));
}
