/**
 * Copies an export into raw images: `leeward restore`, through the running system. The master target holds the keys, opens and verifies every block;
 * what comes here over its socket is plain and right, or an error (docs/decisions/0019-a-restore-copies-an-export.md).
 */
import { writeSync } from "node:fs";
import { join, resolve } from "node:path";
import { Fault } from "#model/fault.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { RestoredDiskView, TransferProgress } from "../cli/rescue-contract.ts";
import { asDiskFull, openRestoredFile, type RestoredFile } from "../data-mover/restored-file.ts";
import { openNbdReader, type NbdReader } from "../nbd/client.ts";
import { transferMeter } from "./rescue-commands.ts";

const WINDOW_BYTES = 4 * 2 ** 30;
const JOB_BYTES = 8 << 20;
const AT_ONCE = 4;
/** Zeroes are left out in pieces of this size: what a file system allocates, or a few of it. */
const PIECE_BYTES = 64 << 10;
const CHECKPOINT_MS = 5_000;

export interface CopyRequest {
  readonly pointId: string;
  readonly disks: readonly { readonly diskId: string; readonly url: string }[];
  readonly to: string;
  readonly yes: boolean;
  readonly stop: AbortSignal;
  readonly onProgress: (progress: TransferProgress) => void;
}

/** Throws PEER_UNREACHABLE, EXPORT_FAILED, REFUSED, DISK_FULL, INTERRUPTED. */
export async function copyExport(request: CopyRequest): Promise<RestoredDiskView[]> {
  const meter = transferMeter(request.onProgress);
  const copied: { readonly view: RestoredDiskView; readonly file: RestoredFile }[] = [];
  for (const { diskId, url } of request.disks) {
    const path = join(resolve(request.to), `${diskId}.raw`);
    const source = await openNbdReader(socketOf(url), diskId);
    const { sizeBytes } = source;
    const tell = (doneBytes: number): void => meter({ diskId, doneBytes, dataBytes: sizeBytes });
    try {
      const content = JSON.stringify(["export", request.pointId, diskId, sizeBytes]);
      // What of it is zero is not known before it is read.
      const file = await openRestoredFile({ path, sizeBytes, content, neededBytes: 0, overwrite: request.yes });
      try {
        const dataBytes = file.complete ? 0 : await copyDisk(source, file, { stop: request.stop, tell });
        await file.finish();
        tell(sizeBytes);
        copied.push({ file, view: { id: diskId, path, sizeBytes, dataBytes } });
      } finally {
        await file.close();
      }
    } catch (error) {
      throw asDiskFull(error, path);
    } finally {
      source.close();
    }
  }
  for (const { file } of copied) await file.forget();
  return copied.map(({ view }) => view);
}

async function copyDisk(
  source: NbdReader,
  file: RestoredFile,
  { stop, tell }: { readonly stop: AbortSignal; readonly tell: (doneBytes: number) => void },
): Promise<number> {
  const { sizeBytes } = source;
  let dataBytes = 0;
  let checkpointAt = performance.now() + CHECKPOINT_MS;
  for (let window = file.window; window * WINDOW_BYTES < sizeBytes; window++) {
    const start = window * WINDOW_BYTES;
    const jobs = Math.ceil(Math.min(WINDOW_BYTES, sizeBytes - start) / JOB_BYTES);
    file.beginWindow(window, "all", jobs);
    let next = 0;
    let doneBytes = start;
    const lane = async (): Promise<void> => {
      while (next < jobs) {
        const job = next++;
        const offset = start + job * JOB_BYTES;
        const length = Math.min(JOB_BYTES, sizeBytes - offset);
        if (!file.isDone(job)) {
          if (stop.aborted)
            throw new Fault("INTERRUPTED", "Interrupted", { hint: "Repeat the command: it goes on where it stopped." });
          const data = await source.read(offset, length);
          dataBytes += writeData(file.fd, data, offset); // Not across an await: the other lanes count too.
          file.done(job);
        }
        doneBytes += length;
        tell(doneBytes);
        if (performance.now() < checkpointAt) continue;
        checkpointAt = performance.now() + CHECKPOINT_MS;
        await file.checkpoint();
      }
    };
    const lanes = await Promise.allSettled(Array.from({ length: AT_ONCE }, lane));
    const failed = lanes.find((one) => one.status === "rejected");
    if (failed === undefined) continue;
    // What is there need not be copied again. A full disk may refuse even that; the reason of the end is the better error.
    await file.checkpoint().catch(() => undefined);
    throw failed.reason;
  }
  return dataBytes;
}

const ZEROES = Buffer.alloc(PIECE_BYTES);

/** Returns what was written: pieces that are not zero. A part that goes on has been written there before with the same bytes, or not at all. */
function writeData(fd: number, data: Uint8Array, offset: number): number {
  let bytes = 0;
  for (let at = 0; at < data.length; at += PIECE_BYTES) {
    const piece = data.subarray(at, at + PIECE_BYTES);
    if (ZEROES.compare(piece, 0, piece.length, 0, piece.length) === 0) continue;
    for (let written = 0; written < piece.length;)
      written += writeSync(fd, piece, written, piece.length - written, offset + at + written);
    bytes += Math.ceil(piece.length / BLOCK_SIZE) * BLOCK_SIZE;
  }
  return bytes;
}

/** "nbd+unix:///NAME?socket=PATH" → PATH. */
function socketOf(url: string): string {
  const path = new URL(url).searchParams.get("socket");
  if (path !== null) return path;
  throw new Fault("PROTOCOL_INVALID", `"${url}" names no socket`);
}
