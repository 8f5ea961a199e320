/**
 * The overlay's states on disk, so that they outlive the process.
 *
 * A machine that writes to an export goes on running when the export's process dies, and believes every acknowledged write,
 * flushed or not; after a power loss it believes only what was flushed. Therefore two copies of the same map:
 *
 * - `NAME.map` is written before each acknowledgement and never synced. The kernel's page cache keeps it over a kill -9. It is worth
 *   nothing after a power loss (a state could reach the disk before its data), so it carries the boot id and is then ignored;
 * - `NAME.flushed` is written by a flush only, after the data's fdatasync, with the states as they were before that fdatasync began.
 *
 * ```
 *  0   8 bytes  "LWOVL\0\0\1"
 *  8   u64      size of the disk in bytes
 * 16  36 bytes  boot id of the machine (text), NAME.map only
 * 4096 …        two bits a block (overlay-states.ts)
 * ```
 */
import { closeSync, existsSync, fdatasync, fsyncSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { promisify } from "node:util";
import { Fault } from "#model/fault.ts";
import { blockCount } from "#model/units.ts";
import { createOverlayStates, stateBytes, type OverlayStates } from "./overlay-states.ts";

const HEADER_BYTES = 4096;
const PAGE_BYTES = 4096;
const MAGIC = Buffer.from("LWOVL\0\0\u0001", "latin1");
const fdatasyncAsync = promisify(fdatasync);

export interface OverlayMap {
  readonly states: OverlayStates;
  /** States of these blocks were changed in memory: hand them to the kernel. Before the acknowledgement, after the data. */
  persist(block: number, blocks: number): void;
  /** A `persist` failed: nothing may be acknowledged before another one worked, even where no state changes. */
  readonly isLate: boolean;
  /** `syncData` makes the data durable; then the states as they were before it began become durable too. */
  flush(syncData: () => Promise<void>): Promise<void>;
  close(): void;
}

/** Open `path`.map and `path`.flushed, creating them when there are none. Throws DISK_FULL; OBJECT_CORRUPT for files of another disk. */
export function openOverlayMap(
  path: string,
  options: { readonly sizeBytes: number; readonly bootId: string },
): OverlayMap {
  const { sizeBytes, bootId } = options;
  const created = !existsSync(`${path}.flushed`);
  const lost = !created && !existsSync(`${path}.map`);
  const flushed = openMapFile(`${path}.flushed`, sizeBytes, "");
  const live = openMapFile(`${path}.map`, sizeBytes, bootId);
  const states = createOverlayStates(blockCount(sizeBytes));
  const sameBoot = live.bootId === bootId && !lost;
  readFully((sameBoot ? live : flushed).descriptor, states.bits);
  if (!sameBoot) {
    writeFully(live.descriptor, header(sizeBytes, ""), 0); // No boot's, while its states are replaced.
    writeFully(live.descriptor, states.bits, HEADER_BYTES);
    writeFully(live.descriptor, header(sizeBytes, bootId), 0);
  }
  if (created) {
    fsyncSync(flushed.descriptor);
    syncFolder(dirname(path));
  }

  const pageOf = (block: number): number => Math.floor(block / 4 / PAGE_BYTES);
  // After a restart nobody knows which pages of the flushed map lag behind: all of them that say anything.
  const changedPages = new Set<number>(sameBoot && !created ? pagesInUse(states.bits) : []);

  /** Bytes of the live map that are ahead of its file, because it could not be written. */
  let late: { readonly first: number; readonly end: number } | undefined;

  return {
    states,
    get isLate() {
      return late !== undefined;
    },
    persist(block, blocks) {
      // Noted first: should the kernel not take them (a full disk), they are still due at the next flush, and before the next acknowledgement.
      for (let page = pageOf(block); page <= pageOf(block + blocks - 1); page++) changedPages.add(page);
      const wanted = late ?? { first: Math.floor(block / 4), end: Math.floor((block + blocks - 1) / 4) + 1 };
      const first = Math.min(wanted.first, Math.floor(block / 4));
      const end = Math.max(wanted.end, Math.floor((block + blocks - 1) / 4) + 1);
      late = { first, end };
      writeFully(live.descriptor, states.bits.subarray(first, end), HEADER_BYTES + first);
      late = undefined;
    },
    async flush(syncData) {
      const pages = [...changedPages].map((page) => ({
        page,
        bits: states.bits.slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES),
      }));
      changedPages.clear();
      try {
        await syncData();
        if (pages.length === 0) return;
        for (const { page, bits } of pages) writeFully(flushed.descriptor, bits, HEADER_BYTES + page * PAGE_BYTES);
        await fdatasyncAsync(flushed.descriptor);
      } catch (error) {
        for (const { page } of pages) changedPages.add(page);
        throw error;
      }
    },
    close() {
      closeSync(flushed.descriptor);
      closeSync(live.descriptor);
    },
  };
}

function openMapFile(
  path: string,
  sizeBytes: number,
  bootId: string,
): { readonly descriptor: number; readonly bootId: string } {
  const descriptor = openSync(path, existsSync(path) ? "r+" : "wx+", 0o600);
  const head = Buffer.alloc(52);
  if (readSync(descriptor, head, 0, head.length, 0) === 0) {
    ftruncateSync(descriptor, HEADER_BYTES + stateBytes(blockCount(sizeBytes)));
    writeFully(descriptor, header(sizeBytes, bootId), 0);
    return { descriptor, bootId };
  }
  if (!head.subarray(0, 8).equals(MAGIC) || head.readBigUInt64LE(8) !== BigInt(sizeBytes)) {
    closeSync(descriptor);
    throw new Fault("OBJECT_CORRUPT", `The overlay map "${path}" is not of a disk of ${sizeBytes} bytes`, {
      hint: "Close the export with its overlay discarded, then open it again.",
    });
  }
  return { descriptor, bootId: head.subarray(16).toString("latin1").replaceAll("\0", "") };
}

function header(sizeBytes: number, bootId: string): Buffer {
  const bytes = Buffer.alloc(52);
  MAGIC.copy(bytes);
  bytes.writeBigUInt64LE(BigInt(sizeBytes), 8);
  bytes.write(bootId, 16, 36, "latin1");
  return bytes;
}

function readFully(descriptor: number, target: Uint8Array): void {
  for (let at = 0; at < target.length;) {
    const count = readSync(descriptor, target, at, Math.min(target.length - at, 1 << 24), HEADER_BYTES + at);
    if (count === 0) break; // A file cut short by a crash at its creation: the rest is absent.
    at += count;
  }
}

function writeFully(descriptor: number, source: Uint8Array, position: number): void {
  try {
    for (let at = 0; at < source.length;) at += writeSync(descriptor, source, at, source.length - at, position + at);
  } catch (error) {
    throw overlayWriteFault(error);
  }
}

function* pagesInUse(bits: Uint8Array): Generator<number> {
  for (let page = 0; page * PAGE_BYTES < bits.length; page++) {
    if (bits.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES).some((byte) => byte !== 0)) yield page;
  }
}

function syncFolder(path: string): void {
  const descriptor = openSync(path, "r");
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** ENOSPC and its kin as DISK_FULL, everything else as it is. */
export function overlayWriteFault(error: unknown): unknown {
  const code = (error as NodeJS.ErrnoException).code;
  if (code !== "ENOSPC" && code !== "EDQUOT") return error;
  return new Fault("DISK_FULL", "No space left for the overlay of an export", {
    hint: "Free space under the master target's state folder; the machine's writes succeed again at once.",
    cause: error,
  });
}
