/**
 * Commits what a machine writes to a read-write export to the export's own branch, every few seconds, over all its disks at once.
 *
 * One round: sweep what a restart left uncertain, hold all disks, mark, release, make the overlays durable, read the cuts,
 * commit, write the barrier. It is the source's way in miniature, and it speaks to the same `MoverGroup`; only that there is no link between.
 *
 * Invariants:
 * - nothing is committed that a power loss could take back from the overlay: the overlays are flushed between mark and commit;
 * - a block leaves the dirty set only once its commit is acknowledged; whatever fails merges back, and a later cycle has it;
 * - a cut counts only if every disk was held from before the first mark until after the last;
 * - the machine waits for nothing but the bounded hold.
 */
import { randomBytes } from "node:crypto";
import { EventEmitter, once } from "node:events";
import { Fault, isFault } from "#model/fault.ts";
import { KIND_DELTA, KIND_SWEEP, type FrameKind } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { Clock } from "#ports/clock.ts";
import type { Peer } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import { exportPacker } from "./export-frames.ts";
import type { MoverGroup } from "./mover-group.ts";

export interface CapturedDisk {
  readonly diskId: string;
  readonly capture: ChangeTracking;
}

/** What is asked of a disk's change tracking; `CaptureDevice` of the tap has it. */
export interface ChangeTracking {
  readonly sizeBytes: number;
  flush(): void | Promise<void>;
  hold(cutId: number, boundMs: number): Promise<void>;
  mark(cutId: number): number;
  release(cutId: number): { readonly heldThroughout: boolean };
  cutRuns(cutId: number): Iterable<BlockRun>;
  readCut(cutId: number, runs: readonly BlockRun[], target: Uint8Array): Promise<void>;
  shipped(cutId: number): void;
  committed(cutId: number, swept: readonly BlockRun[]): void;
  discard(cutId: number): void;
  unsyncedRuns(): Iterable<BlockRun>;
  readLive(runs: readonly BlockRun[], target: Uint8Array): Promise<void>;
  numbers(): { readonly dirtyBytes: number; readonly unsyncedBytes: number; readonly writtenBytes: number };
}

interface BlockRun {
  readonly start: number;
  readonly count: number;
}

export interface ExportCommitter {
  readonly barrier: number;
  readonly barrierCutAtMs: number;
  /** Why nothing is committed at the moment, or for good (FENCED). */
  readonly fault: Fault | undefined;
  /** Commit what there is, now. Throws what the store said; REFUSED after FENCED. */
  commitAll(): Promise<void>;
  /** No more rounds; settles when the last one has ended. */
  stop(): Promise<void>;
}

export interface ExportCommitterOptions {
  readonly site: string;
  readonly branch: string;
  readonly groupId: string;
  readonly groupEpoch: number;
  readonly group: MoverGroup;
  readonly disks: readonly CapturedDisk[];
  readonly bootId: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly intervalMs?: number;
  readonly onChange: () => void;
}

const INTERVAL_MS = 3_000;
const HOLD_MS = 500;
/** Swept in one cycle at most: a restart's sweep must not delay the next barrier for ever. */
const SWEEP_BLOCKS = (64 << 20) / BLOCK_SIZE;
const READ_BLOCKS = (1 << 20) / BLOCK_SIZE;
const RETRY_MS = 1_000;

export function startExportCommitter(options: ExportCommitterOptions): ExportCommitter {
  const { group, disks, clock, log } = options;
  const peer = localPeer(options.site);
  const sourceLife = randomBytes(4).toString("hex");
  const stop = new AbortController();
  let stream: { readonly streamId: string; nextCycle: number } | undefined;
  let barrier = 0;
  let barrierCutAtMs = 0;
  let fault: Fault | undefined;
  /** Something was committed that no barrier names yet: after a sweep a clean cut is due even if nobody writes any more. */
  let barrierDue = false;

  const openStream = async (): Promise<NonNullable<typeof stream>> => {
    if (stream) return stream;
    const opened = await group.open(peer.renew(), {
      groupId: options.groupId,
      branch: options.branch,
      groupEpoch: options.groupEpoch,
      sourceSite: options.site,
      orderVersion: 0,
      sourceLife,
      disks: disks.map(({ diskId, capture }) => ({ diskId, sizeBytes: capture.sizeBytes })),
    });
    stream = { streamId: opened.streamId, nextCycle: opened.barrier + 1 };
    return stream;
  };

  /** Hold all, mark all, release all. Throws HOLD_EXPIRED; no cut is left behind then. */
  const cutAll = async (cycle: number): Promise<number> => {
    try {
      const held = await Promise.allSettled(disks.map((disk) => disk.capture.hold(cycle, HOLD_MS)));
      for (const one of held) if (one.status === "rejected") throw one.reason;
      for (const disk of disks) disk.capture.mark(cycle);
      const cutAtMs = clock.now();
      if (!disks.map((disk) => disk.capture.release(cycle)).every(({ heldThroughout }) => heldThroughout)) {
        throw new Fault("HOLD_EXPIRED", `The hold for cycle ${cycle} ended before all disks were marked`);
      }
      return cutAtMs;
    } catch (error) {
      for (const disk of disks) disk.capture.release(cycle);
      discardAll(cycle);
      throw error;
    }
  };

  const discardAll = (cycle: number): void => {
    for (const disk of disks) disk.capture.discard(cycle);
  };

  const ship = async (
    disk: CapturedDisk,
    cycle: number,
    runs: readonly BlockRun[],
    kind: FrameKind,
    read: ChangeTracking["readLive"],
  ): Promise<number> => {
    const { streamId } = await openStream();
    let records = 0;
    const packer = exportPacker(kind, async (payload, count) => {
      records += count;
      await group.receive({ streamId, diskId: disk.diskId, cycle }, payload);
    });
    const buffer = new Uint8Array(READ_BLOCKS * BLOCK_SIZE);
    for (const run of runs) {
      for (let start = run.start; start < run.start + run.count; start += READ_BLOCKS) {
        const count = Math.min(READ_BLOCKS, run.start + run.count - start);
        const part = buffer.subarray(0, count * BLOCK_SIZE);
        await read([{ start, count }], part);
        await packer.add(part, start);
      }
    }
    await packer.flush();
    return records;
  };

  /** One cycle, from sweep to commit. */
  const round = async (): Promise<void> => {
    const own = await openStream();
    const cycle = own.nextCycle++;
    const wasSynced = disks.every((disk) => disk.capture.numbers().unsyncedBytes === 0);
    const counts = new Map<string, number>();
    const swept = new Map<string, readonly BlockRun[]>();
    for (const disk of disks) {
      const runs = [...firstBlocks(disk.capture.unsyncedRuns(), SWEEP_BLOCKS)];
      swept.set(disk.diskId, runs);
      counts.set(
        disk.diskId,
        await ship(disk, cycle, runs, KIND_SWEEP, (live, target) => disk.capture.readLive(live, target)),
      );
    }
    const cutAtMs = await cutAll(cycle);
    try {
      await Promise.all(disks.map((disk) => disk.capture.flush()));
      for (const disk of disks) {
        const delta = await ship(disk, cycle, [...disk.capture.cutRuns(cycle)], KIND_DELTA, (runs, target) =>
          disk.capture.readCut(cycle, runs, target),
        );
        counts.set(disk.diskId, (counts.get(disk.diskId) ?? 0) + delta);
        disk.capture.shipped(cycle);
      }
      const numbers = disks.map((disk) => disk.capture.numbers());
      const committed = await group.commit({
        streamId: own.streamId,
        cycle,
        cutAtMs,
        consistent: true,
        point: wasSynced,
        syncTotalBytes: 0,
        disks: disks.map((disk) => ({
          diskId: disk.diskId,
          records: counts.get(disk.diskId) ?? 0,
          syncRemainingBytes: Math.max(
            0,
            disk.capture.numbers().unsyncedBytes - countBytes(swept.get(disk.diskId) ?? []),
          ),
          tracker: { bootId: options.bootId, generation: "0" },
        })),
        backlogBytes: numbers.reduce((sum, one) => sum + one.dirtyBytes, 0),
        writtenBytes: numbers.reduce((sum, one) => sum + one.writtenBytes, 0),
      });
      for (const disk of disks) disk.capture.committed(cycle, swept.get(disk.diskId) ?? []);
      barrierDue = !committed.barrier;
      if (committed.barrier) [barrier, barrierCutAtMs] = [committed.barrierNumber, committed.barrierCutAtMs];
    } catch (error) {
      // The commit may have landed. What it held is dirty again and goes into a later cycle too: the same data twice does no harm.
      discardAll(cycle);
      throw error;
    }
  };

  const pending = (): boolean =>
    barrierDue ||
    disks.some((disk) => disk.capture.numbers().dirtyBytes > 0 || disk.capture.numbers().unsyncedBytes > 0);

  let running: Promise<void> = Promise.resolve();
  /** Rounds never overlap, whoever asks for them. */
  const inTurn = (work: () => Promise<void>): Promise<void> => {
    const done = running.then(work);
    running = done.catch(() => undefined); // Its caller has the error.
    return done;
  };

  const tryRound = async (): Promise<void> => {
    if (fault?.code === "FENCED" || !pending()) return;
    try {
      await round();
      fault = undefined;
    } catch (error) {
      if (!isFault(error)) throw error;
      stream = undefined; // Look at the store anew, and drop what was received of this cycle.
      fault = error;
      log.warn("A cut of the export was not committed", { fault: error.toJSON() });
      throw error;
    } finally {
      options.onChange();
    }
  };

  const loop = (async () => {
    while (!stop.signal.aborted && fault?.code !== "FENCED") {
      const waitMs = await inTurn(tryRound).then(
        () => options.intervalMs ?? INTERVAL_MS,
        (error: unknown) => {
          if (!isFault(error)) throw error;
          return RETRY_MS; // It is in `fault`, and in the log.
        },
      );
      await clock.sleep(waitMs, stop.signal).catch(() => undefined); // Only `stop` ends it early.
    }
  })();

  return {
    get barrier() {
      return barrier;
    },
    get barrierCutAtMs() {
      return barrierCutAtMs;
    },
    get fault() {
      return fault;
    },
    async commitAll() {
      // A first round may only sweep; the clean one behind it makes the barrier.
      while (pending() && fault?.code !== "FENCED") await inTurn(tryRound);
      if (fault) throw fault;
    },
    async stop() {
      stop.abort();
      await loop;
      await running;
      peer.end();
    },
  };
}

function* firstBlocks(runs: Iterable<BlockRun>, limit: number): Generator<BlockRun> {
  let left = limit;
  for (const run of runs) {
    if (left === 0) return;
    const count = Math.min(run.count, left);
    left -= count;
    yield { start: run.start, count };
  }
}

function countBytes(runs: readonly BlockRun[]): number {
  return runs.reduce((sum, run) => sum + run.count, 0) * BLOCK_SIZE;
}

/** The export is its own source: the group's stream has a peer, and this is one without a link. */
function localPeer(site: string) {
  const closing = new EventEmitter();
  return {
    renew(): Peer {
      closing.emit("closed");
      const closed = once(closing, "closed").then(() => undefined);
      return {
        identity: { site, role: "process-server", name: "export" },
        call: () => Promise.reject(new RangeError("Nobody calls an export's own end")),
        notify: () => Promise.reject(new RangeError("Nobody notifies an export's own end")),
        closed,
        close: () => undefined,
      };
    },
    end: () => closing.emit("closed"),
  };
}
