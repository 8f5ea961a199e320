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
 * What a start finds:
 *
 * | state file                                   | to be swept            |
 * | -------------------------------------------- | ---------------------- |
 * | stopped cleanly, image untouched since       | regions with a bit     |
 * | not stopped cleanly, same boot of the machine| regions with a bit     |
 * | not stopped cleanly, another boot            | everything             |
 * | missing, damaged, of another disk or size; image changed while stopped | everything |
 *
 * The file, little-endian: a header of 4096 bytes, then the bits (bit n of byte k: region 8k + n).
 *
 * ```
 *  0  8 bytes  "LWINTENT"          32  u64  modification time of the image at the clean stop, ns
 *  8  u32      version, 1          40  16 bytes  boot id
 * 12  u32      1: stopped cleanly  56  u32  length of the disk id, at most 1024
 * 16  u64      image size          60  …    disk id, UTF-8
 * 24  u64      generation        4092  u32  CRC32C of the 4092 bytes before
 * ```
 *
 * The checksum does not cover the bits: a torn write of them leaves bits old or new, and a write never starts before its bit is known
 * to be there. The modification time of a block device's node says nothing; for those the rule "image untouched" always holds.
 * This comment is the description of the file; it never leaves the machine.
 */
import {
  closeSync,
  fdatasync,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readSync,
  unlinkSync,
  write,
  writeSync,
} from "node:fs";
import { dirname } from "node:path";
import { Fault } from "#model/fault.ts";
import { crc32c } from "#model/checksum.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { BlockRun } from "#model/block-set.ts";

export const REGION_BYTES = 1 << 20;
export const REGION_BLOCKS = REGION_BYTES / BLOCK_SIZE;
const HEADER_BYTES = 4096;
const PAGE_BYTES = 4096;
const MAGIC = "LWINTENT";
const VERSION = 1;

const CLEAR = 0;
/** Set in memory, on its way to the disk. */
const SETTING = 1;
const DURABLE = 2;

export interface IntentIdentity {
  readonly diskId: string;
  readonly imageBytes: number;
  /** `/proc/sys/kernel/random/boot_id`. */
  readonly bootId: string;
  /** Modification time of the image now, ns. */
  readonly imageMtimeNs: bigint;
}

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

interface IntentState {
  readonly bits: Buffer;
  readonly generation: number;
  readonly reason: string;
}

/** What an earlier life left; a string says why it is not to be used. */
function readState(fd: number, bitBytes: number, identity: IntentIdentity): IntentState | string {
  const fileBytes = fstatSync(fd).size;
  if (fileBytes === 0) return "initial sync: the disk was not tracked before";
  const header = Buffer.alloc(HEADER_BYTES);
  const bits = Buffer.alloc(bitBytes);
  if (readSync(fd, header, 0, HEADER_BYTES, 0) !== HEADER_BYTES || !isIntact(header))
    return "resync: the write-intent file is damaged";
  const idBytes = header.readUInt32LE(56);
  const diskId = header.toString("utf8", 60, 60 + Math.min(idBytes, 1024));
  if (diskId !== identity.diskId) return `resync: the write-intent file belongs to disk "${diskId}"`;
  const imageBytes = Number(header.readBigUInt64LE(16));
  if (imageBytes !== identity.imageBytes)
    return `resync: the image had ${imageBytes} bytes and now has ${identity.imageBytes}`;
  if (readSync(fd, bits, 0, bitBytes, HEADER_BYTES) !== bitBytes) return "resync: the write-intent file is cut off";
  const clean = header.readUInt32LE(12) === 1;
  const bootId = header.toString("latin1", 40, 56);
  const generation = Number(header.readBigUInt64LE(24));
  if (!clean && bootId !== packBootId(identity.bootId).toString("latin1"))
    return "resync: the machine went down without a clean stop of the tap";
  if (clean && header.readBigUInt64LE(32) !== identity.imageMtimeNs)
    return "resync: the image was changed while the tap was stopped";
  return { bits, generation, reason: clean ? "catch-up after a stop of the tap" : "catch-up after the tap was killed" };
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

function isIntact(header: Buffer): boolean {
  return (
    header.toString("latin1", 0, 8) === MAGIC &&
    header.readUInt32LE(8) === VERSION &&
    header.readUInt32LE(HEADER_BYTES - 4) === crc32c(header.subarray(0, HEADER_BYTES - 4))
  );
}

/** The generation of a file that is otherwise not to be used, so that numbers are not used again; 0 when there is none. */
function readGeneration(fd: number): number {
  const header = Buffer.alloc(HEADER_BYTES);
  return readSync(fd, header, 0, HEADER_BYTES, 0) === HEADER_BYTES && isIntact(header)
    ? Number(header.readBigUInt64LE(24))
    : 0;
}

function writeHeader(fd: number, identity: IntentIdentity, generation: number, cleanMtimeNs: bigint | undefined): void {
  const header = Buffer.alloc(HEADER_BYTES);
  header.write(MAGIC, 0, "latin1");
  header.writeUInt32LE(VERSION, 8);
  header.writeUInt32LE(cleanMtimeNs === undefined ? 0 : 1, 12);
  header.writeBigUInt64LE(BigInt(identity.imageBytes), 16);
  header.writeBigUInt64LE(BigInt(generation), 24);
  header.writeBigUInt64LE(cleanMtimeNs ?? 0n, 32);
  packBootId(identity.bootId).copy(header, 40);
  const id = Buffer.from(identity.diskId);
  if (id.length > 1024) throw new RangeError(`Disk id of ${id.length} bytes`);
  header.writeUInt32LE(id.length, 56);
  id.copy(header, 60);
  header.writeUInt32LE(crc32c(header.subarray(0, HEADER_BYTES - 4)), HEADER_BYTES - 4);
  writeAll(fd, header, 0);
  fsyncSync(fd);
}

/** One writeSync may write a part only, on a disk that is nearly full. */
function writeAll(fd: number, data: Buffer, position: number): void {
  for (let at = 0; at < data.length;) at += writeSync(fd, data, at, data.length - at, position + at);
}

function packBootId(bootId: string): Buffer {
  const packed = Buffer.alloc(16);
  Buffer.from(bootId.replaceAll("-", ""), "hex").copy(packed);
  return packed;
}

function syncFolder(path: string): void {
  const folder = openSync(dirname(path), "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

function writePage(fd: number, page: Buffer, offset: number): Promise<void> {
  return new Promise((resolve, reject) => {
    write(fd, page, 0, page.length, offset, (error, written) => {
      if (error !== null) reject(error);
      else if (written !== page.length) reject(new Error(`${written} of ${page.length} bytes were written`));
      else resolve();
    });
  });
}

function syncData(fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    fdatasync(fd, (error) => (error === null ? resolve() : reject(error)));
  });
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

function hasBit(bits: Buffer, index: number): boolean {
  return ((bits[index >>> 3]! >>> (index & 7)) & 1) === 1;
}

function setBit(bits: Buffer, index: number): void {
  bits[index >>> 3] = bits[index >>> 3]! | (1 << (index & 7));
}

function clearBit(bits: Buffer, index: number): void {
  bits[index >>> 3] = bits[index >>> 3]! & ~(1 << (index & 7));
}
