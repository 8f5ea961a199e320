/** A device in memory that takes its time: everything is asynchronous, and a write lands in pieces, in no order, so that who reads too early sees it torn. */
import { Fault } from "#model/fault.ts";
import type { BlockDevice } from "#ports/block-device.ts";

const PIECE = 512;

export interface SlowDevice extends BlockDevice {
  /** What is in flight stops where it is, and so does everything from now on. */
  die(): void;
  /** The next write or read fails, as a bad disk would. */
  failNext(kind: "write" | "read"): void;
  readonly inFlight: number;
}

export function createSlowDevice(backing: Buffer, random: () => number): SlowDevice {
  let dead = false;
  let inFlight = 0;
  let failing: "write" | "read" | undefined;
  const pause = async (): Promise<void> => {
    await new Promise((resolve) => (random() < 0.7 ? setImmediate(resolve) : setTimeout(resolve, random() * 4)));
    if (dead) await new Promise(() => undefined); // Nobody will ever answer.
  };

  async function inPieces(
    kind: "write" | "read",
    length: number,
    piece: (at: number, bytes: number) => void,
  ): Promise<void> {
    if (dead) await new Promise(() => undefined);
    inFlight++;
    try {
      const order = Array.from({ length: Math.ceil(length / PIECE) }, (_, index) => index);
      for (let index = order.length - 1; index > 0; index--) {
        const other = Math.floor(random() * (index + 1));
        [order[index], order[other]] = [order[other]!, order[index]!];
      }
      await pause();
      const stopAfter = failing === kind ? Math.floor(order.length / 2) : order.length;
      if (failing === kind) failing = undefined;
      for (const [count, index] of order.entries()) {
        if (count === stopAfter) throw new Fault("SOURCE_READ_FAILED", "A bad sector");
        if (random() < 4 / order.length) await pause();
        const at = index * PIECE;
        piece(at, Math.min(PIECE, length - at));
      }
      if (stopAfter === 0) throw new Fault("SOURCE_READ_FAILED", "A bad sector");
      await pause();
    } finally {
      inFlight--;
    }
  }

  return {
    sizeBytes: backing.length,
    preferredBlockBytes: 4096,
    readOnly: false,
    read: (target, offset) =>
      inPieces("read", target.length, (at, bytes) =>
        target.set(backing.subarray(offset + at, offset + at + bytes), at),
      ),
    write: (data, offset) =>
      inPieces("write", data.length, (at, bytes) => backing.set(data.subarray(at, at + bytes), offset + at)),
    zero: (offset, length) =>
      inPieces("write", length, (at, bytes) => backing.fill(0, offset + at, offset + at + bytes)),
    trim: async () => pause(),
    flush: pause,
    close: () => Promise.resolve(),
    die: () => void (dead = true),
    failNext: (kind) => void (failing = kind),
    get inFlight() {
      return inFlight;
    },
  };
}
