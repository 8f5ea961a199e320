/**
 * An overlay: a writable device over a recovery point that is never changed.
 *
 * Invariants:
 * - a block is read from the overlay once it was written or zeroed there, from the image below until then;
 * - an acknowledged write survives kill -9 of this process; a flushed one (or FUA) survives a power loss (overlay-map.ts);
 * - a write of part of a block that is absent copies the rest of that block from below first; writes that touch the same block
 *   meanwhile wait for it, in order of arrival;
 * - data never takes more than the budget, which all disks of one export share: OVERLAY_FULL, and the machine sees ENOSPC;
 * - a failed fdatasync is latched: the kernel may have dropped the pages, so no later flush may succeed.
 *
 * Zeroes and trims of whole blocks cost two bits, and no space.
 */
import { closeSync, fdatasync, fstatSync, ftruncateSync, openSync, readSync, writeSync, constants } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { Fault } from "#model/fault.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { AllocationRun, BlockDevice } from "#ports/block-device.ts";
import { openOverlayMap, overlayWriteFault } from "./overlay-map.ts";
import { ABSENT, blocksInside, DATA, ZERO } from "./overlay-states.ts";

const fdatasyncAsync = promisify(fdatasync);

/** Space for the overlays of one export, counted over its disks. */
export interface OverlayBudget {
  readonly bytesMax: number;
  /** One per open overlay: what its data file takes on disk. */
  readonly users: Set<() => number>;
  usedBytes: number;
}

export const overlayBudget = (bytesMax: number): OverlayBudget => ({ bytesMax, users: new Set(), usedBytes: 0 });

export interface Overlay extends BlockDevice {
  /** Bytes that the data takes on disk. */
  allocatedBytes(): number;
  /** Runs of blocks that the overlay answers for, in order. */
  presentRuns(): Iterable<{ readonly block: number; readonly blocks: number }>;
}

export interface OverlayOptions {
  /** Exists. The files in it are `name`.data, .map and .flushed. */
  readonly folder: string;
  readonly name: string;
  readonly budget: OverlayBudget;
  /** Of the machine: changes with every boot, and with nothing else. */
  readonly bootId: string;
}

/** Open or create. `below` stays the caller's to close. Throws DISK_FULL, OBJECT_CORRUPT. */
export function openOverlay(below: BlockDevice, options: OverlayOptions): Overlay {
  const { sizeBytes } = below;
  const { budget } = options;
  const path = join(options.folder, options.name);
  const descriptor = openSync(`${path}.data`, constants.O_RDWR | constants.O_CREAT, 0o600);
  if (fstatSync(descriptor).size !== sizeBytes) ftruncateSync(descriptor, sizeBytes);
  const map = openOverlayMap(path, { sizeBytes, bootId: options.bootId });
  const { states } = map;
  const locks = blockLocks();
  const allocatedBytes = (): number => fstatSync(descriptor).blocks * 512;
  budget.users.add(allocatedBytes);
  budget.usedBytes += allocatedBytes();

  /** Count `blocks` new ones. The sum only estimates (rewritten and zeroed blocks), so ask the file system before refusing. */
  const reserve = (block: number, blocks: number): void => {
    const wanted = (blocks - states.countData(block, blocks)) * BLOCK_SIZE;
    if (wanted === 0) return;
    if (budget.usedBytes + wanted > budget.bytesMax)
      budget.usedBytes = [...budget.users].reduce((sum, user) => sum + user(), 0);
    if (budget.usedBytes + wanted > budget.bytesMax) {
      throw new Fault("OVERLAY_FULL", `The overlay of this export has reached its bound of ${budget.bytesMax} bytes`, {
        details: { usedBytes: budget.usedBytes, bytesMax: budget.bytesMax },
        hint: "Raise overlayBytesMax of the master target, or clean up what the machine writes.",
      });
    }
    budget.usedBytes += wanted;
  };

  const mark = (block: number, blocks: number, state: typeof DATA | typeof ZERO): void => {
    if (states.set(block, blocks, state) || map.isLate) map.persist(block, blocks);
  };

  /** Whole blocks, or parts of blocks that hold data already. */
  const put = (data: Uint8Array, offset: number): void => {
    const { block, blocks } = touched(offset, data.length);
    reserve(block, blocks);
    try {
      for (let at = 0; at < data.length;) at += writeSync(descriptor, data, at, data.length - at, offset + at);
    } catch (error) {
      throw overlayWriteFault(error);
    }
    mark(block, blocks, DATA);
  };

  /** A partly covered block which does not hold data must be filled before. */
  const needsFill = (offset: number, length: number): boolean => {
    const { block, blocks } = touched(offset, length);
    const inside = blocksInside(offset, length, sizeBytes);
    if (inside.blocks === blocks) return false;
    return states.get(block) !== DATA || states.get(block + blocks - 1) !== DATA;
  };

  /** Widen a write to whole blocks, with what is there now around it. */
  const widen = async (
    data: Uint8Array,
    offset: number,
  ): Promise<{ readonly data: Uint8Array; readonly offset: number }> => {
    const start = Math.floor(offset / BLOCK_SIZE) * BLOCK_SIZE;
    const end = Math.min(Math.ceil((offset + data.length) / BLOCK_SIZE) * BLOCK_SIZE, sizeBytes);
    const wide = new Uint8Array(end - start);
    const headEnd = Math.min(start + BLOCK_SIZE, end);
    const tailStart = Math.floor((end - 1) / BLOCK_SIZE) * BLOCK_SIZE;
    if (offset > start || offset + data.length < headEnd) await read(wide.subarray(0, headEnd - start), start);
    if (tailStart > start && offset + data.length < end) await read(wide.subarray(tailStart - start), tailStart);
    wide.set(data, offset - start);
    return { data: wide, offset: start };
  };

  const read = (target: Uint8Array, offset: number): void | Promise<void> => {
    const { block, blocks } = touched(offset, target.length);
    const pending: Promise<void>[] = [];
    for (const run of states.runs(block, blocks)) {
      const from = Math.max(run.block * BLOCK_SIZE, offset);
      const to = Math.min((run.block + run.blocks) * BLOCK_SIZE, offset + target.length);
      const part = target.subarray(from - offset, to - offset);
      if (run.state === ZERO) part.fill(0);
      else if (run.state === DATA) readData(part, from);
      else {
        const result = below.read(part, from);
        if (result) pending.push(result);
      }
    }
    if (pending.length > 0) return Promise.all(pending).then(() => undefined);
  };

  const readData = (target: Uint8Array, offset: number): void => {
    for (let at = 0; at < target.length;) {
      const count = readSync(descriptor, target, at, target.length - at, offset + at);
      if (count === 0)
        throw new Fault("SOURCE_READ_FAILED", `The overlay "${path}.data" ends before ${offset + target.length}`);
      at += count;
    }
  };

  let latched: Fault | undefined;
  let running: Promise<void> | undefined;
  let waiting: Promise<void> | undefined;
  const flushOnce = async (): Promise<void> => {
    if (latched !== undefined) throw latched;
    try {
      await map.flush(() => fdatasyncAsync(descriptor));
    } catch (error) {
      latched = new Fault("SOURCE_READ_FAILED", `The overlay "${path}.data" could not be made durable`, {
        hint: "Look at the disk under the master target's state folder, then close the export and open it again.",
        cause: error,
      });
      throw latched;
    }
  };
  /** A flush that came while one runs needs another one after it; all that came meanwhile share that one. */
  const flush = (): Promise<void> => {
    if (running === undefined) {
      running = flushOnce().finally(() => (running = undefined));
      return running;
    }
    waiting ??= running
      .catch(() => undefined) // Its callers have the error.
      .then(() => {
        waiting = undefined;
        return flush();
      });
    return waiting;
  };

  const write = (data: Uint8Array, offset: number): void | Promise<void> => {
    const { block, blocks } = touched(offset, data.length);
    if (locks.free(block, blocks) && !needsFill(offset, data.length)) return put(data, offset);
    const kept = data.slice(); // The caller's buffer may be reused once the range is free again.
    return locks.hold(block, blocks, async () => {
      if (!needsFill(offset, kept.length)) return put(kept, offset);
      const wide = await widen(kept, offset);
      put(wide.data, wide.offset);
    });
  };

  const zero = (offset: number, length: number): void | Promise<void> => {
    const inside = blocksInside(offset, length, sizeBytes);
    const { block, blocks } = touched(offset, length);
    if (inside.blocks === 0) return write(new Uint8Array(length), offset);
    const work = async (): Promise<void> => {
      const start = inside.block * BLOCK_SIZE;
      const end = Math.min((inside.block + inside.blocks) * BLOCK_SIZE, sizeBytes);
      for (const [from, to] of [
        [offset, start],
        [end, offset + length],
      ] as const) {
        if (from >= to) continue;
        const wide = await widen(new Uint8Array(to - from), from);
        put(wide.data, wide.offset);
      }
      mark(inside.block, inside.blocks, ZERO);
    };
    if (!locks.free(block, blocks) || inside.blocks !== blocks) return locks.hold(block, blocks, work);
    mark(block, blocks, ZERO);
  };

  const withFua = (done: void | Promise<void>, fua: boolean | undefined): void | Promise<void> => {
    if (!fua) return done;
    return done ? done.then(flush) : flush();
  };

  return {
    sizeBytes,
    preferredBlockBytes: BLOCK_SIZE,
    readOnly: false,
    fastZero: true,
    read,
    write: (data, offset, more) => (data.length === 0 ? undefined : withFua(write(data, offset), more?.fua)),
    zero: (offset, length, more) => (length === 0 ? undefined : withFua(zero(offset, length), more?.fua)),
    trim(offset, length) {
      const { block, blocks } = blocksInside(offset, length, sizeBytes);
      if (blocks === 0) return;
      if (locks.free(block, blocks)) return mark(block, blocks, ZERO);
      return locks.hold(block, blocks, async () => mark(block, blocks, ZERO));
    },
    flush,
    async status(offset, length) {
      const { block, blocks } = touched(offset, length);
      const answer: AllocationRun[] = [];
      for (const run of states.runs(block, blocks)) {
        const from = Math.max(run.block * BLOCK_SIZE, offset);
        const to = Math.min((run.block + run.blocks) * BLOCK_SIZE, offset + length);
        if (run.state !== ABSENT)
          answer.push({ length: to - from, hole: run.state === ZERO, zero: run.state === ZERO });
        else if (below.status) answer.push(...(await below.status(from, to - from)));
        else answer.push({ length: to - from, hole: false, zero: false });
      }
      return answer;
    },
    allocatedBytes,
    *presentRuns() {
      for (const run of states.runs(0, states.blockCount))
        if (run.state !== ABSENT) yield { block: run.block, blocks: run.blocks };
    },
    async close() {
      await locks.idle();
      try {
        if (latched === undefined) await flush();
      } finally {
        budget.usedBytes -= allocatedBytes();
        budget.users.delete(allocatedBytes);
        map.close();
        closeSync(descriptor);
      }
    },
  };
}

function touched(offset: number, length: number): { readonly block: number; readonly blocks: number } {
  const block = Math.floor(offset / BLOCK_SIZE);
  return { block, blocks: Math.ceil((offset + length) / BLOCK_SIZE) - block };
}

/** Ranges of blocks held by one writer at a time, granted in order of arrival. */
function blockLocks() {
  interface Held {
    readonly block: number;
    readonly end: number;
    readonly done: Promise<void>;
  }
  const held = new Set<Held>();
  const conflicts = (block: number, blocks: number): Held[] =>
    [...held].filter((other) => other.block < block + blocks && block < other.end);
  return {
    free: (block: number, blocks: number): boolean => held.size === 0 || conflicts(block, blocks).length === 0,
    async hold(block: number, blocks: number, work: () => Promise<void>): Promise<void> {
      const earlier = conflicts(block, blocks).map((other) => other.done);
      let release = (): void => undefined;
      const entry: Held = { block, end: block + blocks, done: new Promise((resolve) => (release = resolve)) };
      held.add(entry);
      try {
        await Promise.all(earlier);
        await work();
      } finally {
        held.delete(entry);
        release();
      }
    },
    async idle(): Promise<void> {
      while (held.size > 0) await Promise.all([...held].map((entry) => entry.done));
    },
  };
}
