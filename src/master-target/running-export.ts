/**
 * An export as its own process runs it: every disk of a recovery point as an NBD device.
 *
 * ```
 *   NBD ──► image                                                     read-only
 *   NBD ──► overlay ──► image                                         throw-away
 *   NBD ──► change tracking ──► overlay ──► image,  cuts ──► branch    read-write
 * ```
 *
 * It opens the same way after every restart: the sockets have the same names, the overlays are found again, and all that they hold
 * is committed once more, because nobody knows which of it was.
 */
import { mkdir, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { Fault, isFault } from "#model/fault.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import type { Clock } from "#ports/clock.ts";
import type { Log } from "#ports/log.ts";
import type { TakenPoint } from "#ports/master-target.ts";
import type { PointMember } from "#ports/replication.ts";
import { createCaptureDevice, type CaptureDevice } from "../capture/tap/capture-device.ts";
import { startAnchoring } from "../data-mover/anchoring.ts";
import { NO_COMMIT } from "../data-mover/branch-reader.ts";
import { containerBuffers } from "../data-mover/container-buffers.ts";
import { startExportCommitter, type ExportCommitter } from "../data-mover/export-committer.ts";
import { patientDevice } from "../data-mover/export-patience.ts";
import { imageDevice, openImage } from "../data-mover/image.ts";
import { mapAccess } from "../data-mover/map-access.ts";
import { moverDisk } from "../data-mover/mover-disk.ts";
import { moverGroup } from "../data-mover/mover-group.ts";
import type { MoverStore, OpenedDisk } from "../data-mover/mover-store.ts";
import { openOverlay, overlayBudget, type Overlay } from "../data-mover/overlay.ts";
import { SEGMENT_PUTS_MAX, slots } from "../data-mover/segment-upload.ts";
import { serveNbd, type NbdServer } from "../nbd/server.ts";
import type { ExportDisk, ExportRecord } from "./export-record.ts";
import { beginTaking, type PointTaking, type TakenDisk } from "./point-taking.ts";
import { lockFolder } from "./process-lock.ts";

export interface ExportFigures {
  readonly barrier: number;
  readonly barrierCutAtMs: number;
  readonly overlayBytes: number;
  readonly writtenBytes: number;
  readonly fault?: { readonly code: string; readonly message: string; readonly hint?: string };
}

export interface RunningExport {
  figures(): ExportFigures;
  /** The disks of `members` as at another point; see the port. Begins, or looks at what has begun for `requestId`. */
  takePoint(request: {
    readonly requestId: string;
    readonly pointId: string;
    readonly members: readonly PointMember[];
    readonly waitMs: number;
  }): Promise<TakenPoint>;
  /** Serve no more, for good. With `commit` the branch gets what it lacks first; throws what the store said, and can then be tried again. */
  close(options: { readonly commit: boolean }): Promise<void>;
}

export interface ExportEnvironment {
  readonly record: ExportRecord;
  /** Of the overlay files. */
  readonly folder: string;
  readonly site: string;
  readonly store: MoverStore;
  readonly overlayBytesMax: number;
  /** `/proc/sys/kernel/random/boot_id`. */
  readonly bootId: string;
  readonly commitIntervalMs?: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly onChange: () => void;
}

interface ServedDisk {
  readonly disk: ExportDisk;
  readonly opened: OpenedDisk;
  readonly device: BlockDevice;
  readonly overlay: Overlay | undefined;
  readonly capture: CaptureDevice | undefined;
  readonly server: NbdServer;
}

const LOCK_WAIT_MS = 15_000;

/** Throws OBJECT_CORRUPT, CHAIN_BROKEN, KEY_…, STORE_…, DISK_FULL, REFUSED (another process serves it). */
export async function runExport(environment: ExportEnvironment): Promise<RunningExport> {
  const { record, folder, clock, log } = environment;
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const lock = await lockFolder(folder, { clock, waitMs: LOCK_WAIT_MS });
  const budget = overlayBudget(environment.overlayBytesMax);
  const served: ServedDisk[] = [];
  let committer: ExportCommitter | undefined;

  const openDisk = async (disk: ExportDisk): Promise<ServedDisk> => {
    const opened = await environment.store.openDisk(disk);
    const image = await openMember(opened, disk, { clock, log });
    const overlay =
      record.mode === "read-only"
        ? undefined
        : openOverlay(image, { folder, name: disk.diskId, budget, bootId: environment.bootId });
    let capture: CaptureDevice | undefined;
    if (overlay && record.mode === "read-write") {
      const runs = [...overlay.presentRuns()].map(({ block, blocks }) => ({ start: block, count: blocks }));
      capture = createCaptureDevice({ device: overlay, clock, unsynced: { runs, reason: "the export was restarted" } });
    }
    const device = capture ?? overlay ?? image;
    await mkdir(dirname(disk.socket), { recursive: true, mode: 0o700 });
    await rm(disk.socket, { force: true }); // Of a process that was killed; we hold the lock, so nobody listens on it.
    const exports = {
      find: (name: string) => (name === disk.diskId || name === "" ? device : undefined),
      names: () => [disk.diskId],
    };
    const server = await serveNbd({ exports, listen: { path: disk.socket }, log });
    return { disk, opened, device, overlay, capture, server };
  };

  const closeAll = async (): Promise<void> => {
    await committer?.stop();
    await Promise.all(served.map(({ server }) => server.close()));
    for (const { capture, overlay } of served) await (capture ? capture.stop() : overlay?.close());
    await lock.release();
  };

  try {
    // Side by side: a machine waits for the slowest disk, not for the sum.
    const opening = await Promise.allSettled(record.disks.map(openDisk));
    for (const one of opening) if (one.status === "fulfilled") served.push(one.value);
    for (const one of opening) if (one.status === "rejected") throw one.reason;
    if (record.mode === "read-write") committer = await startCommitting(environment, served);
  } catch (error) {
    await closeAll();
    throw error;
  }

  const figuresNow = (): ExportFigures => ({
    barrier: committer?.barrier ?? 0,
    barrierCutAtMs: committer?.barrierCutAtMs ?? 0,
    overlayBytes: served.reduce((sum, { overlay }) => sum + (overlay?.allocatedBytes() ?? 0), 0),
    writtenBytes: served.reduce((sum, { capture }) => sum + (capture?.numbers().writtenBytes ?? 0), 0),
    ...(committer?.fault === undefined ? {} : { fault: faultText(committer.fault) }),
  });
  let last: ExportFigures | undefined;
  /** One at a time, by its request. */
  let taking: { readonly requestId: string; readonly begun: Promise<PointTaking> } | undefined;

  const beginTakingPoint = async (pointId: string, members: readonly PointMember[]): Promise<PointTaking> => {
    const wanted = served.flatMap((one) => {
      const member = members.find(({ diskId }) => diskId === one.disk.diskId);
      return member === undefined ? [] : [{ ...one, member }];
    });
    const assertFree = (): void => {
      const attached = wanted.find(({ server }) => server.sessions().length > 0);
      if (attached !== undefined)
        throw new Fault(
          "REFUSED",
          `Somebody is attached to disk "${attached.disk.diskId}", which is to take point "${pointId}"`,
          {
            details: { diskId: attached.disk.diskId },
            hint: "Power its machine off, then repeat the command.",
          },
        );
    };
    assertFree();
    const disks: TakenDisk[] = [];
    for (const { opened, disk, device, member } of wanted)
      disks.push({ device, image: await openMember(opened, { ...disk, member }, { clock, log }) });
    return beginTaking(disks, assertFree);
  };

  return {
    figures: () => last ?? figuresNow(),
    async takePoint({ requestId, pointId, members, waitMs }) {
      // Who asked for another point has heard how that ended, or asks for this one now.
      while (taking !== undefined && taking.requestId !== requestId) {
        const other = taking;
        await other.begun.then(({ ended }) => ended).catch(() => undefined);
        if (taking === other) taking = undefined;
      }
      // Known before it has begun: an impatient repeat finds it.
      const mine = (taking ??= { requestId, begun: beginTakingPoint(pointId, members) });
      const patience = new AbortController();
      const waited = clock.sleep(waitMs, patience.signal).catch(() => undefined); // Ended by us, below.
      let work: PointTaking;
      try {
        work = await mine.begun;
        await Promise.race([work.ended, waited]);
      } catch (error) {
        if (taking === mine) taking = undefined; // Asked again it begins anew.
        throw error;
      } finally {
        patience.abort();
      }
      return { ...work.seen };
    },
    async close({ commit }) {
      if (last) return;
      await Promise.all(served.map(({ server }) => server.close()));
      if (commit) await committer?.commitAll();
      last = figuresNow(); // The overlays cannot be asked once they are closed.
      await closeAll();
    },
  };
}

/** The disk at the point; a disk that had no commit by then is all zeroes. */
async function openMember(
  opened: OpenedDisk,
  disk: ExportDisk,
  deps: { readonly clock: Clock; readonly log: Log },
): Promise<BlockDevice> {
  const { branch, seq, commitHash } = disk.member;
  try {
    const image = await openImage(opened.context, {
      branch,
      seq,
      commitHash,
      keyring: opened.keyring,
      storeId: opened.storeId,
      log: deps.log,
    });
    if (image.sizeBytes === disk.sizeBytes) return patientDevice(imageDevice(image), deps);
    throw new Fault(
      "REFUSED",
      `Disk "${disk.diskId}" has ${image.sizeBytes} bytes at this point, and ${disk.sizeBytes} in its group's record`,
    );
  } catch (error) {
    if (isFault(error, "NO_POINT") && commitHash === NO_COMMIT) return zeroDevice(disk.sizeBytes);
    throw error;
  }
}

function zeroDevice(sizeBytes: number): BlockDevice {
  const refuse = (): never => {
    throw new RangeError("An image is read only");
  };
  return {
    sizeBytes,
    preferredBlockBytes: BLOCK_SIZE,
    readOnly: true,
    read: (target) => void target.fill(0),
    write: refuse,
    zero: refuse,
    trim: refuse,
    flush: () => undefined,
    status: (_, length) => [{ length, hole: true, zero: true }],
    close: () => Promise.resolve(),
  };
}

async function startCommitting(
  environment: ExportEnvironment,
  served: readonly ServedDisk[],
): Promise<ExportCommitter> {
  const { record, site, store, clock, log } = environment;
  if (record.branch === undefined || record.groupEpoch === undefined)
    throw new RangeError("A read-write export has a branch");
  const buffers = containerBuffers();
  const uploads = slots(SEGMENT_PUTS_MAX);
  const turns = slots(1);
  const holder = `${site}/export/${process.pid}`;
  const onTrouble = (fault: Fault): void => log.warn("The store refused or failed", { fault: fault.toJSON() });
  const disks = new Map(
    served.map(({ disk, opened }) => {
      const anchoring = startAnchoring(mapAccess(opened, log), { turns });
      return [disk.diskId, moverDisk(opened, { buffers, uploads, holder, onTrouble, anchoring })];
    }),
  );
  const group = moverGroup(
    { groupId: record.groupId, sourceSite: site },
    {
      storeId: await store.storeId(),
      context: await store.group(record.groupId, [...disks.keys()]),
      disks,
      log,
      onProgress: environment.onChange,
      newStreamId: () => Buffer.from(store.context.random.bytes(12)).toString("hex"),
      patienceMs: 20_000,
    },
  );
  return startExportCommitter({
    site,
    branch: record.branch,
    groupId: record.groupId,
    groupEpoch: record.groupEpoch,
    group,
    disks: served.flatMap(({ disk, capture }) => (capture ? [{ diskId: disk.diskId, capture }] : [])),
    bootId: environment.bootId,
    clock,
    log,
    ...(environment.commitIntervalMs === undefined ? {} : { intervalMs: environment.commitIntervalMs }),
    onChange: environment.onChange,
  });
}

function faultText(fault: Fault): NonNullable<ExportFigures["fault"]> {
  return { code: fault.code, message: fault.message, ...(fault.hint === undefined ? {} : { hint: fault.hint }) };
}
