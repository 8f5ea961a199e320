/**
 * Makes the golden objects of format version 1 from fixed keys, salts and data. Run by hand, once; the files are kept for ever:
 *
 *     node test/golden/v1/make.ts
 *
 * A later program may write other bytes (another zstd packs otherwise). It must always read these.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { CODEC_RAW, CODEC_ZERO, KIND_DELTA, KIND_SWEEP } from "#model/frame-record.ts";
import { FLAG_POINT_CLEAN, FLAG_SYNC_IN_PROGRESS, formatContainerId } from "#model/format/header.ts";
import { diskNames, groupNames, storeNames } from "#model/format/object-names.ts";
import * as records from "#model/format/records.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { memoryStore } from "../../../src/adapters/memory/memory-store.ts";
import { containerWriter } from "../../../src/data-mover/container-writer.ts";
import { openKeyring } from "../../../src/data-mover/keyring.ts";
import { blockData, digestsOf, frameOf, seededRandom } from "../../support/format-samples.ts";
import { DISK_ID, DISK_KEY, GROUP_ID, ROOT, SIZE_BYTES, STORE_ID } from "./facts.ts";

const store = memoryStore();
const random = seededRandom("golden v1");
const now = 1_786_000_000_000;
const clock = { now: () => now, monotonic: () => 0, sleep: () => Promise.resolve() };
const disk = diskNames(ROOT, DISK_ID);
const group = groupNames(ROOT, GROUP_ID);
const writerId = "0123456789abcdef";

const keyring = await openKeyring({ store, root: ROOT, clock, random }, { storeId: STORE_ID, diskId: DISK_ID, diskKey: DISK_KEY, create: true });
const dataKey = await keyring.current();
const writer = (counter: number, kind: "journal" | "fence" = "journal") =>
  containerWriter({
    buffer: new Uint8Array(1 << 20),
    kind,
    cipher: keyring.cipher,
    dataKey,
    storeId: STORE_ID,
    diskId: DISK_ID,
    containerId: formatContainerId({ role: "writer", term: 1, counter }),
    random,
  });
const details = (cycle: number, flags: number) => ({
  cycle,
  cycleDisks: 1,
  flags,
  firstWriteMs: now + cycle * 5000 - 3000,
  cutMs: now + cycle * 5000,
  rawCutMs: now + cycle * 5000 - 7,
  diskSizeBytes: SIZE_BYTES,
  sectorBytes: 512,
});

await store.create(storeNames(ROOT).store, records.encodeStoreRecord({ storeId: STORE_ID, features: [], createdAtMs: now }));
await store.create(disk.origin("root"), records.encodeBranchOrigin({ branch: "root", reason: "root", operation: "prepare", createdAtMs: now }));
const claim = { activeSite: "one", branch: "root", operation: "prepare", holder: "mover", claimedAtMs: now };
await store.create(disk.epoch(1), records.encodeDiskClaim({ ...claim, epoch: 1, groupEpoch: 1 }));
await store.create(group.epoch(1), records.encodeGroupClaim({ ...claim, groupEpoch: 1, disks: [DISK_ID] }));

// 1: a fence. 2: an initial sync with a segment. 3: a delta that overrides a part of it.
const fence = writer(0, "fence").finish({ branch: "root", epoch: 1, seq: 1, chain: "0".repeat(32), writerId }, { ...details(0, 0), cycleDisks: 0 });
await store.create(disk.commit("root", 1), fence.bytes);

const sweep = writer(1);
sweep.append(frameOf(0, blockData(0, 64), KIND_SWEEP));
sweep.append(frameOf(64, blockData(64, 5), KIND_SWEEP));
const { bytes, segment } = sweep.finishSegment({ branch: "root", epoch: 1, writerId }, details(1, FLAG_SYNC_IN_PROGRESS));
await store.create(disk.segment(1, 1), bytes);
const zeroRun = { codec: CODEC_ZERO, digests: new Uint8Array(), stored: new Uint8Array() } as const;
const first = writer(2);
first.append({ ...zeroRun, block: 69, blocks: 31, kind: KIND_SWEEP });
const second = first.finish(
  { branch: "root", epoch: 1, seq: 2, chain: fence.commitHash, writerId },
  { ...details(1, FLAG_SYNC_IN_PROGRESS), segments: [segment], sync: { remainingBytes: 0, totalBytes: SIZE_BYTES } },
);
await store.create(disk.commit("root", 2), second.bytes);

const delta = writer(3);
const noise = Buffer.from(seededRandom("noise").bytes(BLOCK_SIZE)); // Does not compress: stored raw.
delta.append({ block: 70, blocks: 1, codec: CODEC_RAW, kind: KIND_DELTA, digests: digestsOf(noise), stored: noise });
delta.append(frameOf(10, blockData(10, 3, 2)));
delta.appendTrim({ block: 20, blocks: 4, kind: KIND_DELTA });
const third = delta.finish(
  { branch: "root", epoch: 1, seq: 3, chain: second.commitHash, writerId },
  {
    ...details(2, FLAG_POINT_CLEAN),
    tracker: { bootId: "4f6c…", generation: 2, lostEvents: 0, holdMs: 4 },
    barrier: { groupId: GROUP_ID, groupEpoch: 1, barrier: 2, point: true },
  },
);
await store.create(disk.commit("root", 3), third.bytes);

const barrier: records.BarrierRecord = {
  barrier: 2,
  groupId: GROUP_ID,
  groupEpoch: 1,
  cutAtMs: now + 10_000,
  consistency: "crash",
  members: [{ diskId: DISK_ID, branch: "root", epoch: 1, seq: 3, commitHash: third.commitHash }],
};
await store.create(group.barrier(2), records.encodeBarrier(barrier));
const point: records.PointRecord = { barrier, kind: "bookmark", name: "before the move", reasonKept: "bookmark", operation: "op-1", createdAtMs: now };
await store.create(group.point(barrier.cutAtMs, 2), records.encodePoint(point, keyring.mac));

const folder = new URL("./store/", import.meta.url);
for (const [key, data] of store.objects) {
  const path = new URL(key, folder);
  await mkdir(new URL("./", path), { recursive: true });
  await writeFile(path, data, { flag: "wx" });
}
