/**
 * The agent's end of the tap protocol. One connection; calls may overlap. When it is lost, every call in flight fails with
 * PEER_UNREACHABLE, and the tap releases whatever this connection held; it goes on serving the machine. Connect again, look at
 * `disks()` for outstanding cuts, and commit, ship or discard each of them.
 *
 * The order of a group cut: `hold` all disks of all members, then `mark` all, then `release` all; the cut counts only when every
 * release says `heldThroughout`. Then for each disk: `cutExtents`, `readCut` …, `shipped`; and at last `committed` or `discard`.
 *
 * - A cut is *per disk* a set and a view; that cycle k+1 needs cycle k is the caller's to know: when k is discarded or void, a later cut
 *   that was already marked is no point, and what follows it is one only after the returned blocks were cut again.
 * - The sweep may read the image directly (`image` of the status) instead of calling `readLive`: both see the live disk, and
 *   a block that is being written is in the dirty set already.
 */
import { connect } from "node:net";
import type { Socket } from "node:net";
import { Fault } from "#model/fault.ts";
import type { BlockRun } from "#model/block-set.ts";
import {
  createTapFrameReader,
  decodeRuns,
  DEFAULT_HOLD_BOUND_MS,
  encodeRuns,
  encodeTapFrameHead,
  resultOfAnswer,
} from "./tap-protocol.ts";
import type { TapAnswer, TapDiskConfig, TapDiskStatus, TapMethod, TapMethods } from "./tap-protocol.ts";

export interface TapClient {
  /** Settles (never rejects) when the connection is gone. */
  readonly closed: Promise<void>;
  /**
   * Throws IMAGE_MISSING, IMAGE_INVALID, IMAGE_IN_USE, DISK_ALREADY_PROTECTED. The same disk with the same config again is fine; the same image at the
   * same socket under another id takes the disk over, unsynced as a whole, and whoever has it attached does not notice.
   */
  addDisk(disk: TapDiskConfig): Promise<TapDiskStatus>;
  /** Stops serving the disk; its state file says "clean". Throws NOT_FOUND. */
  removeDisk(diskId: string): Promise<void>;
  disks(): Promise<readonly TapDiskStatus[]>;
  /** Like `disks`, and starts a new period for `holdMsMax`. */
  report(): Promise<readonly TapDiskStatus[]>;
  /** Settles when no write of these disks is in flight and none will start before the release, at most `boundMs` later. Throws HOLD_EXPIRED, REFUSED (another cut is held). */
  hold(diskIds: readonly string[], cutId: number, boundMs?: number): Promise<void>;
  /** Freezes the dirty sets into cut `cutId`. Throws HOLD_EXPIRED when a hold has ended meanwhile: nothing is marked on that disk. */
  mark(
    diskIds: readonly string[],
    cutId: number,
  ): Promise<readonly { readonly diskId: string; readonly blocks: number }[]>;
  /** `heldThroughout: false`: a bound was reached before, the cut does not count for the group. */
  release(
    diskIds: readonly string[],
    cutId: number,
  ): Promise<{ readonly heldThroughout: boolean; readonly heldMs: number }>;
  /** The blocks of the cut, in order. Throws NOT_FOUND, CUT_OVERFLOWED. */
  cutExtents(diskId: string, cutId: number): Promise<readonly BlockRun[]>;
  /** The blocks of `runs`, one after the other, as of the cut; at most MAX_READ_BLOCKS, all of them in the cut. The partial last block of a disk is padded with zeroes. Throws NOT_FOUND, CUT_OVERFLOWED, SOURCE_READ_FAILED. */
  readCut(diskId: string, cutId: number, runs: readonly BlockRun[]): Promise<Uint8Array>;
  /** The read-out is complete: old data need not be kept any more. The block set stays until `committed` or `discard`. */
  shipped(diskId: string, cutId: number): Promise<void>;
  /** The store has it: forget the cut; `swept` blocks are no longer unsynced. Throws NOT_FOUND (another life of the tracker: nothing is forgotten), CUT_OVERFLOWED. */
  committed(diskId: string, cutId: number, swept: readonly BlockRun[]): Promise<void>;
  /** The cut will not be committed: its blocks are dirty again. An unknown cut is fine. */
  discard(diskId: string, cutId: number): Promise<void>;
  /** Blocks still to be swept, in order, at most about `limit` runs from block `from`. */
  unsynced(diskId: string, from?: number, limit?: number): Promise<readonly BlockRun[]>;
  /** Like `readCut`, of the live disk. */
  readLive(diskId: string, runs: readonly BlockRun[]): Promise<Uint8Array>;
  /** A resync: discards every outstanding cut and makes the whole disk unsynced; durable when it settles. */
  markAllUnsynced(diskId: string, reason: string): Promise<void>;
  /** A clean stop of the whole tap: disks closed, state files "clean"; the process then ends. */
  stop(): Promise<void>;
  close(): void;
}

/** Throws PEER_UNREACHABLE when nothing listens at `socketPath`. */
export async function connectTap(
  socketPath: string,
  options: { readonly callTimeoutMs?: number } = {},
): Promise<TapClient> {
  const socket = await open(socketPath);
  const wire = createWire(socket, options.callTimeoutMs ?? 30_000);
  return {
    closed: wire.closed,
    addDisk: async (disk) => (await wire.call("addDisk", disk)).result,
    removeDisk: async (diskId) => void (await wire.call("removeDisk", { diskId })),
    disks: async () => (await wire.call("disks", {})).result,
    report: async () => (await wire.call("report", {})).result,
    hold: async (diskIds, cutId, boundMs = DEFAULT_HOLD_BOUND_MS) =>
      void (await wire.call("hold", { diskIds, cutId, boundMs })),
    mark: async (diskIds, cutId) => (await wire.call("mark", { diskIds, cutId })).result,
    release: async (diskIds, cutId) => (await wire.call("release", { diskIds, cutId })).result,
    cutExtents: (diskId, cutId) =>
      allPages(async (from) => wire.call("cutExtents", { diskId, cutId, from }), 0, Number.POSITIVE_INFINITY),
    readCut: async (diskId, cutId, runs) => (await wire.call("readCut", { diskId, cutId }, encodeRuns(runs))).payload,
    shipped: async (diskId, cutId) => void (await wire.call("shipped", { diskId, cutId })),
    committed: async (diskId, cutId, swept) =>
      void (await wire.call("committed", { diskId, cutId }, encodeRuns(swept))),
    discard: async (diskId, cutId) => void (await wire.call("discard", { diskId, cutId })),
    unsynced: (diskId, from = 0, limit = Number.POSITIVE_INFINITY) =>
      allPages(async (next) => wire.call("unsynced", { diskId, from: next }), from, limit),
    readLive: async (diskId, runs) => (await wire.call("readLive", { diskId }, encodeRuns(runs))).payload,
    markAllUnsynced: async (diskId, reason) => void (await wire.call("markAllUnsynced", { diskId, reason })),
    stop: async () => void (await wire.call("stop", {})),
    close: () => socket.destroy(),
  };
}

async function allPages(
  page: (from: number) => Promise<{ readonly result: { readonly next: number }; readonly payload: Uint8Array }>,
  from: number,
  limit: number,
): Promise<readonly BlockRun[]> {
  const runs: BlockRun[] = [];
  for (let next = from; next >= 0 && runs.length < limit;) {
    const { result, payload } = await page(next);
    for (const run of decodeRuns(payload)) runs.push(run);
    next = result.next;
  }
  return runs.length > limit ? runs.slice(0, limit) : runs;
}

function open(socketPath: string): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const socket = connect({ path: socketPath });
  socket.once("connect", () => resolve(socket));
  socket.once("error", (cause) => reject(unreachable(`No tap answers at "${socketPath}"`, cause)));
  return promise;
}

interface Wire {
  readonly closed: Promise<void>;
  call<M extends TapMethod>(
    method: M,
    params: TapMethods[M]["params"],
    payload?: Uint8Array,
  ): Promise<{ result: TapMethods[M]["result"]; payload: Uint8Array }>;
}

interface Call {
  readonly resolve: (value: { result: never; payload: Uint8Array }) => void;
  readonly reject: (reason: Fault) => void;
  readonly timer: NodeJS.Timeout;
}

function createWire(socket: Socket, timeoutMs: number): Wire {
  const calls = new Map<number, Call>();
  const closed = Promise.withResolvers<void>();
  const reader = createTapFrameReader();
  let lastId = 0;
  let ended = false;

  const settle = (id: number): Call | undefined => {
    const call = calls.get(id);
    if (call === undefined) return undefined; // It timed out before.
    clearTimeout(call.timer);
    calls.delete(id);
    return call;
  };
  socket.on("data", (chunk) => {
    try {
      for (const { header, payload } of reader.push(chunk)) {
        const answer = header as TapAnswer;
        const call = settle(answer.id);
        try {
          // The protocol's table says that this result belongs to that method.
          call?.resolve({ result: resultOfAnswer(answer) as never, payload });
        } catch (fault) {
          call?.reject(fault as Fault);
        }
      }
    } catch (fault) {
      socket.destroy(fault as Fault);
    }
  });
  socket.removeAllListeners("error");
  let cause: unknown;
  socket.on("error", (error) => (cause = error));
  socket.once("close", () => {
    ended = true;
    for (const id of [...calls.keys()]) settle(id)?.reject(unreachable("The connection to the tap was lost", cause));
    closed.resolve();
  });

  return {
    closed: closed.promise,
    call(method, params, payload) {
      const { promise, resolve, reject } = Promise.withResolvers<{ result: never; payload: Uint8Array }>();
      if (ended) return Promise.reject(unreachable("The connection to the tap is closed", cause));
      const id = ++lastId;
      const timer = setTimeout(() => {
        calls.delete(id);
        reject(new Fault("TIMED_OUT", `The tap did not answer "${method}" within ${timeoutMs} ms`));
      }, timeoutMs);
      calls.set(id, { resolve, reject, timer });
      socket.write(encodeTapFrameHead({ id, method, params }, payload?.length ?? 0));
      if (payload !== undefined && payload.length > 0) socket.write(payload);
      return promise;
    },
  };
}

function unreachable(message: string, cause: unknown): Fault {
  return new Fault("PEER_UNREACHABLE", message, {
    cause,
    hint: "Look at the tap's log; the agent starts it again by itself.",
  });
}
