/** A target site for tests of the source: a store in memory, its mover with real links, and whoever reads the points. */
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import type { StoreContext } from "../../src/data-mover/disk-context.ts";
import { createDisk } from "../../src/data-mover/disk-moves.ts";
import { claimGroupEpoch } from "../../src/data-mover/group-fence.ts";
import { openImage } from "../../src/data-mover/image.ts";
import { ensureStoreRecord, openMoverStore, type OpenedDisk } from "../../src/data-mover/mover-store.ts";
import { listPoints } from "../../src/data-mover/points.ts";
import { startReceiver, type Receiver } from "../../src/data-mover/receiver.ts";
import type { GroupContext } from "../../src/data-mover/barriers.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import type { GroupProgress, RecoveryPoint } from "#ports/replication.ts";
import type { TestAuthority } from "./credentials.ts";
import { testLog } from "./source-site.ts";

export interface MoverTarget {
  /** The same over restarts. */
  readonly port: number;
  readonly progress: GroupProgress | undefined;
  restart(): Promise<void>;
  /** As another process sees the store now, keys too. */
  reader(): Promise<{ readonly group: GroupContext; readonly opened: readonly OpenedDisk[] }>;
  /** Oldest first. */
  points(): Promise<readonly RecoveryPoint[]>;
  /** All disks as of a point. */
  read(point: RecoveryPoint): Promise<readonly Buffer[]>;
  close(): Promise<void>;
}

/** Prepares one group "group" whose disks are `disk-0`, `disk-1`, … of these sizes, and receives it. */
export async function startMoverTarget(options: {
  readonly authority: TestAuthority;
  readonly store: ObjectStore;
  readonly diskBytes: readonly number[];
}): Promise<MoverTarget> {
  const context: StoreContext = {
    store: options.store,
    root: "site",
    clock: systemClock,
    random: systemRandom,
    retry: { attempts: 6, firstMs: 10, mostMs: 100 },
  };
  await ensureStoreRecord(context);
  const keys = (diskId: string): Uint8Array => new Uint8Array(32).fill(diskId.charCodeAt(5));
  const shapes = options.diskBytes.map((sizeBytes, index) => ({
    diskId: `disk-${index}`,
    sizeBytes,
    sectorBytes: 512,
  }));
  const diskIds = shapes.map(({ diskId }) => diskId);
  const target = openMoverStore(context, { keys });
  for (const shape of shapes) await target.openDisk(shape, { create: true });
  const group = await target.group("group", diskIds);
  const move = { operation: "prepare", activeSite: "primary", holder: "test" };
  await claimGroupEpoch(group, { ...move, disks: diskIds, branch: "root" });
  for (const diskId of diskIds) await createDisk(group.disk(diskId), { ...move, groupEpoch: 1 });

  const link = await options.authority.link("secondary", "master-target", "mt");
  let port = 0;
  let receiver: Receiver | undefined;
  let progress: GroupProgress | undefined;
  const start = async (): Promise<void> => {
    receiver = await startReceiver({
      link,
      listen: { host: "127.0.0.1", port },
      store: openMoverStore(context, { keys }),
      log: testLog.child({ role: "mover" }),
      onProgress: (now) => (progress = now),
    });
    port = receiver.address.port;
    receiver.putGroup({ groupId: "group", sourceSite: "primary", disks: shapes });
  };
  await start();

  const reader: MoverTarget["reader"] = async () => {
    const fresh = openMoverStore(context, { keys });
    const opened = await Promise.all(shapes.map((shape) => fresh.openDisk(shape)));
    return { opened, group: await fresh.group("group", diskIds) };
  };
  return {
    get port() {
      return port;
    },
    get progress() {
      return progress;
    },
    async restart() {
      await receiver?.close();
      await start();
    },
    reader,
    points: async () => (await listPoints((await reader()).group)).toSorted((a, b) => a.barrier - b.barrier),
    async read(point) {
      const { opened } = await reader();
      return Promise.all(
        diskIds.map(async (diskId, index) => {
          const member = point.members.find((one) => one.diskId === diskId)!;
          const disk = opened[index]!;
          const image = await openImage(disk.context, { ...member, keyring: disk.keyring, storeId: disk.storeId });
          const bytes = Buffer.alloc(image.sizeBytes);
          await image.read(bytes, 0);
          return bytes;
        }),
      );
    },
    close: async () => receiver?.close(),
  };
}
