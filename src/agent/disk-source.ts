/**
 * Where a disk comes from, as an order says it, and the image file or device that it means on this machine:
 *
 * - `tap:PATH` is an image or block device that is there;
 * - `replica:NAME` is an image of ours, `<state>/replicas/NAME.img`, that a machine which runs here from another site's points is moved onto. It is made
 *   when it is first needed: sparse, of the size that the order gives.
 *
 * Invariant: an image that was ever served is never made anew. Where it has gone missing that is IMAGE_MISSING, and never an empty disk.
 */
import {
  closeSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { Fault } from "#model/fault.ts";
import type { DiskSpec } from "#ports/replication.ts";

export const SECTOR_BYTES = 512;
/** Becomes a file's name, and with `.img.new` behind it must still be one. */
const REPLICA_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** The image's own path, symbolic links resolved. Throws USAGE for another driver or a name that is none, IMAGE_MISSING. */
export function imageOf(source: string, stateDir: string): string {
  const replica = replicaImage(source, stateDir);
  const path = replica ?? /^tap:(.+)$/s.exec(source)?.[1];
  if (path === undefined) {
    throw new Fault("USAGE", `Unknown source "${source}", expected tap:PATH or replica:NAME`, {
      hint: "Give the path of a disk image or block device as tap:PATH",
    });
  }
  try {
    return realpathSync(path);
  } catch (cause) {
    throw new Fault("IMAGE_MISSING", `There is no image "${path}" on this machine`, {
      cause,
      details: { path },
      hint:
        replica === undefined
          ? "Check the path; it is one of the protected machine"
          : "An order for this source makes it, unless it was there before: then restore it, or unprotect the disk",
    });
  }
}

/** For a disk that was never served: its image is there afterwards, durably. Throws USAGE, IMAGE_INVALID (another size), DISK_FULL. */
export function ensureImage({ source, sizeBytes }: DiskSpec, stateDir: string): void {
  const image = replicaImage(source, stateDir);
  if (image === undefined) return;
  if (sizeBytes === undefined || sizeBytes === 0 || sizeBytes % SECTOR_BYTES !== 0) {
    throw new Fault(
      "USAGE",
      `Source "${source}" comes with a size of ${sizeBytes ?? "no"} bytes, expected a multiple of ${SECTOR_BYTES} that is not zero`,
      { hint: "Order it with the size of the disk that is to be moved there" },
    );
  }
  const there = statSync(image, { throwIfNoEntry: false });
  if (there === undefined) make(image, sizeBytes);
  else if (there.size !== sizeBytes) {
    throw new Fault("IMAGE_INVALID", `"${image}" has ${there.size} bytes, expected ${sizeBytes}`, {
      details: { image, sizeBytes: there.size },
      hint: "It is of another disk, or of another time: look what it is, then move it away",
    });
  }
}

/** Size of an image; 0 for a block device. Throws IMAGE_INVALID. */
export function imageBytes(image: string): number {
  const stat = statSync(image);
  // A block device has no size here; the tap, which opens it, knows.
  if (stat.isBlockDevice()) return 0;
  if (!stat.isFile())
    throw new Fault("IMAGE_INVALID", `"${image}" is not a file, expected a raw disk image`, { details: { image } });
  if (stat.size === 0 || stat.size % SECTOR_BYTES !== 0) {
    throw new Fault(
      "IMAGE_INVALID",
      `"${image}" has ${stat.size} bytes, expected a multiple of ${SECTOR_BYTES} that is not zero`,
      {
        details: { image, sizeBytes: stat.size },
        hint: "Only raw images are disks as they are; convert others with qemu-img convert -O raw",
      },
    );
  }
  return stat.size;
}

function replicaImage(source: string, stateDir: string): string | undefined {
  const name = /^replica:(.*)$/s.exec(source)?.[1];
  if (name === undefined) return undefined;
  if (!REPLICA_NAME.test(name)) {
    throw new Fault(
      "USAGE",
      `Source "${source}" names no replica, expected letters, digits, dots, dashes and underscores`,
      {
        hint: "Name it for its disk: replica:DISK-ID",
      },
    );
  }
  return join(stateDir, "replicas", `${name}.img`);
}

/** Whole or not at all: it gets its name when it has its size. */
function make(image: string, sizeBytes: number): void {
  const draft = `${image}.new`;
  const folder = dirname(image);
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const file = openSync(draft, "w", 0o600);
    try {
      ftruncateSync(file, sizeBytes);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(draft, image);
    for (const one of [folder, dirname(folder)]) syncFolder(one);
  } catch (cause) {
    rmSync(draft, { force: true });
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== "ENOSPC" && code !== "EDQUOT" && code !== "EFBIG") throw cause;
    const why = code === "EFBIG" ? "files there cannot have that size" : "no space is left";
    throw new Fault("DISK_FULL", `The image "${image}" of ${sizeBytes} bytes cannot be made: ${why}`, {
      cause,
      details: { image, sizeBytes },
      hint: "Free space under the agent's state folder, or put that folder on a larger file system",
    });
  }
}

function syncFolder(path: string): void {
  const folder = openSync(path, "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}
