/**
 * A recovery point as raw image files: for who has the bucket and the keys, and nothing else.
 *
 * Every block is verified on its way (seal and digest, image.ts). A file carries its name only once it is whole and durable; until then it is
 * `NAME.partial`, and a restore that is repeated begins it anew. Zeroes stay holes.
 */
import { open, rename, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { Fault, isFault } from "#model/fault.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import { openImage, type DiskImage } from "./image.ts";
import type { MoverStore } from "./mover-store.ts";

export interface RestoredDisk {
  readonly diskId: string;
  readonly path: string;
  readonly sizeBytes: number;
  /** Bytes that are not zero by the extent map. */
  readonly dataBytes: number;
}

const STEP_BYTES = 4 << 20;
const STEPS_AT_ONCE = 4;

/**
 * Write every disk of `point` to `{folder}/{diskId}.raw`; a file that is there is REFUSED.
 * Throws OBJECT_CORRUPT, OBJECT_MISSING, CHAIN_BROKEN, KEY_…, STORE_…, DISK_FULL.
 */
export async function restorePoint(request: {
  readonly store: MoverStore;
  readonly point: Pick<RecoveryPoint, "id" | "members">;
  readonly folder: string;
  readonly onProgress?: (progress: {
    readonly diskId: string;
    readonly doneBytes: number;
    readonly sizeBytes: number;
  }) => void;
  readonly signal?: AbortSignal;
}): Promise<RestoredDisk[]> {
  const { store, point, folder, onProgress, signal } = request;
  const restored: RestoredDisk[] = [];
  for (const { diskId, branch, seq, commitHash } of point.members) {
    // The shape is for writers only; what the disk really is, the image says.
    const { context, keyring, storeId } = await store.openDisk({ diskId, sizeBytes: 0, sectorBytes: 512 });
    const image = await openImage(context, { branch, seq, commitHash, keyring, storeId });
    const path = join(folder, `${diskId}.raw`);
    const file = await createFile(path);
    try {
      await file.truncate(image.sizeBytes);
      const dataBytes = await copyData(
        image,
        file,
        (doneBytes) => onProgress?.({ diskId, doneBytes, sizeBytes: image.sizeBytes }),
        signal,
      );
      await file.sync();
      restored.push({ diskId, path, sizeBytes: image.sizeBytes, dataBytes });
    } catch (error) {
      throw diskFull(error, path);
    } finally {
      await file.close();
    }
    await rename(`${path}.partial`, path);
  }
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
  return restored;
}

async function createFile(path: string): Promise<FileHandle> {
  // Taken for a moment only to see that nobody else's file is replaced by the rename.
  const existing = await open(path, "r").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
  if (existing === undefined) return open(`${path}.partial`, "w", 0o600);
  await existing.close();
  throw new Fault("REFUSED", `"${path}" exists`, { details: { path }, hint: "Restore into an empty folder." });
}

/** A few steps at once, in the order of the disk; each writes what it read before it takes another. */
async function copyData(
  image: DiskImage,
  file: FileHandle,
  onDone: (doneBytes: number) => void,
  signal: AbortSignal | undefined,
): Promise<number> {
  let next = 0;
  let done = 0;
  let dataBytes = 0;
  const lane = async (): Promise<void> => {
    const buffer = new Uint8Array(STEP_BYTES);
    while (next < image.sizeBytes) {
      signal?.throwIfAborted();
      const start = next;
      next += STEP_BYTES;
      const length = Math.min(STEP_BYTES, image.sizeBytes - start);
      let at = start;
      for (const run of await image.allocation(start, length)) {
        if (!run.zero) {
          const part = buffer.subarray(0, run.length);
          await image.read(part, at);
          for (let written = 0; written < part.length;)
            written += (await file.write(part, written, part.length - written, at + written)).bytesWritten;
          dataBytes += run.length;
        }
        at += run.length;
      }
      done += length;
      onDone(done);
    }
  };
  const lanes = await Promise.allSettled(Array.from({ length: STEPS_AT_ONCE }, lane));
  for (const one of lanes) if (one.status === "rejected") throw one.reason;
  return dataBytes;
}

function diskFull(error: unknown, path: string): unknown {
  if (isFault(error) || (error as NodeJS.ErrnoException).code !== "ENOSPC") return error;
  return new Fault("DISK_FULL", `No space left to restore "${path}"`, {
    details: { path },
    hint: "Free space, then restore again.",
    cause: error,
  });
}
