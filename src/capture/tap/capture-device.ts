/**
 * Change tracking around any BlockDevice: a tap's image, or the overlay of a machine that runs at the recovery site.
 *
 * Three sets of blocks and what moves between them:
 *
 * ```
 *            write ──► dirty ──mark──► cut (frozen) ──committed──► clean
 *                        ▲ ▲             │
 *                        │ └─discard, void
 *  start, resync ──► unsynced ──swept and committed──► clean
 * ```
 *
 * Invariants:
 * - a block is in `dirty` before the device is asked to change it, and its region's intent bit is durable before that;
 * - nothing leaves dirty ∪ cuts ∪ unsynced unless the store has it (`committed`);
 * - while a cut is open, each of its blocks can be read as it was at the mark; when memory for that runs out, the cut is void, and the
 *   machine's write goes on;
 * - a hold ends by itself at its bound, whoever asked for it has died or not.
 *
 * Source: docs/protocol.md, "Agent and tap"; docs/decisions/0003 and 0008.
 */
import { BlockSet } from "#model/block-set.ts";
import type { BlockRun } from "#model/block-set.ts";
import { Fault, isFault } from "#model/fault.ts";
import { BLOCK_SIZE, blockCount } from "#model/units.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import type { Clock } from "#ports/clock.ts";
import { closeCut, freezeCut, overflowed, readBlocks, readFrozen, saveBlocks } from "./frozen-cut.ts";
import type { FrozenCut } from "./frozen-cut.ts";
import { createHolder } from "./holder.ts";
import type { TapCutStatus } from "./tap-protocol.ts";
import { createWriteGate } from "./write-gate.ts";
import type { WriteIntent } from "./write-intent.ts";

export const DEFAULT_FROZEN_BYTES_MAX = 64 << 20;
const MAX_CUTS = 64;
/** Zeroing and trimming pass the gate in pieces, so that a cut need not wait for gigabytes. */
const PIECE_BYTES = 16 << 20;
const DEFAULT_INTENT_CLEAR_MS = 5000;

export interface CaptureOptions {
  readonly device: BlockDevice;
  readonly clock: Clock;
  /** Without one, a restart has to sweep everything: `unsynced` says what this start has to. */
  readonly intent?: WriteIntent;
  /** What is to be swept at the start. Default: what the intent found; without an intent, everything. */
  readonly unsynced?: { readonly runs: readonly BlockRun[]; readonly reason: string };
  readonly frozenBytesMax?: number;
  /** How long after a commit the intent is cleared. */
  readonly intentClearMs?: number;
}

export interface TrackerNumbers {
  readonly unsyncedBytes: number;
  readonly sweepReason: string;
  readonly dirtyBytes: number;
  readonly writtenBytes: number;
  readonly holdMsMax: number;
  readonly frozenBytes: number;
  readonly cuts: readonly TapCutStatus[];
  readonly writeFailure: string;
}

export interface CaptureDevice extends BlockDevice {
  readonly blocks: number;
  /** Settles when no write is in flight; none starts until `release` or until `boundMs` after this call. Throws HOLD_EXPIRED, REFUSED. */
  hold(cutId: number, boundMs: number): Promise<void>;
  /** Freeze the dirty set; returns its blocks. Throws HOLD_EXPIRED unless `hold(cutId)` settled and still holds. */
  mark(cutId: number): number;
  /** `heldThroughout` only when nothing ended the hold before. */
  release(cutId: number): { readonly heldThroughout: boolean; readonly heldMs: number };
  /** Who held is gone: end the hold of `cutId`, as if its bound were reached. */
  expire(cutId: number): void;
  /** Blocks of a cut from block `from`, in order. Throws NOT_FOUND, CUT_OVERFLOWED. */
  cutRuns(cutId: number, from?: number): Iterable<BlockRun>;
  /** Throws NOT_FOUND, CUT_OVERFLOWED, SOURCE_READ_FAILED, PROTOCOL_INVALID (a block that is not in the cut). */
  readCut(cutId: number, runs: readonly BlockRun[], target: Uint8Array): Promise<void>;
  shipped(cutId: number): void;
  committed(cutId: number, swept: readonly BlockRun[]): void;
  discard(cutId: number): void;
  unsyncedRuns(from?: number): Iterable<BlockRun>;
  readLive(runs: readonly BlockRun[], target: Uint8Array): Promise<void>;
  /** A resync: every cut is discarded, the whole disk is unsynced; durable when it settles. */
  markAllUnsynced(reason: string): Promise<void>;
  /** Numbers as of now; `newPeriod` starts `holdMsMax` anew. */
  numbers(newPeriod?: boolean): TrackerNumbers;
  /**
   * The clean stop: waits for what is in flight, flushes, closes the device and then the intent, for which `imageMtimeNs` looks at the
   * closed image. Nothing may be written any more.
   */
  stop(imageMtimeNs?: () => bigint): Promise<void>;
}

export function createCaptureDevice(options: CaptureOptions): CaptureDevice {
  const { device, clock, intent } = options;
  const blocks = blockCount(device.sizeBytes);
  const frozenBytesMax = options.frozenBytesMax ?? DEFAULT_FROZEN_BYTES_MAX;
  const gate = createWriteGate({
    covers: (block, count) => intent?.covers(block, count) ?? true,
    cover: (block, count) => intent?.set(block, count) ?? Promise.resolve(),
  });
  const holder = createHolder(gate, clock);
  const cuts = new Map<number, FrozenCut>();
  const unsynced = new BlockSet(blocks);
  let dirty = new BlockSet(blocks);
  let sweepReason = "";
  let openCuts = 0;
  let frozenBytes = 0;
  let writtenBytes = 0;
  let writeFailure = "";
  let commits = 0;
  let clearTimer: NodeJS.Timeout | undefined;
  let stopping = false;

  const initial = options.unsynced ??
    intent?.found ?? { runs: [{ start: 0, count: blocks }], reason: "initial sync: the disk was not tracked before" };
  for (const run of initial.runs) unsynced.add(run.start, run.count);
  if (unsynced.count > 0) sweepReason = initial.reason;

  /** One change of the device, as the gate issues it. */
  function issue(block: number, count: number, action: () => void | Promise<void>): void | Promise<void> {
    dirty.add(block, count);
    const saving = openCuts > 0 ? copyBeforeWrite(block, count) : undefined;
    if (saving instanceof Promise) return saving.then(action).catch((error: unknown) => failed(block, count, error));
    let result: void | Promise<void>;
    try {
      result = action();
    } catch (error) {
      return failed(block, count, error);
    }
    return result instanceof Promise ? result.catch((error: unknown) => failed(block, count, error)) : undefined;
  }

  /** A failed or short write: the blocks hold anything. They are dirty, so the next cut reads them again. */
  function failed(block: number, count: number, error: unknown): never {
    dirty.add(block, count);
    if (writeFailure === "") writeFailure = error instanceof Error ? error.message : String(error);
    throw error;
  }

  function copyBeforeWrite(block: number, count: number): void | Promise<void> {
    const reading: Promise<void>[] = [];
    for (const cut of cuts.values()) {
      if (cut.state !== "open" || !cut.exposed.intersects(block, count)) continue;
      const runs = [...cut.exposed.runs(block, block + count)];
      const bytes = runs.reduce((sum, run) => sum + run.count, 0) * BLOCK_SIZE;
      if (frozenBytes + bytes > frozenBytesMax) {
        makeVoid(cut, `more than ${frozenBytesMax} bytes of old data would have to be kept for it`);
        continue;
      }
      for (const run of runs) {
        const old = Buffer.allocUnsafeSlow(run.count * BLOCK_SIZE);
        const keep = (): void => {
          if (cut.state !== "open") return;
          saveBlocks(cut, run, old);
          frozenBytes += old.length;
        };
        const lost = (error: unknown): void => {
          if (!isFault(error)) throw error;
          makeVoid(cut, `its old data cannot be read (${error.message})`);
        };
        try {
          const result = readBlocks(device, run, old);
          if (result instanceof Promise) reading.push(result.then(keep).catch(lost));
          else keep();
        } catch (error) {
          lost(error);
        }
      }
    }
    if (reading.length > 0) return Promise.all(reading).then(() => undefined);
  }

  function makeVoid(cut: FrozenCut, failure: string): void {
    if (cut.state !== "open") return;
    cut.failure = failure;
    dirty.merge(cut.set);
    cut.set = new BlockSet(blocks);
    openCuts--;
    frozenBytes -= closeCut(cut, "void");
  }

  function change(offset: number, length: number, action: () => void | Promise<void>): void | Promise<void> {
    const block = Math.floor(offset / BLOCK_SIZE);
    const count = Math.floor((offset + length - 1) / BLOCK_SIZE) - block + 1;
    writtenBytes += length;
    return gate.pass(block, count, () => issue(block, count, action));
  }

  function changeInPieces(
    offset: number,
    length: number,
    action: (offset: number, length: number) => void | Promise<void>,
  ): void | Promise<void> {
    if (length <= PIECE_BYTES) return change(offset, length, () => action(offset, length));
    return (async () => {
      for (let at = offset; at < offset + length;) {
        const piece = Math.min(PIECE_BYTES - (at % PIECE_BYTES), offset + length - at);
        const start = at;
        await change(start, piece, () => action(start, piece));
        at += piece;
      }
    })();
  }

  /** Durable behind `done`: a flush after the change, so that a cut waits for the change alone. */
  function durable(done: void | Promise<void>, fua: boolean | undefined): void | Promise<void> {
    if (fua !== true) return done;
    return done instanceof Promise ? done.then(() => device.flush()) : device.flush();
  }

  function cutOf(cutId: number): FrozenCut {
    const cut = cuts.get(cutId);
    if (cut === undefined) {
      throw new Fault("NOT_FOUND", `The tap knows no cut "${cutId}"`, {
        details: { cut: cutId },
        hint: "It was restarted since; what the cut held is being swept again.",
      });
    }
    return cut;
  }

  function usableCut(cutId: number): FrozenCut {
    const cut = cutOf(cutId);
    if (cut.state === "void") throw overflowed(cut);
    return cut;
  }

  function dropCut(cut: FrozenCut): void {
    if (cut.state === "open") {
      openCuts--;
      frozenBytes -= closeCut(cut, "shipped");
    }
    cuts.delete(cut.cutId);
  }

  function discard(cutId: number): void {
    const cut = cuts.get(cutId);
    if (cut === undefined) return; // A repeat, or of another life of the tracker.
    dirty.merge(cut.set);
    dropCut(cut);
  }

  function isClean(block: number, count: number): boolean {
    if (dirty.intersects(block, count) || unsynced.intersects(block, count)) return false;
    for (const cut of cuts.values()) if (cut.set.intersects(block, count)) return false;
    return true;
  }

  function clearIntentLater(): void {
    if (intent === undefined || clearTimer !== undefined || stopping) return;
    clearTimer = setTimeout(() => {
      clearTimer = undefined;
      void clearIntent(intent);
    }, options.intentClearMs ?? DEFAULT_INTENT_CLEAR_MS);
    clearTimer.unref();
  }

  async function clearIntent(of: WriteIntent): Promise<void> {
    if (!of.clearable(isClean)) return;
    const before = commits;
    try {
      await device.flush();
    } catch (error) {
      if (!isFault(error)) throw error;
      if (writeFailure === "") writeFailure = error.message;
      return; // The bits stay.
    }
    if (stopping) return; // The stop clears by itself.
    // A commit during the flush may be of a write that the flush did not cover.
    if (commits === before) of.clear(isClean);
    else clearIntentLater();
  }

  async function stop(imageMtimeNs?: () => bigint): Promise<void> {
    if (stopping) return;
    stopping = true;
    clearTimeout(clearTimer);
    await gate.hold();
    for (const cutId of [...cuts.keys()]) discard(cutId);
    let clean = imageMtimeNs !== undefined;
    try {
      await device.flush();
      intent?.clear(isClean);
    } catch (error) {
      if (!isFault(error)) throw error;
      clean = false; // The bits stay, and the header does not say "clean".
    }
    await device.close();
    await intent?.close(clean && imageMtimeNs !== undefined ? { imageMtimeNs: imageMtimeNs() } : undefined);
  }

  return {
    sizeBytes: device.sizeBytes,
    preferredBlockBytes: Math.max(device.preferredBlockBytes, BLOCK_SIZE),
    readOnly: device.readOnly,
    ...(device.fastZero === undefined ? {} : { fastZero: device.fastZero }),
    blocks,
    read: (target, offset) => device.read(target, offset),
    write: (data, offset, writeOptions) =>
      durable(
        change(offset, data.length, () => device.write(data, offset)),
        writeOptions?.fua,
      ),
    flush: () => device.flush(),
    zero(offset, length, zeroOptions) {
      const how = { mayTrim: zeroOptions?.mayTrim ?? false };
      return durable(
        changeInPieces(offset, length, (at, bytes) => device.zero(at, bytes, how)),
        zeroOptions?.fua,
      );
    },
    trim: (offset, length) => changeInPieces(offset, length, (at, bytes) => device.trim(at, bytes)),
    ...(device.status === undefined
      ? {}
      : { status: (offset: number, length: number) => device.status!(offset, length) }),
    close: () => stop(),

    hold: (cutId, boundMs) => holder.hold(cutId, boundMs),
    mark(cutId) {
      holder.check(cutId);
      if (cuts.has(cutId)) throw new Fault("REFUSED", `Cut "${cutId}" exists already`, { details: { cut: cutId } });
      if (cuts.size >= MAX_CUTS) {
        throw new Fault("REFUSED", `${MAX_CUTS} cuts are neither committed nor discarded`, {
          hint: "Discard the cuts that `disks` reports and nobody ships.",
        });
      }
      cuts.set(cutId, freezeCut(cutId, clock.now(), dirty));
      openCuts++;
      const { count } = dirty;
      dirty = new BlockSet(blocks);
      return count;
    },
    release: (cutId) => holder.release(cutId),
    expire: (cutId) => holder.expire(cutId),
    cutRuns: (cutId, from = 0) => usableCut(cutId).set.runs(from),
    readCut: (cutId, runs, target) => readFrozen(cutOf(cutId), device, runs, target),
    shipped(cutId) {
      const cut = usableCut(cutId);
      if (cut.state === "shipped") return; // A repeat.
      openCuts--;
      frozenBytes -= closeCut(cut, "shipped");
    },
    committed(cutId, swept) {
      const cut = usableCut(cutId);
      for (const run of swept) unsynced.delete(run.start, run.count);
      if (unsynced.count === 0) sweepReason = "";
      dropCut(cut);
      commits++;
      clearIntentLater();
    },
    discard,
    unsyncedRuns: (from = 0) => unsynced.runs(from),
    async readLive(runs, target) {
      let at = 0;
      for (const run of runs) {
        const bytes = run.count * BLOCK_SIZE;
        await readBlocks(device, run, target.subarray(at, at + bytes));
        at += bytes;
      }
    },
    async markAllUnsynced(reason) {
      for (const cutId of [...cuts.keys()]) discard(cutId);
      unsynced.addAll();
      sweepReason = reason;
      await intent?.set(0, blocks);
    },
    numbers(newPeriod = false) {
      return {
        unsyncedBytes: unsynced.count * BLOCK_SIZE,
        sweepReason,
        dirtyBytes: dirty.count * BLOCK_SIZE,
        writtenBytes,
        holdMsMax: holder.longestMs(newPeriod),
        frozenBytes,
        cuts: [...cuts.values()].map(({ cutId, state, set, markedAtMs }) => ({
          cutId,
          state,
          blocks: set.count,
          markedAtMs,
        })),
        writeFailure,
      };
    },
    stop,
  };
}
