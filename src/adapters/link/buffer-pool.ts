/**
 * Recycled buffers for payloads. Allocating and collecting 4 MiB for every message costs more than decrypting it.
 *
 * Sizes are powers of two between 16 KiB and 4 MiB; what is smaller comes from Node's own pool. One pool serves all links of a
 * process and keeps at most `KEPT_BYTES_MAX`; beyond that buffers are left to the collector.
 */
const SMALLEST = 16 * 1024;
const KEPT_BYTES_MAX = 48 * 1024 * 1024;

const kept = new Map<number, Buffer[]>();
let keptBytes = 0;

/** A buffer with room for `length` bytes, holding whatever it held before. */
export function takeBuffer(length: number): Buffer {
  if (length < SMALLEST) return Buffer.allocUnsafe(length);
  const size = 2 ** Math.ceil(Math.log2(length));
  const buffer = kept.get(size)?.pop();
  if (buffer === undefined) return Buffer.allocUnsafeSlow(size);
  keptBytes -= size;
  return buffer;
}

/** Give back what `takeBuffer` returned, once. Nobody may look at it afterwards. */
export function returnBuffer(buffer: Buffer): void {
  if (buffer.length < SMALLEST || keptBytes + buffer.length > KEPT_BYTES_MAX) return;
  const list = kept.get(buffer.length);
  if (list === undefined) kept.set(buffer.length, [buffer]);
  else list.push(buffer);
  keptBytes += buffer.length;
}
