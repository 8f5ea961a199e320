/**
 * A recovery point as raw image files: for who has the bucket and the keys, and nothing else.
 *
 * Every block is verified on its way (seal and digest). The store is read container by container (restore-plan.ts), by as many lanes as the
 * caller gives; what was done before a kill is not done again (restored-file.ts). Zeroes stay holes.
 */
import { createHash } from "node:crypto";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { isFault } from "#model/fault.ts";
import { BLOCK_SIZE, blockCount } from "#model/units.ts";
import type { PointMember, RecoveryPoint } from "#ports/replication.ts";
import { NO_COMMIT } from "./branch-reader.ts";
import { diskShape } from "./disk-shape.ts";
import { openImage, type DiskImage } from "./image.ts";
import type { MoverStore, OpenedDisk } from "./mover-store.ts";
import { asDiskFull, openRestoredFile, type RestoredFile } from "./restored-file.ts";
import { type JobDone, type LaneContext, type LaneTarget, runJob } from "./restore-lane.ts";
import { planRestore, WINDOW_BLOCKS, type RestoreJob } from "./restore-plan.ts";

export interface RestoredDisk {
  readonly diskId: string;
  readonly path: string;
  readonly sizeBytes: number;
  /** Bytes that are not zero by the extent map. */
  readonly dataBytes: number;
}

/** Does jobs of one disk, several at a time. Jobs of one lane share its thread. */
export interface RestoreLane {
  run(job: RestoreJob, signal: AbortSignal): Promise<JobDone>;
  close(): Promise<void>;
}

export type OpenLanes = (context: LaneContext, target: LaneTarget) => Promise<RestoreLane[]>;

export interface RestoreProgress {
  readonly diskId: string;
  /** Of `dataBytes`; what an earlier attempt did is counted. */
  readonly doneBytes: number;
  readonly dataBytes: number;
  readonly sizeBytes: number;
}

/** Jobs that a lane has at a time: one is fetched while another is unpacked. */
const JOBS_OF_LANE = 2;
const CHECKPOINT_MS = 5_000;

export interface RestoreRequest {
  readonly store: MoverStore;
  readonly point: Pick<RecoveryPoint, "id" | "members">;
  readonly folder: string;
  readonly overwrite?: boolean;
  /** Default: one lane in this thread. */
  readonly openLanes?: OpenLanes;
  readonly onProgress?: (progress: RestoreProgress) => void;
  readonly signal?: AbortSignal;
  /** How often what is done becomes durable; default 5 s. */
  readonly checkpointMs?: number;
}

/**
 * Write every disk of `point` to `{folder}/{diskId}.raw`; a file that is there is REFUSED without `overwrite`.
 * Throws OBJECT_CORRUPT, OBJECT_MISSING, CHAIN_BROKEN, KEY_…, STORE_…, DISK_FULL, what `signal` aborts with.
 */
export async function restorePoint(request: RestoreRequest): Promise<RestoredDisk[]> {
  const { point, folder } = request;
  const files: RestoredFile[] = [];
  const restored: RestoredDisk[] = [];
  for (const member of point.members) {
    const path = join(folder, `${member.diskId}.raw`);
    try {
      const { disk, file } = await restoreDisk(request, member, path);
      restored.push(disk);
      files.push(file);
    } catch (error) {
      throw asDiskFull(error, path);
    }
  }
  for (const file of files) await file.forget();
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
  return restored;
}

async function restoreDisk(
  request: RestoreRequest,
  member: PointMember,
  path: string,
): Promise<{ readonly disk: RestoredDisk; readonly file: RestoredFile }> {
  const { diskId } = member;
  // The shape is for writers only; what the disk really is, the image says.
  const opened = await request.store.openDisk({ diskId, sizeBytes: 0, sectorBytes: 512 });
  const { sizeBytes, image } = await openMember(opened, member);
  const windows = Math.ceil(blockCount(sizeBytes) / WINDOW_BLOCKS);
  const windowBytes: number[] = [];
  for (let window = 0; window < windows; window++)
    windowBytes.push(image === undefined ? 0 : await dataBytesOf(image, window));
  const dataBytes = sum(windowBytes);
  const file = await openRestoredFile({
    path,
    sizeBytes,
    content: JSON.stringify([opened.storeId, diskId, member.branch, member.seq, member.commitHash, sizeBytes]),
    neededBytes: dataBytes,
    overwrite: request.overwrite ?? false,
  });
  try {
    const tell = (doneBytes: number): void => request.onProgress?.({ diskId, doneBytes, dataBytes, sizeBytes });
    if (!file.complete && image !== undefined) {
      await withLanes(request, opened, { fd: file.fd, sizeBytes }, async (lanes, signal) => {
        for (let window = file.window; window < windows; window++) {
          const jobs = planRestore(await image.dataRuns(window * WINDOW_BLOCKS, windowBlocks(sizeBytes, window)));
          file.beginWindow(window, planId(jobs), jobs.length);
          const before = sum(windowBytes.slice(0, window));
          await runJobs(jobs, {
            lanes,
            file,
            signal,
            tell: (doneBytes) => tell(before + doneBytes),
            checkpointMs: request.checkpointMs ?? CHECKPOINT_MS,
          });
        }
      });
    }
    await file.finish();
    tell(dataBytes);
  } finally {
    await file.close();
  }
  return { file, disk: { diskId, path, sizeBytes, dataBytes } };
}

/** The disk at the point; one that had no commit by then is all zeroes and has no image. */
async function openMember(
  opened: OpenedDisk,
  { branch, seq, commitHash }: PointMember,
): Promise<{ readonly sizeBytes: number; readonly image?: DiskImage }> {
  const { context, keyring, storeId } = opened;
  try {
    const image = await openImage(context, { branch, seq, commitHash, keyring, storeId });
    return { sizeBytes: image.sizeBytes, image };
  } catch (error) {
    if (!isFault(error, "NO_POINT") || commitHash !== NO_COMMIT) throw error;
    return { sizeBytes: (await diskShape(context, { branch, seq })).sizeBytes };
  }
}

function windowBlocks(sizeBytes: number, window: number): number {
  return Math.min(WINDOW_BLOCKS, blockCount(sizeBytes) - window * WINDOW_BLOCKS);
}

async function dataBytesOf(image: DiskImage, window: number): Promise<number> {
  const offset = window * WINDOW_BLOCKS * BLOCK_SIZE;
  const length = Math.min(WINDOW_BLOCKS * BLOCK_SIZE, image.sizeBytes - offset);
  return sum((await image.allocation(offset, length)).map((run) => (run.zero ? 0 : run.length)));
}

/** Lanes for `work`, closed whatever becomes of it. */
async function withLanes(
  request: RestoreRequest,
  opened: OpenedDisk,
  target: LaneTarget,
  work: (lanes: readonly RestoreLane[], signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const { keyring, storeId, diskId, context } = opened;
  const signal = request.signal ?? new AbortController().signal;
  const lanes = await (request.openLanes ?? laneOfThisThread)(
    { store: context.store, keyring, storeId, diskId },
    target,
  );
  try {
    await work(lanes, signal);
  } finally {
    await Promise.all(lanes.map((lane) => lane.close()));
  }
}

async function runJobs(
  jobs: readonly RestoreJob[],
  to: {
    readonly lanes: readonly RestoreLane[];
    readonly file: RestoredFile;
    readonly signal: AbortSignal;
    readonly tell: (doneBytes: number) => void;
    readonly checkpointMs: number;
  },
): Promise<void> {
  const { lanes, file, tell } = to;
  const failed = new AbortController();
  const signal = AbortSignal.any([to.signal, failed.signal]);
  let next = 0;
  let doneBytes = sum(jobs.map((job, index) => (file.isDone(index) ? job.plainBytes : 0)));
  tell(doneBytes);
  const work = async (lane: RestoreLane): Promise<void> => {
    while (next < jobs.length) {
      const index = next++;
      if (file.isDone(index)) continue;
      signal.throwIfAborted();
      await lane.run(jobs[index]!, signal);
      file.done(index);
      doneBytes += jobs[index]!.plainBytes;
      tell(doneBytes);
    }
  };
  let checkpointing: Promise<void> | undefined;
  const ticker = setInterval(() => {
    checkpointing ??= file.checkpoint().then(
      () => (checkpointing = undefined),
      (error: unknown) => failed.abort(error),
    );
  }, to.checkpointMs);
  const workers = lanes.flatMap((lane) => Array.from({ length: JOBS_OF_LANE }, () => work(lane)));
  for (const worker of workers) worker.catch((error: unknown) => failed.abort(error));
  // All have to stop before the file is closed; the first failure is the reason of the others.
  await Promise.allSettled(workers);
  clearInterval(ticker);
  await checkpointing;
  if (!signal.aborted) return;
  // What is there need not be fetched again. A full disk may refuse even that; the reason of the end is the better error.
  await file.checkpoint().catch(() => undefined);
  throw signal.reason;
}

const laneOfThisThread: OpenLanes = async (context, target) => [
  { run: (job, signal) => runJob(job, context, target, signal), close: () => Promise.resolve() },
];

/** The same for the same jobs, and for no others. */
function planId(jobs: readonly RestoreJob[]): string {
  const hash = createHash("sha256");
  for (const { place, frame, start, length } of jobs) hash.update(place.key).update(frame).update(start).update(length);
  return hash.digest("hex");
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
