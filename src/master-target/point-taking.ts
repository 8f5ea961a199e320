/**
 * A disk that is served goes on from another point: what differs there is written to it, like the writes of a machine.
 *
 * Invariants:
 * - it is compared first, so that a repeat, or one after a restart, writes only what is still missing;
 * - writes are durable when it is done;
 * - nothing here looks whether somebody is attached: who begins has made sure, and looks again before each piece.
 */
import { BLOCK_SIZE } from "#model/units.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import type { TakenPoint } from "#ports/master-target.ts";

const PIECE_BYTES = 1 << 20;

export interface TakenDisk {
  readonly device: BlockDevice;
  /** The disk at the other point; closed at the end. */
  readonly image: BlockDevice;
}

export interface PointTaking {
  readonly seen: TakenPoint;
  /** Settles at the end; throws what reading and writing throw, and what `assertFree` throws. */
  readonly ended: Promise<void>;
}

export function beginTaking(disks: readonly TakenDisk[], assertFree: () => void): PointTaking {
  const totalBytes = disks.reduce((sum, { device }) => sum + device.sizeBytes, 0);
  const seen = { done: false, comparedBytes: 0, totalBytes, writtenBytes: 0 };
  const take = async (): Promise<void> => {
    try {
      for (const { device, image } of disks) {
        const have = new Uint8Array(PIECE_BYTES);
        const want = new Uint8Array(PIECE_BYTES);
        for (let at = 0; at < device.sizeBytes; at += PIECE_BYTES) {
          const length = Math.min(PIECE_BYTES, device.sizeBytes - at);
          await Promise.all([device.read(have.subarray(0, length), at), image.read(want.subarray(0, length), at)]);
          assertFree();
          for (const { start, end } of differences(have.subarray(0, length), want.subarray(0, length))) {
            await device.write(want.slice(start, end), at + start);
            seen.writtenBytes += end - start;
          }
          seen.comparedBytes += length;
        }
        await device.flush();
      }
      seen.done = true;
    } finally {
      for (const { image } of disks) await image.close();
    }
  };
  return { seen, ended: take() };
}

/** Runs of blocks that are not the same; the last block may be shorter. */
function* differences(have: Uint8Array, want: Uint8Array): Generator<{ readonly start: number; readonly end: number }> {
  const [left, right] = [Buffer.from(have.buffer, 0, have.length), Buffer.from(want.buffer, 0, want.length)];
  let start: number | undefined;
  for (let at = 0; at < left.length; at += BLOCK_SIZE) {
    const end = Math.min(at + BLOCK_SIZE, left.length);
    if (left.compare(right, at, end, at, end) !== 0) start ??= at;
    else if (start !== undefined) {
      yield { start, end: at };
      start = undefined;
    }
  }
  if (start !== undefined) yield { start, end: left.length };
}
