/**
 * Buffers that are used again: a fresh megabyte costs 256 page faults, more than reading it from the page cache.
 *
 * Sizes are powers of two from 64 KiB, each with a page to spare for the head of a reply. What is kept for later is bounded; what is
 * handed out is bounded by the connections that ask.
 */
const SPARE_BYTES = 4096;
const SMALLEST = 64 << 10;

export interface BufferPool {
  /** A buffer of at least `length` bytes with arbitrary contents. */
  take(length: number): Buffer;
  /** Give back what `take` returned, once, when nobody reads or writes it any more. */
  give(buffer: Buffer): void;
}

export function createBufferPool(keepBytesMax = 64 << 20): BufferPool {
  const free = new Map<number, Buffer[]>();
  let keptBytes = 0;
  return {
    take(length) {
      let size = SMALLEST;
      while (size + SPARE_BYTES < length) size *= 2;
      const buffer = free.get(size + SPARE_BYTES)?.pop();
      if (buffer === undefined) return Buffer.allocUnsafeSlow(size + SPARE_BYTES);
      keptBytes -= buffer.length;
      return buffer;
    },
    give(buffer) {
      if (keptBytes + buffer.length > keepBytesMax) return;
      keptBytes += buffer.length;
      const siblings = free.get(buffer.length);
      if (siblings === undefined) free.set(buffer.length, [buffer]);
      else siblings.push(buffer);
    },
  };
}
