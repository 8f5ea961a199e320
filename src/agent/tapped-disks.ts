/**
 * The disks of this machine that stand behind a tap: which image belongs to which group, and that each is being served.
 *
 * An image belongs to one disk of one group. Only a group that control has stopped, or does not name any more, can lose it to another. Where the
 * machine attaches it stays the same then: a running machine does not notice that its protection was ended and begun anew.
 */
import { createHash } from "node:crypto";
import { mkdirSync, statSync } from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { join, resolve } from "node:path";
import { Fault, isFault } from "#model/fault.ts";
import type { Log } from "#ports/log.ts";
import type { DiskSpec } from "#ports/replication.ts";
import type { GroupTask } from "#ports/source-link.ts";
import type { TapClient } from "../capture/tap/tap-client.ts";
import type { TapDiskConfig, TapDiskStatus } from "../capture/tap/tap-protocol.ts";
import type { BookedDisk, DiskBook } from "./disk-book.ts";
import { ensureImage, imageBytes, imageOf, SECTOR_BYTES } from "./disk-source.ts";

export interface TappedDisks {
  /** All booked disks are in `tap`. Faults of single disks are remembered, not thrown. */
  addAll(tap: TapClient): Promise<void>;
  /** Taps what the tasks name and is not tapped yet; asks for the tap only if there is such a disk. Faults of single disks are remembered. */
  ensure(tap: () => Promise<TapClient>, tasks: readonly GroupTask[]): Promise<void>;
  /** Size of a source. Throws USAGE, IMAGE_MISSING (of a `replica:NAME` that no order has made yet, too), IMAGE_INVALID, and DISK_ALREADY_PROTECTED when another group has it. */
  inspect(
    source: string,
    groupId: string,
  ): { readonly source: string; readonly sizeBytes: number; readonly sectorBytes: number };
  /** The group's disks; those that cannot be tapped come with a fault and no status. */
  ofGroup(groupId: string, statuses: readonly TapDiskStatus[]): readonly TappedDisk[];
  readonly groups: readonly string[];
  /** What a tap is started with. */
  tapConfigs(): readonly TapDiskConfig[];
}

export interface TappedDisk {
  readonly groupId: string;
  readonly spec: { readonly diskId: string; readonly source: string };
  readonly status: TapDiskStatus | undefined;
  readonly fault: Fault | undefined;
}

/** Longest path of a unix socket, with its closing zero byte. */
const SOCKET_PATH_BYTES_MAX = 107;

export function createTappedDisks(options: {
  readonly book: DiskBook;
  readonly stateDir: string;
  readonly log: Log;
}): TappedDisks {
  const { book, stateDir, log } = options;
  const faults = new Map<string, { readonly groupId: string; readonly spec: DiskSpec; readonly fault: Fault }>();
  let tasks: readonly GroupTask[] = [];

  return {
    async addAll(tap) {
      for (const disk of book.disks) {
        await attempt(disk.groupId, disk, async () => void (await tap.addDisk(tapConfig(disk))));
      }
    },
    async ensure(tap, next) {
      tasks = next;
      for (const key of [...faults.keys()])
        if (!tasks.some((task) => task.disks.some((disk) => disk.diskId === key))) faults.delete(key);
      for (const task of tasks) {
        if (task.state === "stopped" && !book.disks.some((disk) => disk.groupId === task.groupId)) continue; // Nothing to keep serving.
        for (const spec of task.disks)
          await attempt(task.groupId, spec, async () => ensureDisk(await tap(), task.groupId, spec));
      }
    },
    inspect(source, groupId) {
      const image = imageOf(source, stateDir);
      const sizeBytes = imageBytes(image);
      refuseForeign(image, groupId);
      return { source, sizeBytes, sectorBytes: SECTOR_BYTES };
    },
    ofGroup(groupId, statuses) {
      const booked = book.disks.filter((disk) => disk.groupId === groupId && !faults.has(disk.diskId));
      return [
        ...booked.map((disk) => ({
          groupId,
          spec: { diskId: disk.diskId, source: disk.source },
          status: statuses.find((status) => status.diskId === disk.diskId),
          fault: undefined,
        })),
        ...[...faults.values()]
          .filter((failed) => failed.groupId === groupId)
          .map(({ spec, fault }) => ({
            groupId,
            spec: { diskId: spec.diskId, source: spec.source },
            status: undefined,
            fault,
          })),
      ];
    },
    tapConfigs: () => book.disks.map(tapConfig),
    get groups() {
      return [...new Set([...book.disks.map((disk) => disk.groupId), ...tasks.map((task) => task.groupId)])];
    },
  };

  async function attempt(groupId: string, spec: DiskSpec, work: () => Promise<void>): Promise<void> {
    try {
      await work();
      faults.delete(spec.diskId);
    } catch (error) {
      if (!isFault(error) || error.code === "PEER_UNREACHABLE") throw error; // The tap is gone, the disk is not to blame.
      log.error("A disk cannot be tapped", { groupId, diskId: spec.diskId, fault: error });
      faults.set(spec.diskId, { groupId, spec, fault: error });
    }
  }

  async function ensureDisk(tap: TapClient, groupId: string, spec: DiskSpec): Promise<void> {
    const booked = book.disks.find((disk) => disk.diskId === spec.diskId);
    if (booked === undefined) ensureImage(spec, stateDir);
    const image = imageOf(spec.source, stateDir);
    if (booked !== undefined && isSameFile(booked.image, image) && booked.groupId === groupId) {
      await tap.addDisk(tapConfig(booked));
      return;
    }
    if (booked !== undefined) {
      throw new Fault(
        "REFUSED",
        `Disk "${spec.diskId}" stands for "${booked.image}" of group "${booked.groupId}", expected "${image}" of "${groupId}"`,
        {
          hint: "Protect the other image as a disk of its own",
        },
      );
    }
    imageBytes(image);
    const former = refuseForeign(image, groupId);
    const disk: BookedDisk = {
      groupId,
      diskId: spec.diskId,
      image: former?.image ?? image, // As the tap has it open.
      source: spec.source,
      socket: former?.socket ?? socketPath(spec.diskId),
      ...(former === undefined ? {} : { name: former.name ?? former.diskId }),
    };
    const others = book.disks.filter((other) => other !== former);
    book.write([...others, disk]);
    try {
      await tap.addDisk(tapConfig(disk));
    } catch (error) {
      // Never served, so no machine hangs on it; one that took another's place gives it back.
      if (!isFault(error, "PEER_UNREACHABLE")) book.write(former === undefined ? others : [...others, former]);
      throw error;
    }
    log.info("Disk tapped", { groupId, diskId: disk.diskId, image });
  }

  /** Who has the image, if he may lose it. Throws DISK_ALREADY_PROTECTED if not. */
  function refuseForeign(image: string, groupId: string): BookedDisk | undefined {
    const owner = book.disks.find((disk) => isSameFile(disk.image, image));
    if (owner === undefined) return undefined;
    const task = tasks.find((one) => one.groupId === owner.groupId);
    if (owner.groupId === groupId) {
      // Left over from before the group was unprotected: it is protected again under a new disk id.
      return task?.disks.some((disk) => disk.diskId === owner.diskId) === true ? undefined : owner;
    }
    if (task === undefined || task.state === "stopped") return owner;
    throw new Fault(
      "DISK_ALREADY_PROTECTED",
      `"${image}" is disk "${owner.diskId}" of group "${owner.groupId}", expected a disk that no group has`,
      {
        details: { image, groupId: owner.groupId, diskId: owner.diskId },
        hint: `Unprotect group "${owner.groupId}" first, or leave this disk out`,
      },
    );
  }

  function tapConfig(disk: BookedDisk): TapDiskConfig {
    const { diskId, image, socket, name } = disk;
    return { diskId, image, socket, stateDir: join(stateDir, "intent"), ...(name === undefined ? {} : { name }) };
  }

  function socketPath(diskId: string): string {
    return shortPath(join(stateDir, "taps"), `${diskId}.sock`);
  }
}

/**
 * A path for a unix socket: in `folder` if it fits, else in a folder of the same meaning below the temporary one, always the same for the same
 * `folder`. The folder is made, for this user alone: the socket is the permission.
 */
export function shortPath(folder: string, name: string): string {
  const wanted = join(resolve(folder), name);
  const digest = createHash("sha256").update(resolve(folder)).digest("hex").slice(0, 16);
  const used =
    Buffer.byteLength(wanted) <= SOCKET_PATH_BYTES_MAX
      ? wanted
      : join(tmpdir(), `leeward-${userInfo().uid}-${digest}`, name);
  mkdirSync(join(used, ".."), { recursive: true, mode: 0o700 });
  return used;
}

/** Also under two names: hard links, bind mounts. */
function isSameFile(one: string, other: string): boolean {
  if (one === other) return true;
  const [a, b] = [one, other].map((path) => statSync(path, { throwIfNoEntry: false }));
  return a !== undefined && b !== undefined && a.dev === b.dev && a.ino === b.ino;
}
