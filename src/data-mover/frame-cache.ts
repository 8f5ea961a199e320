/**
 * Plain frames in recycled buffers, the least recently used given up first.
 *
 * A buffer of its own for each frame would cost more than decompressing into it: the kernel zeroes its pages, and memory outside
 * the heap drives the garbage collector. So buffers come in sizes of powers of two and are used again.
 *
 * Invariant: what `get` returns is read before the next turn of the event loop; afterwards the buffer may hold another frame.
 */
export interface FrameCache {
  /** The frame, now the most recently used. */
  get(frame: number): Uint8Array | undefined;
  has(frame: number): boolean;
  /** An array to be filled. It is the caller's until it is given to `put` or `discard`. */
  take(bytes: number): Uint8Array;
  /** Keep `plain`, which `take` returned, as this frame. */
  put(frame: number, plain: Uint8Array): void;
  discard(plain: Uint8Array): void;
  /** Bytes of the buffers that hold frames. */
  readonly usedBytes: number;
}

/** Largest share of the bound that waits unused for the next frame; a few of the largest frames in any case. */
const SPARE_SHARE = 8;
const SPARE_BYTES_LEAST = 1 << 20;

export function frameCache(limitBytes: number): FrameCache {
  // A Map iterates in order of insertion, so re-inserting on use keeps the oldest in front.
  const frames = new Map<number, Uint8Array>();
  const spare = new Map<number, ArrayBuffer[]>();
  let usedBytes = 0;
  let spareBytes = 0;
  const spareBytesMost = Math.max(SPARE_BYTES_LEAST, limitBytes / SPARE_SHARE);

  const recycle = (plain: Uint8Array): void => {
    const buffer = plain.buffer as ArrayBuffer; // From `take`.
    if (spareBytes + buffer.byteLength > spareBytesMost) return;
    const same = spare.get(buffer.byteLength);
    if (same) same.push(buffer);
    else spare.set(buffer.byteLength, [buffer]);
    spareBytes += buffer.byteLength;
  };

  return {
    get usedBytes() {
      return usedBytes;
    },
    has: (frame) => frames.has(frame),
    get(frame) {
      const plain = frames.get(frame);
      if (plain === undefined) return undefined;
      frames.delete(frame);
      frames.set(frame, plain);
      return plain;
    },
    take(bytes) {
      const size = 2 ** Math.ceil(Math.log2(bytes));
      const buffer = spare.get(size)?.pop();
      if (buffer === undefined) return new Uint8Array(Buffer.allocUnsafeSlow(size).buffer, 0, bytes);
      spareBytes -= size;
      return new Uint8Array(buffer, 0, bytes);
    },
    put(frame, plain) {
      if (frames.has(frame)) throw new RangeError(`Frame ${frame} is cached already`);
      frames.set(frame, plain);
      usedBytes += plain.buffer.byteLength;
      for (const [oldest, old] of frames) {
        if (usedBytes <= limitBytes) break;
        frames.delete(oldest);
        usedBytes -= old.buffer.byteLength;
        recycle(old);
      }
    },
    discard: recycle,
  };
}
