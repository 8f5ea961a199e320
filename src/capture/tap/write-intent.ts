/**
 * The write intent: which regions of a disk may differ from the replica, kept where a crash cannot lose it.
 *
 * The dirty sets live in memory. When the tap dies, the intent file says which regions have to be read again. One bit for each
 * MiB of the disk:
 *
 * - a bit is durable before the first write into its region is issued;
 * - a bit is cleared only once nothing of the region is dirty, unsynced or in a cut that is not committed, *and* the image was flushed
 *   after that: a power loss may roll the source back behind what the replica already has;
 * - clearing is lazy (it need not be durable), setting is batched (one fdatasync for all writes that wait).
 *
 * The file itself, and what a start finds in it, is intent-file.ts.
 */
import { closeSync, fsyncSync, mkdirSync, openSync, unlinkSync } from "node:fs";
import { dirname } from "node:path";
import { Fault } from "#model/fault.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { BlockRun } from "#model/block-set.ts";
import {
  clearBit,
  hasBit,
  HEADER_BYTES,
  readGeneration,
  readState,
  setBit,
  syncData,
  writeAll,
  writeHeader,
  writePage,
  type IntentIdentity,
} from "./intent-file.ts";

export const REGION_BYTES = 1 << 20;
export const REGION_BLOCKS = REGION_BYTES / BLOCK_SIZE;
const PAGE_BYTES = 4096;

const CLEAR = 0;
/** Set in memory, on its way to the disk. */
const SETTING = 1;
const DURABLE = 2;

export interface WriteIntent {
  readonly bootId: string;
  /** Grows with every start. */
  readonly generation: number;
  /** What has to be swept, in whole regions, and why; no runs and "" when nothing has. */
  readonly found: { readonly runs: readonly BlockRun[]; readonly reason: string };
  /** Whether every region of these blocks has a durable bit: the write may be issued now. */
  covers(block: number, count: number): boolean;
  /** Set the bits; settles when they are durable. */
  set(block: number, count: number): Promise<void>;
  /** Clear the bit of each region for which `isClean` holds now. The caller has flushed the image. */
  clear(isClean: (block: number, count: number) => boolean): void;
  /** Whether `clear` would clear anything: if not, the flush before it can be saved. */
  clearable(isClean: (block: number, count: number) => boolean): boolean;
  /** The file belongs to disk `diskId` from now on. Throws DISK_FULL or what the disk says. */
  adopt(diskId: string): void;
  /** The clean stop. The image was flushed, nothing is written any more; `imageMtimeNs` is from after its close. */
  close(clean: { readonly imageMtimeNs: bigint } | undefined): Promise<void>;
}

/** Opens the file, or makes it; durable as "not stopped cleanly" on return. Throws DISK_FULL or CONFIG_INVALID when it cannot be written. */
export function openWriteIntent(path: string, identity: IntentIdentity): WriteIntent {
  let fd: number;
  try {
    mkdirSync(dirname(path), { recursive: true });
    fd = openSync(path, "a+");
    closeSync(fd);
    fd = openSync(path, "r+");
  } catch (cause) {
    throw cannotWrite(path, cause);
  }
  try {
    return createWriteIntent(path, fd, identity);
  } catch (cause) {
    closeSync(fd);
    throw cannotWrite(path, cause);
  }
}

function createWriteIntent(path: string, fd: number, opened: IntentIdentity): WriteIntent {
  let identity = opened;
  const blocks = Math.ceil(identity.imageBytes / BLOCK_SIZE);
  const regions = Math.ceil(identity.imageBytes / REGION_BYTES);
  const states = new Uint8Array(regions);
  const bits = Buffer.alloc(Math.ceil(regions / 8 / PAGE_BYTES) * PAGE_BYTES);
  const before = readState(fd, bits.length, identity);
  if (typeof before === "string") {
    for (let region = 0; region < regions; region++) setBit(bits, region);
  } else {
    before.bits.copy(bits);
  }
  for (let region = 0; region < regions; region++) states[region] = hasBit(bits, region) ? DURABLE : CLEAR;
  const generation = (typeof before === "string" ? readGeneration(fd) : before.generation) + 1;
  writeAll(fd, bits, HEADER_BYTES);
  // The bits are there before the header vouches for them.
  fsyncSync(fd);
  writeHeader(fd, identity, generation, undefined);
  syncFolder(path);

  const changedPages = new Set<number>();
  let waiting: { resolve: () => void; reject: (fault: Fault) => void }[] = [];
  let writing: Promise<void> | undefined;
  let gaveUp = false;
  let closed = false;

  function blocksOf(region: number): [block: number, count: number] {
    const first = region * REGION_BLOCKS;
    return [first, Math.min(REGION_BLOCKS, blocks - first)];
  }

  function change(region: number, value: boolean): void {
    if (value) setBit(bits, region);
    else clearBit(bits, region);
    changedPages.add(Math.floor(region / 8 / PAGE_BYTES));
  }

  /** One round: all pages that changed, one fdatasync, then everybody who waited. */
  async function writeRound(): Promise<void> {
    const round = waiting;
    waiting = [];
    const pages = [...changedPages];
    changedPages.clear();
    const setting: number[] = [];
    for (const page of pages) {
      const first = page * PAGE_BYTES * 8;
      for (let region = first; region < Math.min(regions, first + PAGE_BYTES * 8); region++)
        if (states[region] === SETTING) setting.push(region);
    }
    try {
      // A copy: the bits may change while the page is on its way, and then it belongs to the next round.
      for (const page of pages)
        await writePage(
          fd,
          Buffer.from(bits.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)),
          HEADER_BYTES + page * PAGE_BYTES,
        );
      if (round.length > 0 || setting.length > 0) await syncData(fd);
    } catch (cause) {
      await giveUp(cause, round);
      return;
    }
    for (const region of setting) if (states[region] === SETTING) states[region] = DURABLE;
    for (const waiter of round) waiter.resolve();
  }

  /**
   * The state file cannot be written. The machine's writes matter more than our knowledge of them: remove the file, so that the next
   * start sweeps everything, and let the writes go. Only when it cannot even be removed do the writes fail.
   */
  async function giveUp(cause: unknown, round: typeof waiting): Promise<void> {
    try {
      unlinkSync(path);
      syncFolder(path);
      gaveUp = true;
    } catch (unlinkCause) {
      const fault = cannotWrite(path, new AggregateError([cause, unlinkCause]));
      for (const region of states.keys()) {
        if (states[region] !== SETTING) continue;
        states[region] = CLEAR;
        clearBit(bits, region);
      }
      for (const waiter of round) waiter.reject(fault);
      return;
    }
    for (const waiter of round) waiter.resolve();
  }

  function kick(): void {
    if (writing !== undefined || gaveUp || closed) return;
    writing = writeRound().finally(() => {
      writing = undefined;
      if (changedPages.size > 0 || waiting.length > 0) kick();
    });
  }

  const intent: WriteIntent = {
    bootId: identity.bootId,
    generation,
    found:
      typeof before === "string"
        ? { runs: [{ start: 0, count: blocks }], reason: before }
        : foundIn(bits, regions, blocks, before.reason),
    clearable(isClean) {
      for (let region = 0; region < regions; region++)
        if (states[region] === DURABLE && isClean(...blocksOf(region))) return true;
      return false;
    },
    covers(block, count) {
      if (gaveUp) return true;
      const last = Math.floor((block + count - 1) / REGION_BLOCKS);
      for (let region = Math.floor(block / REGION_BLOCKS); region <= last; region++)
        if (states[region] !== DURABLE) return false;
      return true;
    },
    set(block, count) {
      if (intent.covers(block, count)) return Promise.resolve();
      const last = Math.floor((block + count - 1) / REGION_BLOCKS);
      for (let region = Math.floor(block / REGION_BLOCKS); region <= last; region++) {
        if (states[region] !== CLEAR) continue;
        states[region] = SETTING;
        change(region, true);
      }
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      // A region that another write is setting right now may be in the round that runs; the next round covers both cases.
      waiting.push({ resolve, reject });
      kick();
      return promise;
    },
    clear(isClean) {
      if (gaveUp) return;
      for (let region = 0; region < regions; region++) {
        if (states[region] !== DURABLE) continue;
        if (!isClean(...blocksOf(region))) continue;
        states[region] = CLEAR;
        change(region, false);
      }
      if (changedPages.size > 0) kick();
    },
    adopt(diskId) {
      identity = { ...identity, diskId };
      writeHeader(fd, identity, generation, undefined);
    },
    async close(clean) {
      while (writing !== undefined) await writing;
      closed = true;
      if (!gaveUp && clean !== undefined) {
        // `bits` as a whole: what was cleared since may not have been written.
        writeAll(fd, bits, HEADER_BYTES);
        fsyncSync(fd);
        writeHeader(fd, identity, generation, clean.imageMtimeNs);
      }
      closeSync(fd);
    },
  };
  return intent;
}

function foundIn(bits: Buffer, regions: number, blocks: number, reason: string): WriteIntent["found"] {
  const runs: BlockRun[] = [];
  for (let region = 0; region < regions; region++) {
    if (!hasBit(bits, region)) continue;
    const start = region * REGION_BLOCKS;
    const count = Math.min(REGION_BLOCKS, blocks - start);
    const last = runs.at(-1);
    if (last !== undefined && last.start + last.count === start)
      runs[runs.length - 1] = { start: last.start, count: last.count + count };
    else runs.push({ start, count });
  }
  return { runs, reason: runs.length === 0 ? "" : reason };
}

function syncFolder(path: string): void {
  const folder = openSync(dirname(path), "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

function cannotWrite(path: string, cause: unknown): Fault {
  const full = (cause as NodeJS.ErrnoException).code === "ENOSPC";
  return new Fault(full ? "DISK_FULL" : "CONFIG_INVALID", `Cannot write the tap's state "${path}"`, {
    details: { path },
    hint: full
      ? "Free space on the file system that holds the agent's state."
      : "Check owner and permissions of the agent's state folder.",
    cause,
  });
}
