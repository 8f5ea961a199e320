/**
 * Composition root of `leeward rescue`: a machine with nothing but the bucket and the keys. No control, no Temporal, no Redis, and no state but
 * what is asked for.
 */
import { availableParallelism, tmpdir } from "node:os";
import { mkdtemp, rm, statfs } from "node:fs/promises";
import { extname, join, resolve } from "node:path";
import { Fault, isFault } from "#model/fault.ts";
import type { Log } from "#ports/log.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import type {
  RescueCommands,
  RescueExport,
  RescueListing,
  RescuePoint,
  RestoredDiskView,
  StoreChoice,
  TransferProgress,
} from "../cli/rescue-contract.ts";
import { diskShape } from "../data-mover/disk-shape.ts";
import { type OpenLanes, restorePoint } from "../data-mover/export-restore.ts";
import { openRescue, type Rescue, type RescuedGroup } from "../data-mover/rescue.ts";
import { startRestoreThread } from "../data-mover/restore-threads.ts";
import { createTransferRate } from "../data-mover/transfer-rate.ts";
import type { ExportDisk } from "../master-target/export-record.ts";
import { exportUrl } from "../master-target/export-supervisor.ts";
import { runExport } from "../master-target/running-export.ts";
import { readBootId } from "./mover-setup.ts";
import { openStoreContext, readHeldKeys, readStoreAccess, type StoreAccess } from "./store-access.ts";

export function createRescueCommands(stop: AbortSignal): Pick<RescueCommands, "list" | "export" | "restore"> {
  const log = createLog({ level: "warn", fields: { role: "rescue" } });
  return {
    list: (options) => withRescue(options, stop, log, (rescue, access) => list(rescue, access, options)),
    export: (options, serving) =>
      withRescue(options, stop, log, (rescue) => serve(rescue, options, { serving, log, stop })),
    restore: (options, onProgress) =>
      withRescue(options, stop, log, (rescue, access) => restore(rescue, access, { ...options, onProgress, stop })),
  };
}

async function withRescue<Result>(
  options: StoreChoice,
  stop: AbortSignal,
  log: Log,
  work: (rescue: Rescue, access: StoreAccess) => Promise<Result>,
): Promise<Result> {
  const access = readStoreAccess(options);
  const keys = await readHeldKeys(access);
  if (keys === undefined) {
    throw new Fault("CONFIG_INVALID", "No key file is given", {
      hint: "Give --keys FILE, or keysFile in the store's file: the key file of the master target, or its copy. `leeward store check` works without.",
    });
  }
  const context = openStoreContext(access, stop);
  try {
    const rescue = await openRescue(context, keys, log);
    if (rescue.storeFault)
      log.warn("The store's own record is damaged; the keys prove who it is", { fault: rescue.storeFault.toJSON() });
    return await work(rescue, access);
  } catch (error) {
    if (stop.aborted && !isFault(error))
      throw new Fault("INTERRUPTED", "Interrupted", { hint: "A restore goes on where it stopped.", cause: error });
    throw error;
  } finally {
    await context.store.close();
  }
}

async function list(
  rescue: Rescue,
  { settings, root }: StoreAccess,
  options: { readonly group?: string; readonly limit?: number },
): Promise<RescueListing> {
  const wanted = options.group === undefined ? await rescue.groups() : [(await rescue.group(options.group)).found];
  const groups: RescueListing["groups"][number][] = [];
  for (const found of wanted) {
    const group = await rescue.open(found);
    const branches = await group.branches();
    const limit = options.limit === undefined ? {} : { limit: options.limit };
    const points = await group.points(limit);
    groups.push({
      id: found.groupId,
      name: found.groupName,
      activeSite: group.activeSite ?? null,
      activeBranch: group.activeBranch ?? null,
      disks: found.disks.map((disk) => ({
        id: disk.diskId,
        machine: disk.machine,
        ...(group.closed.has(disk.diskId) ? { fault: group.closed.get(disk.diskId)!.toJSON() } : {}),
      })),
      branches: branchesOf(branches),
      points: points.map(pointView),
    });
  }
  return { storeId: rescue.storeId, endpoint: settings.endpoint, bucket: settings.bucket, root, groups };
}

/** The lines of history over all disks of a group; what one disk's damaged record does not say, another's does. */
function branchesOf(disks: Awaited<ReturnType<RescuedGroup["branches"]>>): RescueListing["groups"][number]["branches"] {
  const byName = new Map<string, RescueListing["groups"][number]["branches"][number]>();
  for (const { branch, origin } of disks.flatMap((disk) => disk.branches)) {
    if (byName.get(branch)?.reason != null) continue;
    byName.set(branch, {
      branch,
      reason: origin?.reason ?? null,
      parent: origin?.parent?.branch ?? null,
      createdAt: origin === undefined ? null : new Date(origin.createdAtMs).toISOString(),
    });
  }
  return [...byName.values()];
}

function pointView(point: RecoveryPoint): RescuePoint {
  return {
    id: point.id,
    cutAt: new Date(point.cutAtMs).toISOString(),
    kind: point.kind,
    ...(point.name === undefined ? {} : { name: point.name }),
    consistency: point.consistency,
    reasonKept: point.reasonKept,
    branch: [...new Set(point.members.map(({ branch }) => branch))].join(","),
    disks: point.members.map(({ diskId }) => diskId),
  };
}

async function restore(
  rescue: Rescue,
  { settings }: StoreAccess,
  options: Parameters<RescueCommands["restore"]>[0] & {
    readonly onProgress: (progress: TransferProgress) => void;
    readonly stop: AbortSignal;
  },
): Promise<{ readonly point: RescuePoint; readonly disks: readonly RestoredDiskView[] }> {
  const group = await rescue.group(options.group);
  const point = await group.select(options.point, options.branch);
  const members = chosen(group, point, options.disk);
  const lanes = Math.max(1, Math.min(4, availableParallelism()));
  const openLanes: OpenLanes = async (context, target) =>
    Array.from({ length: lanes }, () => startRestoreThread(threadEntry(), settings, context, target));
  const meter = transferMeter(options.onProgress);
  const disks = await restorePoint({
    store: rescue.store,
    point: { id: point.id, members },
    folder: resolve(options.to),
    overwrite: options.yes,
    openLanes,
    signal: options.stop,
    onProgress: meter,
  });
  return { point: pointView(point), disks: disks.map(({ diskId, ...disk }) => ({ id: diskId, ...disk })) };
}

/** The program beside this one, as source or as built. */
function threadEntry(): URL {
  return new URL(`./restore-thread${extname(import.meta.filename)}`, import.meta.url);
}

/** Throws NOT_FOUND for a disk that the point does not have, KEY_… for one that cannot be opened. */
function chosen(group: RescuedGroup, point: RecoveryPoint, wanted: readonly string[]): RecoveryPoint["members"] {
  const unknown = wanted.find((diskId) => !point.members.some((member) => member.diskId === diskId));
  if (unknown !== undefined) {
    throw new Fault("NOT_FOUND", `Point "${point.id}" has no disk "${unknown}"`, {
      hint: `It has: ${point.members.map(({ diskId }) => `"${diskId}"`).join(", ")}.`,
    });
  }
  const members = wanted.length === 0 ? point.members : point.members.filter(({ diskId }) => wanted.includes(diskId));
  const open = point.members.filter(({ diskId }) => !group.closed.has(diskId));
  for (const { diskId } of members) {
    const fault = group.closed.get(diskId);
    if (fault === undefined) continue;
    throw new Fault(fault.code, fault.message, {
      details: fault.details,
      hint: `${fault.hint ?? ""} The others can be had with ${open.map((member) => `--disk ${member.diskId}`).join(" ")}.`.trim(),
      cause: fault,
    });
  }
  return members;
}

/** Rate over the last seconds, and the time that what is left of this disk takes at it. */
export function transferMeter(
  onProgress: (progress: TransferProgress) => void,
): (seen: { readonly diskId: string; readonly doneBytes: number; readonly dataBytes: number }) => void {
  const rate = createTransferRate();
  let diskId: string | undefined;
  let before = 0;
  return (seen) => {
    const now = systemClock.monotonic();
    // What an earlier attempt did came with the first report, and took no time now.
    if (seen.diskId === diskId && seen.doneBytes > before) rate.add(seen.doneBytes - before, now);
    diskId = seen.diskId;
    before = seen.doneBytes;
    const bytesPerSecond = rate.perSecond(now);
    const left = seen.dataBytes - seen.doneBytes;
    const etaMs = left === 0 ? 0 : bytesPerSecond === 0 ? null : Math.round((left / bytesPerSecond) * 1000);
    onProgress({ disk: seen.diskId, doneBytes: seen.doneBytes, totalBytes: seen.dataBytes, bytesPerSecond, etaMs });
  };
}

async function serve(
  rescue: Rescue,
  options: Parameters<RescueCommands["export"]>[0],
  to: { readonly serving: (opened: RescueExport) => void; readonly log: Log; readonly stop: AbortSignal },
): Promise<void> {
  const group = await rescue.group(options.group);
  const point = await group.select(options.point, options.branch);
  const members = chosen(group, point, options.disk);
  const parent = options.scratch === undefined ? tmpdir() : resolve(options.scratch);
  const folder = await mkdtemp(join(parent, "leeward-rescue-"));
  try {
    const disks: ExportDisk[] = [];
    for (const [index, member] of members.entries()) {
      const { diskId, branch, seq } = member;
      const { context } = await rescue.store.openDisk({ diskId, sizeBytes: 0, sectorBytes: 512 });
      const machine = group.found.disks.find((disk) => disk.diskId === diskId)?.machine ?? "";
      disks.push({
        diskId,
        machine,
        ...(await diskShape(context, { branch, seq })),
        member,
        socket: join(folder, `${index}.sock`),
      });
    }
    const { bavail, bsize } = await statfs(folder);
    const running = await runExport({
      record: {
        operationId: `rescue-${process.pid}`,
        groupId: group.found.groupId,
        pointId: point.id,
        mode: options.writable ? "throw-away" : "read-only",
        disks,
        closed: false,
      },
      folder,
      site: "rescue",
      store: rescue.store,
      // A full disk is told as OVERLAY_FULL before it is one.
      overlayBytesMax: Math.max(1 << 20, Math.floor(bavail * bsize * 0.9)),
      bootId: readBootId(),
      clock: systemClock,
      log: to.log,
      onChange: () => undefined,
    });
    try {
      const urls = disks.map(({ diskId, socket, sizeBytes }) => ({
        id: diskId,
        sizeBytes,
        url: exportUrl(diskId, socket),
      }));
      to.serving({ point: pointView(point), writable: options.writable, disks: urls });
      await stopped(to.stop);
    } finally {
      await running.close({ commit: false });
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** A listener alone would not keep the program running; the sockets of the export do. */
async function stopped(stop: AbortSignal): Promise<void> {
  if (!stop.aborted) await new Promise<void>((done) => stop.addEventListener("abort", () => done(), { once: true }));
}
