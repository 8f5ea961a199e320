/**
 * A raw image file, or a block device, as a BlockDevice.
 *
 * - Reads and writes are synchronous: from and to the page cache they cost less than a trip through the thread pool, and the tap gets
 *   order and serialisation for nothing. A read that turns out slow (the cache is cold) sends those after it to the thread pool for a
 *   while, so that one slow disk does not stop the event loop.
 * - `flush` is `fdatasync` in the thread pool; flushes that arrive while one runs share the next one.
 * - **A flush that failed stays failed.** The kernel reports a lost write once and then forgets it, so a later fdatasync would lie.
 * - Zeroes are written; holes are punched by `fallocate` (util-linux) for large ranges, because Node cannot. Where it cannot either,
 *   TRIM does nothing, which is allowed. What may be a hole is written only where it is not zero already: a sparse disk that is copied into a new
 *   image stays sparse.
 */
import { execFile } from "node:child_process";
import {
  closeSync,
  constants,
  fdatasync as fdatasyncOf,
  fstatSync,
  openSync,
  read as readOf,
  readFileSync,
  readSync,
  statSync,
  writeSync,
} from "node:fs";
import type { BigIntStats } from "node:fs";
import { isFault, Fault } from "#model/fault.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import { lockImage } from "./image-lock.ts";
import type { ImageLock } from "./image-lock.ts";

const SECTOR_BYTES = 512;
const PAGE_BYTES = 4096;
/** A synchronous read that takes longer may not have been in the page cache. A megabyte from the cache takes 0.2 ms here. */
const SLOW_READ_MS = 2;
const READS_IN_POOL_AFTER_SLOW = 64;
const ZEROES = Buffer.alloc(1 << 20);
/** From here on a child process costs less than writing zeroes. */
const PUNCH_BYTES = 1 << 20;

/** What the image device asks of the system, so that a test can make it fail. */
export interface ImageSystem {
  readonly writeSync: (fd: number, data: Uint8Array, at: number, length: number, offset: number) => number;
  readonly fdatasync: (fd: number, done: (error: Error | null) => void) => void;
  readonly punch: (path: string, offset: number, length: number) => Promise<boolean>;
}

export interface ImageOptions {
  readonly readOnly?: boolean;
  readonly system?: Partial<ImageSystem>;
}

/**
 * Throws IMAGE_MISSING; IMAGE_INVALID (not writable, empty, a size that is no multiple of 512, not raw); IMAGE_IN_USE.
 * The image stays locked for other taps until `close` or the end of this process.
 */
export async function openImage(path: string, options: ImageOptions = {}): Promise<BlockDevice> {
  const readOnly = options.readOnly ?? false;
  const stats = statImage(path);
  const lock = readOnly ? undefined : await lockImage(path, stats);
  let fd: number | undefined;
  try {
    fd = openFile(path, stats, readOnly);
    const sizeBytes = stats.isBlockDevice() ? blockDeviceBytes(stats) : Number(fstatSync(fd, { bigint: true }).size);
    checkRaw(path, fd, sizeBytes);
    return createImageDevice({
      path,
      fd,
      sizeBytes,
      readOnly,
      lock,
      punchable: stats.isFile(),
      system: { ...SYSTEM, ...options.system },
    });
  } catch (error) {
    if (fd !== undefined) closeSync(fd);
    await lock?.release();
    throw error;
  }
}

function statImage(path: string): BigIntStats {
  let stats: BigIntStats;
  try {
    stats = statSync(path, { bigint: true });
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === "ENOENT" || code === "ENOTDIR") {
      throw new Fault("IMAGE_MISSING", `The image "${path}" does not exist`, {
        details: { image: path },
        hint: "Check the path in the disk's source.",
        cause,
      });
    }
    throw invalid(path, `it cannot be examined (${code})`, cause);
  }
  if (!stats.isFile() && !stats.isBlockDevice()) throw invalid(path, "it is neither a file nor a block device");
  return stats;
}

function openFile(path: string, stats: BigIntStats, readOnly: boolean): number {
  // O_EXCL on a block device: the kernel refuses when it is mounted or part of something else.
  const flags =
    (readOnly ? constants.O_RDONLY : constants.O_RDWR) | (stats.isBlockDevice() && !readOnly ? constants.O_EXCL : 0);
  try {
    return openSync(path, flags);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === "EBUSY") {
      throw new Fault("IMAGE_IN_USE", `The device "${path}" is mounted or in use`, {
        details: { image: path },
        hint: "Unmount it first.",
        cause,
      });
    }
    throw invalid(path, `it cannot be opened for ${readOnly ? "reading" : "writing"} (${code})`, cause);
  }
}

function blockDeviceBytes(stats: BigIntStats): number {
  const major = (stats.rdev >> 8n) & 0xfffn;
  const minor = (stats.rdev & 0xffn) | ((stats.rdev >> 12n) & 0xfff00n);
  return Number.parseInt(readFileSync(`/sys/dev/block/${major}:${minor}/size`, "utf8"), 10) * SECTOR_BYTES;
}

function checkRaw(path: string, fd: number, sizeBytes: number): void {
  if (sizeBytes === 0) throw invalid(path, "it is empty");
  if (sizeBytes % SECTOR_BYTES !== 0)
    throw invalid(path, `its size of ${sizeBytes} bytes is no multiple of ${SECTOR_BYTES}`);
  const start = Buffer.alloc(8);
  readSync(fd, start, 0, 8, 0);
  for (const [magic, format] of [
    ["QFI\u00fb", "qcow2"],
    ["KDMV", "VMDK"],
    ["vhdxfile", "VHDX"],
  ] as const) {
    if (start.toString("latin1").startsWith(magic)) {
      const hint = `Convert it first: qemu-img convert -O raw ${path} disk.img`;
      throw new Fault("IMAGE_INVALID", `The image "${path}" is ${format}, expected raw`, {
        details: { image: path },
        hint,
      });
    }
  }
}

function invalid(path: string, why: string, cause?: unknown): Fault {
  return new Fault("IMAGE_INVALID", `The image "${path}" cannot be used: ${why}`, {
    details: { image: path },
    hint: "A disk's source is a raw image file or a block device that this user may write.",
    cause,
  });
}

interface OpenedImage {
  readonly path: string;
  readonly fd: number;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly lock: ImageLock | undefined;
  readonly punchable: boolean;
  readonly system: ImageSystem;
}

function createImageDevice(image: OpenedImage): BlockDevice {
  const { path, fd, sizeBytes, system } = image;
  let readsInPool = 0;
  let diskReads = process.resourceUsage().fsRead;
  let punchable = image.punchable;
  let punching: Promise<unknown> = Promise.resolve();
  let flushFailure: Fault | undefined;
  let flushing: Promise<void> | undefined;
  let nextFlush: Promise<void> | undefined;

  function failed(doing: string, offset: number, length: number, cause: unknown): Fault {
    const code = (cause as NodeJS.ErrnoException).code ?? "";
    const details = { image: path, offset, length };
    if (code === "ENOSPC" || code === "EDQUOT") {
      return new Fault("DISK_FULL", `No space left for the image "${path}"`, {
        details,
        hint: "Free space on the file system that holds the image.",
        cause,
      });
    }
    return new Fault("SOURCE_READ_FAILED", `Cannot ${doing} the image "${path}" at ${offset} (${code})`, {
      details,
      hint: "Look at the kernel's log for errors of the underlying disk.",
      cause,
    });
  }

  function writeAll(data: Uint8Array, offset: number): void {
    for (let done = 0; done < data.length;) {
      try {
        done += system.writeSync(fd, data, done, data.length - done, offset + done);
      } catch (cause) {
        throw failed("write to", offset + done, data.length - done, cause);
      }
    }
  }

  function readNow(target: Uint8Array, offset: number): void {
    for (let done = 0; done < target.length;) {
      let count: number;
      try {
        count = readSync(fd, target, done, target.length - done, offset + done);
      } catch (cause) {
        throw failed("read", offset + done, target.length - done, cause);
      }
      if (count === 0) throw failed("read", offset + done, target.length - done, new Error("the image has shrunk"));
      done += count;
    }
  }

  async function readInPool(target: Uint8Array, offset: number): Promise<void> {
    for (let done = 0; done < target.length;) {
      const { promise, resolve, reject } = Promise.withResolvers<number>();
      readOf(fd, target, done, target.length - done, offset + done, (error, count) => {
        if (error !== null) reject(failed("read", offset + done, target.length - done, error));
        else resolve(count);
      });
      const count = await promise;
      if (count === 0) throw failed("read", offset + done, target.length - done, new Error("the image has shrunk"));
      done += count;
    }
  }

  function syncOnce(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    system.fdatasync(fd, (error) => {
      if (error === null) return resolve();
      flushFailure ??= failed("flush", 0, sizeBytes, error);
      reject(flushFailure);
    });
    return promise;
  }

  function flush(): Promise<void> {
    if (flushFailure !== undefined) return Promise.reject(flushFailure);
    if (flushing === undefined) {
      flushing = syncOnce().finally(() => (flushing = undefined));
      return flushing;
    }
    // The one that runs may have begun before the caller's last write: wait for it, then share the next.
    nextFlush ??= flushing
      .catch((error: unknown) => {
        if (!isFault(error)) throw error; // The latch tells the next one.
      })
      .then(() => {
        nextFlush = undefined;
        return flush();
      });
    return nextFlush;
  }

  /** Punch whole pages inside the range, one helper at a time; false when that is not possible here. */
  async function punch(offset: number, length: number): Promise<boolean> {
    const start = Math.ceil(offset / PAGE_BYTES) * PAGE_BYTES;
    const end = Math.floor((offset + length) / PAGE_BYTES) * PAGE_BYTES;
    if (!punchable || end - start < PUNCH_BYTES) return false;
    const mine = punching.then(() => system.punch(path, start, end - start));
    punching = mine;
    punchable = await mine;
    if (!punchable) return false;
    if (start > offset) await zeroUnlessZero(offset, start - offset);
    if (offset + length > end) await zeroUnlessZero(end, offset + length - end);
    return true;
  }

  /** Where it is zero already nothing is written: a hole stays one. */
  async function zeroUnlessZero(offset: number, length: number): Promise<void> {
    const zeroes = ZEROES.subarray(0, length);
    const now = Buffer.allocUnsafe(length);
    await readInPool(now, offset);
    if (!now.equals(zeroes)) writeAll(zeroes, offset);
  }

  async function zeroSlowly(offset: number, length: number, mayTrim: boolean): Promise<void> {
    if (mayTrim && (await punch(offset, length))) return;
    for (let at = 0; at < length; at += ZEROES.length) {
      const piece = Math.min(ZEROES.length, length - at);
      if (mayTrim) {
        await zeroUnlessZero(offset + at, piece);
        continue;
      }
      writeAll(ZEROES.subarray(0, piece), offset + at);
      await new Promise((next) => setImmediate(next)); // Others want their turn.
    }
  }

  return {
    sizeBytes,
    preferredBlockBytes: PAGE_BYTES,
    readOnly: image.readOnly,
    read(target, offset) {
      if (readsInPool > 0) {
        readsInPool--;
        return readInPool(target, offset);
      }
      const before = performance.now();
      readNow(target, offset);
      if (performance.now() - before < SLOW_READ_MS) return;
      // Slow because of the disk, or because somebody else had the processor? Only the disk is a reason.
      const { fsRead } = process.resourceUsage();
      if (fsRead > diskReads) readsInPool = READS_IN_POOL_AFTER_SLOW;
      diskReads = fsRead;
    },
    write(data, offset, options) {
      writeAll(data, offset);
      if (options?.fua === true) return flush();
    },
    flush,
    zero(offset, length, options) {
      if (length <= ZEROES.length && options?.mayTrim !== true) {
        writeAll(ZEROES.subarray(0, length), offset);
        return options?.fua === true ? flush() : undefined;
      }
      const zeroed = zeroSlowly(offset, length, options?.mayTrim ?? false);
      return options?.fua === true ? zeroed.then(flush) : zeroed;
    },
    async trim(offset, length) {
      // The edges are not ours to change: TRIM is rounded inward.
      const start = Math.ceil(offset / PAGE_BYTES) * PAGE_BYTES;
      const end = Math.floor((offset + length) / PAGE_BYTES) * PAGE_BYTES;
      if (end > start) await punch(start, end - start);
    },
    async close() {
      await punching;
      await nextFlush?.catch(() => undefined); // Whoever asked for it was told.
      await flushing?.catch(() => undefined);
      closeSync(fd);
      await image.lock?.release();
    },
  };
}

const SYSTEM: ImageSystem = {
  writeSync: (fd, data, at, length, offset) => writeSync(fd, data, at, length, offset),
  fdatasync: fdatasyncOf,
  punch: (path, offset, length) =>
    new Promise((resolve) => {
      // Not there, or not possible on this file system: the caller does without.
      execFile("fallocate", ["--punch-hole", "--offset", String(offset), "--length", String(length), path], (error) =>
        resolve(error === null),
      );
    }),
};
