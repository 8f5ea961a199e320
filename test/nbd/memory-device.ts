/** Devices in memory for NBD tests: at once or late, with whatever parts a test wants otherwise. */
import type { BlockDevice } from "#ports/block-device.ts";

export interface MemoryDeviceOptions {
  readonly readOnly?: boolean;
  /** Every call settles so much later, in ms; undefined: at once. */
  readonly lateMs?: () => number;
  readonly status?: NonNullable<BlockDevice["status"]>;
  readonly fastZero?: boolean;
}

export function createMemoryDevice(
  backing: Buffer,
  options: MemoryDeviceOptions = {},
): BlockDevice & { flushes: number } {
  const { lateMs } = options;
  const perform = (action: () => void): void | Promise<void> => {
    if (lateMs === undefined) return action();
    return new Promise<void>((resolve) => setTimeout(resolve, lateMs())).then(action);
  };
  const device = {
    sizeBytes: backing.length,
    preferredBlockBytes: 4096,
    readOnly: options.readOnly ?? false,
    ...(options.fastZero === undefined ? {} : { fastZero: options.fastZero }),
    ...(options.status === undefined ? {} : { status: options.status }),
    flushes: 0,
    read: (target: Uint8Array, offset: number) =>
      perform(() => target.set(backing.subarray(offset, offset + target.length))),
    write: (data: Uint8Array, offset: number, how?: { fua?: boolean }) =>
      perform(() => {
        backing.set(data, offset);
        if (how?.fua === true) device.flushes++;
      }),
    flush: () => perform(() => void device.flushes++),
    zero: (offset: number, length: number) => perform(() => void backing.fill(0, offset, offset + length)),
    trim: () => perform(() => undefined),
    close: () => Promise.resolve(),
  };
  return device;
}

/** Bytes that say where they are: no block equals another, and none is zero. */
export function patterned(bytes: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at + 8 <= bytes; at += 8) {
    data.writeUInt32LE(at / 8 + 1, at);
    data.writeUInt32LE((Math.imul(at / 8 + 1, 2654435761) | 1) >>> 0, at + 4);
  }
  return data;
}
