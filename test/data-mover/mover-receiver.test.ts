import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { Fault, isFault } from "#model/fault.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import type { GroupProgress } from "#ports/replication.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { s3ObjectStore } from "../../src/adapters/s3/s3-object-store.ts";
import type { GroupContext } from "../../src/data-mover/barriers.ts";
import type { StoreContext } from "../../src/data-mover/disk-context.ts";
import { createDisk } from "../../src/data-mover/disk-moves.ts";
import { claimGroupEpoch, fenceGroup } from "../../src/data-mover/group-fence.ts";
import { restorePoint } from "../../src/data-mover/export-restore.ts";
import { openImage } from "../../src/data-mover/image.ts";
import { ensureStoreRecord, openMoverStore, type MoverStore } from "../../src/data-mover/mover-store.ts";
import { listPoints } from "../../src/data-mover/points.ts";
import { startReceiver, type Receiver } from "../../src/data-mover/receiver.ts";
import { createTestAuthority } from "../support/credentials.ts";
import { startVersitygw } from "../support/versitygw.ts";
import { openSourceStream, ScriptedSource, type Cut, type SourceStream } from "./mover-source.ts";

const GROUP = "web-tier";
const diskKeys = (diskId: string): Uint8Array =>
  new Uint8Array(32).fill(diskId.length + diskId.charCodeAt(diskId.length - 1));

interface World {
  readonly source: ScriptedSource;
  readonly store: MoverStore;
  receiver: Receiver;
  readonly progress: GroupProgress[];
  connect(options?: { readonly lanes?: number; readonly site?: string }): Promise<SourceStream>;
  restartReceiver(): Promise<void>;
}

async function world(
  t: TestContext,
  objects: ObjectStore,
  options: { readonly diskBlocks: readonly number[]; readonly seed: number; readonly patienceMs?: number },
): Promise<World> {
  const context: StoreContext = {
    store: objects,
    root: "site",
    clock: systemClock,
    random: systemRandom,
    retry: { attempts: 4, firstMs: 20, mostMs: 200 },
  };
  await ensureStoreRecord(context);
  const source = new ScriptedSource(options.diskBlocks, options.seed);
  const open = (): MoverStore => openMoverStore(context, { keys: diskKeys });
  const store = open();
  const shapes = source.disks.map((disk) => ({
    diskId: disk.diskId,
    sizeBytes: disk.content.length,
    sectorBytes: 512,
  }));
  for (const shape of shapes) await store.openDisk(shape, { create: true });
  const group = await store.group(
    GROUP,
    shapes.map(({ diskId }) => diskId),
  );
  await claimGroupEpoch(group, {
    operation: "prepare",
    activeSite: "primary",
    disks: shapes.map(({ diskId }) => diskId),
    holder: "test",
    branch: "root",
  });
  for (const { diskId } of shapes)
    await createDisk(group.disk(diskId), {
      operation: "prepare",
      groupEpoch: 1,
      activeSite: "primary",
      holder: "test",
    });

  const ca = await createTestAuthority();
  const targetLink = await ca.link("secondary", "master-target", "mt");
  const links = {
    primary: await ca.link("primary", "process-server", "ps"),
    other: await ca.link("other", "process-server", "ps"),
  };
  const progress: GroupProgress[] = [];
  const start = async (): Promise<Receiver> => {
    const started = await startReceiver({
      link: targetLink,
      listen: { host: "127.0.0.1", port: 0 },
      store: open(),
      log: silentLog,
      onProgress: (one) => progress.push(one),
      patienceMs: options.patienceMs ?? 10_000,
      progressEveryMs: 5,
    });
    started.putGroup({ groupId: GROUP, sourceSite: "primary", disks: shapes });
    return started;
  };
  const streams: SourceStream[] = [];
  const made: World = {
    source,
    store,
    receiver: await start(),
    progress,
    async connect({ lanes = 2, site = "primary" } = {}) {
      const stream = await openSourceStream(
        site === "primary" ? links.primary : links.other,
        made.receiver.address,
        source,
        { groupId: GROUP, lanes, site: "primary" },
      );
      streams.push(stream);
      return stream;
    },
    async restartReceiver() {
      await made.receiver.close();
      made.receiver = await start();
    },
  };
  t.after(async () => {
    for (const stream of streams) stream.close();
    await made.receiver.close();
  });
  return made;
}

function groupOf(made: World): Promise<GroupContext> {
  return made.store.group(
    GROUP,
    made.source.disks.map(({ diskId }) => diskId),
  );
}

/** Every point in the store equals what the source held at its cut, block by block. */
async function comparePoints(made: World, least: number): Promise<number[]> {
  const points = await listPoints(await groupOf(made));
  assert.ok(points.length >= least, `${points.length} points, expected at least ${least}`);
  for (const point of points) {
    const state = made.source.states.get(point.barrier);
    assert.ok(state, `a cut for barrier ${point.barrier}`);
    for (const member of point.members) await compareDisk(made, member, state.get(member.diskId)!, point.barrier);
  }
  return points.map((point) => point.barrier);
}

async function compareDisk(
  made: World,
  member: { diskId: string; branch: string; seq: number; commitHash: string },
  expected: Uint8Array,
  barrier: number,
): Promise<void> {
  const { keyring, context, storeId } = await made.store.openDisk({
    diskId: member.diskId,
    sizeBytes: expected.length,
    sectorBytes: 512,
  });
  const image = await openImage(context, { ...member, keyring, storeId });
  assert.equal(image.sizeBytes, expected.length);
  const seen = new Uint8Array(expected.length);
  await image.read(seen, 0);
  for (let at = 0; at < seen.length; at += BLOCK_SIZE) {
    const same = Buffer.compare(seen.subarray(at, at + BLOCK_SIZE), expected.subarray(at, at + BLOCK_SIZE)) === 0;
    assert.ok(same, `barrier ${barrier}, disk ${member.diskId}, block ${at / BLOCK_SIZE}`);
  }
}

async function seed(stream: SourceStream, source: ScriptedSource): Promise<void> {
  while (source.disks.some((disk) => disk.unsynced.size > 0))
    await stream.ship(source.cut({ sweepBlocks: 400, writes: 30 }));
}

async function comesTrue(what: string, holds: () => boolean): Promise<void> {
  for (let tries = 0; !holds(); tries++) {
    assert.ok(tries < 500, what);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

test("Every point of a random history over two disks and three connections equals the source at its cut", async (t) => {
  const made = await world(t, memoryStore(), { diskBlocks: [1200, 700], seed: 11 });
  const stream = await made.connect();
  await seed(stream, made.source);
  const results = [];
  for (let cycle = 0; cycle < 15; cycle++)
    results.push(await stream.ship(made.source.cut({ writes: cycle % 4 === 3 ? 0 : 12 })));
  assert.ok(results.every((result) => result.barrier));
  const barriers = await comparePoints(made, 10);
  // A cut that found nothing changed writes nothing: the barrier before stands for it.
  assert.ok(!barriers.includes(made.source.cycle) || results.at(-1)!.committed.length > 0);
  await comesTrue(
    "the progress shows the newest barrier",
    () => made.progress.at(-1)?.barrier === barriers[0] && made.progress.at(-1)?.state === "live",
  );
  assert.equal(made.progress[0]?.state, "seeding");
});

test("A point is restored to raw files, which carry their names only when whole", async (t) => {
  const made = await world(t, memoryStore(), { diskBlocks: [5000, 300], seed: 61 });
  const stream = await made.connect();
  await stream.ship(made.source.cut({ sweepBlocks: 5000 }));
  await stream.ship(made.source.cut({ writes: 30 }));
  const [point] = await listPoints(await groupOf(made));
  const folder = await mkdtemp(join(tmpdir(), "leeward-restore-"));
  t.after(() => rm(folder, { recursive: true }));
  const seen: number[] = [];
  const restored = await restorePoint({
    store: made.store,
    point: point!,
    folder,
    onProgress: ({ doneBytes }) => seen.push(doneBytes),
  });
  for (const disk of restored) {
    assert.equal(
      Buffer.compare(await readFile(disk.path), made.source.states.get(point!.barrier)!.get(disk.diskId)!),
      0,
      disk.diskId,
    );
  }
  assert.ok(seen.length > 2 && seen.some((bytes) => bytes === restored[0]!.dataBytes));
  await assert.rejects(restorePoint({ store: made.store, point: point!, folder }), (error) =>
    isFault(error, "REFUSED"),
  );
  assert.deepEqual((await readdir(folder)).sort(), ["disk-0.raw", "disk-1.raw"]);
});

test("The first clean cut of an idle machine is a point, and the next ones cost nothing", async (t) => {
  const objects = memoryStore();
  const made = await world(t, objects, { diskBlocks: [300], seed: 3 });
  const stream = await made.connect({ lanes: 0 });
  await stream.ship(made.source.cut({ sweepBlocks: 300 }));
  const first = await stream.ship(made.source.cut());
  assert.deepEqual([first.barrier, first.barrierNumber, first.committed.length], [true, 2, 0]);
  const count = objects.objects.size;
  const second = await stream.ship(made.source.cut());
  assert.deepEqual([second.barrier, second.barrierNumber], [true, 2]);
  assert.equal(objects.objects.size, count);
  await comesTrue("the quiet cut shows as current", () => made.progress.at(-1)?.currentAsOfMs === 1_800_000_003_000);
  await comparePoints(made, 1);
});

test("A cycle larger than a container goes through segments on a real S3 server", async (t) => {
  const server = await startVersitygw();
  t.after(() => server.stop());
  const objects = s3ObjectStore(
    { ...server, bucket: "leeward", region: "us-east-1" },
    { clock: systemClock, random: systemRandom },
  );
  t.after(() => objects.close());
  await objects.ensureBucket();
  const made = await world(t, objects, { diskBlocks: [40_000, 3_000], seed: 7 });
  const stream = await made.connect();
  await stream.ship(made.source.cut({ sweepBlocks: 40_000, writes: 200 }));
  await stream.ship(made.source.cut({ writes: 40 }));
  const keys: string[] = [];
  for await (const { key } of objects.list("site/disks/disk-0/segments/")) keys.push(key);
  assert.ok(keys.length >= 1, "the first cycle of the large disk has segments");
  await comparePoints(made, 1);
});

test("Sent again after a lost answer, a cycle is answered as before and written once", async (t) => {
  const objects = memoryStore();
  const made = await world(t, objects, { diskBlocks: [500, 500], seed: 5 });
  let stream = await made.connect();
  await seed(stream, made.source);
  const cut = made.source.cut({ writes: 10 });
  const before = await stream.ship(cut);
  assert.deepEqual(await stream.commit(cut), before);
  const commits = objects.objects.size;
  stream.close();
  stream = await made.connect();
  assert.equal(stream.opened.barrier, cut.cycle);
  assert.ok(stream.opened.disks.every((disk) => disk.cycle <= cut.cycle));
  assert.deepEqual(await stream.ship(cut), before);
  assert.equal(objects.objects.size, commits, "nothing was written for the repeat: not even a new epoch");
  await comparePoints(made, 1);
});

test("A mover that is replaced in the middle of cycles loses nothing that was acknowledged", async (t) => {
  const made = await world(t, memoryStore(), { diskBlocks: [600, 400], seed: 23 });
  let stream = await made.connect();
  await seed(stream, made.source);
  const acknowledged: number[] = [];
  let pending: Cut | undefined;
  for (let round = 0; round < 12; round++) {
    pending ??= made.source.cut({ writes: 8 });
    try {
      const committing = stream.ship(pending);
      committing.catch(() => undefined); // Awaited below.
      if (round % 3 === 1) {
        await new Promise((resolve) => setTimeout(resolve, made.source.random() * 12));
        await made.restartReceiver();
      }
      const result = await committing;
      if (result.barrierNumber === pending.cycle) acknowledged.push(pending.cycle);
      pending = undefined;
    } catch (error) {
      assert.ok(isFault(error, "PEER_UNREACHABLE"), String(error));
      stream.close();
      stream = await made.connect();
    }
  }
  assert.ok(acknowledged.length >= 6);
  const barriers = await comparePoints(made, acknowledged.length);
  for (const cycle of acknowledged) assert.ok(barriers.includes(cycle), `acknowledged cut ${cycle} is a point`);
});

test("A fence while cycles stream in ends the source with FENCED, and the newest point is complete", async (t) => {
  const made = await world(t, memoryStore(), { diskBlocks: [600, 400], seed: 31 });
  const stream = await made.connect();
  await seed(stream, made.source);
  const acknowledged: number[] = [];
  const streaming = (async () => {
    for (;;) {
      const cut = made.source.cut({ writes: 8 });
      const result = await stream.ship(cut);
      if (result.barrierNumber === cut.cycle) acknowledged.push(cut.cycle);
    }
  })();
  const ended = assert.rejects(streaming, (error) => isFault(error, "FENCED"));
  await comesTrue("some cycles are in", () => acknowledged.length > 4);
  const group = await groupOf(made);
  const fenced = await fenceGroup(group, {
    operation: "failover-1",
    activeSite: "secondary",
    disks: ["disk-0", "disk-1"],
    holder: "test",
  });
  await ended;
  assert.equal(fenced.groupEpoch, 2);
  assert.ok(fenced.newestPoint!.barrier >= acknowledged.at(-1)!, "the point has every acknowledged cut");
  await comparePoints(made, acknowledged.length);
  await comesTrue("the progress says fenced", () => made.progress.at(-1)?.state === "fenced");
  // The primary that comes back is refused, and told why.
  await assert.rejects(
    made.connect(),
    (error) => isFault(error, "FENCED") && /belongs to site "secondary"/.test(error.message),
  );
});

test("A store that is down is answered with STORE_UNAVAILABLE, and the cycle is committed once it is back", async (t) => {
  const objects = memoryStore();
  let down = false;
  const failing: ObjectStore = {
    ...objects,
    async create(key, body, options) {
      if (down) throw new Fault("STORE_AMBIGUOUS", "The store did not answer");
      return objects.create(key, body, options);
    },
    async get(key, options) {
      if (down) throw new Fault("STORE_UNAVAILABLE", "The store did not answer");
      return objects.get(key, options);
    },
    async head(key, options) {
      if (down) throw new Fault("STORE_UNAVAILABLE", "The store did not answer");
      return objects.head(key, options);
    },
    async *list(prefix, options) {
      if (down) throw new Fault("STORE_UNAVAILABLE", "The store did not answer");
      yield* objects.list(prefix, options);
    },
  };
  const made = await world(t, failing, { diskBlocks: [400], seed: 41, patienceMs: 600 });
  const stream = await made.connect();
  await seed(stream, made.source);
  down = true;
  const cut = made.source.cut({ writes: 10 });
  await stream.send(cut);
  await assert.rejects(
    stream.commit(cut),
    (error) => isFault(error, "STORE_UNAVAILABLE") || isFault(error, "STORE_AMBIGUOUS"),
  );
  await comesTrue("the progress names the fault", () => made.progress.at(-1)?.fault !== undefined);
  down = false;
  assert.equal((await stream.commit(cut)).barrierNumber, cut.cycle, "without sending the frames again");
  await comparePoints(made, 1);
});

test("A process server of another site is rejected", async (t) => {
  const made = await world(t, memoryStore(), { diskBlocks: [100], seed: 1 });
  await assert.rejects(made.connect({ site: "other" }), (error) => isFault(error, "PEER_REJECTED"));
});
