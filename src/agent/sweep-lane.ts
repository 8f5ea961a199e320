/**
 * One lane of the sweep: owns its descriptor on the image, its compressor and its connection. Reads stripes, packs them, sends them.
 *
 * Several lanes share a task through two words of shared memory: the number of the next stripe, and a flag to stop. Nothing else crosses
 * threads. Stripes are handed out in order and a lane that took one finishes it, so that what all lanes together have swept is always the
 * first N stripes.
 *
 * Reads are synchronous: a lane is a thread of its own, and with a warm page cache that is the fastest there is.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { COMPARE_MS, hasStripe } from "#model/comparison.ts";
import { Fault } from "#model/fault.ts";
import { createFramePacker } from "#model/frame-packer.ts";
import { KIND_SWEEP, MAX_FRAME_BLOCKS, PIECE_BYTES } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { Address, Link, Peer } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import { createFrameTools } from "./frame-tools.ts";
import { createStripeComparer, readComparison } from "./stripe-comparer.ts";

export interface SweepTask {
  readonly groupId: string;
  readonly diskId: string;
  readonly cycle: number;
  readonly image: string;
  readonly sizeBytes: number;
  readonly compress: boolean;
  /** Pairs of first block and number of blocks, one pair for each stripe. Shared. */
  readonly stripes: Float64Array<SharedArrayBuffer>;
  /** The stripes of the disk that the replica has data of, a bit each: these are compared first. Undefined: nothing is. */
  readonly stored: Uint8Array | undefined;
  /** [next stripe, stop, compared blocks, same blocks]. Shared. */
  readonly control: Int32Array<SharedArrayBuffer>;
}
export const NEXT_STRIPE = 0;
export const STOP = 1;
export const COMPARED = 2;
export const SAME = 3;

export interface SweepLane {
  /**
   * Works on the task until its stripes are taken or it is stopped; everything read has then arrived at the process server.
   * Throws SOURCE_READ_FAILED, PEER_UNREACHABLE.
   */
  run(task: SweepTask): Promise<void>;
  readonly closed: Promise<unknown>;
  close(): void;
}

const WINDOW_BLOCKS = MAX_FRAME_BLOCKS;
/** A flush waits behind all that the process server has still to relay to the WAN. */
const FLUSH_MS = 600_000;

export async function openSweepLane(options: {
  readonly link: Link;
  readonly address: Address;
  readonly machine: string;
  readonly sessionId: string;
  readonly log: Log;
}): Promise<SweepLane> {
  const { log } = options;
  const peer = await joinLane(options);
  const tools = createFrameTools();
  const window = Buffer.allocUnsafeSlow(WINDOW_BLOCKS * BLOCK_SIZE);

  return {
    closed: peer.closed,
    close: () => peer.close(),
    async run(task) {
      const descriptor = openSync(task.image, "r");
      try {
        const params = { groupId: task.groupId, diskId: task.diskId, cycle: task.cycle };
        const packer = createFramePacker({
          tools,
          kind: KIND_SWEEP,
          frameBlocks: WINDOW_BLOCKS,
          compress: task.compress,
          emit: (payload) => peer.notify("frames", params, payload),
        });
        const read = (block: number, count: number): Buffer => readBlocks(descriptor, window, block, count, task);
        let { stored } = task;
        const comparer = createStripeComparer({
          tools,
          read,
          ask: async (run, digests) => {
            const question = { ...params, first: run.start, count: run.count, digests: base64(digests) };
            return readComparison(await peer.call("lane.compare", question, { timeoutMs: COMPARE_MS }), run);
          },
          ship: (plain, block) => packer.add(plain, block),
          onCompared(blocks, same) {
            Atomics.add(task.control, COMPARED, blocks);
            Atomics.add(task.control, SAME, same);
          },
          // Who does not answer once would let every stripe wait; the next sweep asks again.
          onFault(fault) {
            if (stored !== undefined) log.warn("A sweep goes on without comparing", { diskId: task.diskId, fault });
            stored = undefined;
          },
        });
        for (;;) {
          if (Atomics.load(task.control, STOP) !== 0) break;
          const stripe = Atomics.add(task.control, NEXT_STRIPE, 1);
          if (stripe * 2 >= task.stripes.length) break;
          const start = task.stripes[stripe * 2]!;
          const end = start + task.stripes[stripe * 2 + 1]!;
          if (stored !== undefined && hasStripe(stored, start)) {
            await comparer.add({ start, count: end - start });
            continue;
          }
          for (let block = start; block < end;) {
            // Windows lie at multiples of their length, so that the same data makes the same frames in every sweep.
            const stop = Math.min(end, (Math.floor(block / WINDOW_BLOCKS) + 1) * WINDOW_BLOCKS);
            const plain = read(block, stop - block);
            // Where the replica has no data, it reads as zeroes already.
            if (stored === undefined || !isZero(plain, tools.isZero)) await packer.add(plain, block);
            block = stop;
          }
        }
        await comparer.finish();
        await packer.flush();
        await peer.call("lane.flush", {}, { timeoutMs: FLUSH_MS });
      } finally {
        closeSync(descriptor);
      }
    },
  };
}

/** A connection that only carries frames. */
export async function joinLane(options: {
  readonly link: Link;
  readonly address: Address;
  readonly machine: string;
  readonly sessionId: string;
  readonly signal?: AbortSignal;
}): Promise<Peer> {
  const { link, address, machine, sessionId, signal } = options;
  const peer = await link.dial(address, {
    expect: "process-server",
    handlers: {},
    ...(signal === undefined ? {} : { signal }),
  });
  try {
    await peer.call("lane.join", { machine, sessionId });
  } catch (error) {
    peer.close();
    throw error;
  }
  return peer;
}

/** A window is longer than `isZero` takes at a time. */
function isZero(window: Uint8Array, isZeroPiece: (plain: Uint8Array) => boolean): boolean {
  for (let at = 0; at < window.length; at += PIECE_BYTES)
    if (!isZeroPiece(window.subarray(at, at + PIECE_BYTES))) return false;
  return true;
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64");
}

/** Blocks of the image; what lies behind the end of the last, partial block is zero. */
function readBlocks(descriptor: number, window: Buffer, block: number, count: number, task: SweepTask): Buffer {
  const bytes = count * BLOCK_SIZE;
  const offset = block * BLOCK_SIZE;
  const wanted = Math.min(bytes, task.sizeBytes - offset);
  let read = 0;
  try {
    while (read < wanted) {
      const got = readSync(descriptor, window, read, wanted - read, offset + read);
      if (got === 0) break;
      read += got;
    }
  } catch (cause) {
    throw readFailed(task, offset, cause);
  }
  if (read < wanted) throw readFailed(task, offset + read, new Error("the image ends here"));
  if (wanted < bytes) window.fill(0, wanted, bytes);
  return window.subarray(0, bytes);
}

function readFailed(task: SweepTask, offset: number, cause: unknown): Fault {
  return new Fault("SOURCE_READ_FAILED", `"${task.image}" cannot be read at ${offset}`, {
    cause,
    details: { diskId: task.diskId, offset },
    hint: "Look at the machine's disk; the sweep is tried again by itself",
  });
}
