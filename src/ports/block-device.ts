/**
 * A device of blocks: an image file, an overlay, a recovery point. What an NBD session serves.
 *
 * Offsets and lengths in bytes, anything inside [0, sizeBytes). A call may return its result at once instead of a promise: image
 * files do, and the tap then answers within the same turn of the event loop.
 */
export interface BlockDevice {
  readonly sizeBytes: number;
  /** Smallest unit the device likes; a power of two between 1 and 65536. */
  readonly preferredBlockBytes: number;
  readonly readOnly: boolean;
  /** `zero` is always faster than writing as many bytes: an NBD client may then ask for "fast or not at all". */
  readonly fastZero?: boolean;
  /** Fill `target[0 … length)` from `offset`. Throws SOURCE_READ_FAILED, OBJECT_CORRUPT, STORE_UNAVAILABLE. */
  read(target: Uint8Array, offset: number): void | Promise<void>;
  /** Write; durable only after `flush`, or with `fua`. Throws DISK_FULL, SOURCE_READ_FAILED, OVERLAY_FULL. */
  write(data: Uint8Array, offset: number, options?: { readonly fua?: boolean }): void | Promise<void>;
  /** All writes that were completed before the call are durable when it settles. */
  flush(): void | Promise<void>;
  /** The range reads as zeroes afterwards. `mayTrim` allows to free the space. */
  zero(
    offset: number,
    length: number,
    options?: { readonly mayTrim?: boolean; readonly fua?: boolean },
  ): void | Promise<void>;
  /** A hint that the range is not needed; what it reads as afterwards is the device's choice, but stable. */
  trim(offset: number, length: number): void | Promise<void>;
  /** Allocation of the range in order, covering it without gaps; undefined when unknown. */
  status?(offset: number, length: number): readonly AllocationRun[] | Promise<readonly AllocationRun[]>;
  close(): Promise<void>;
}

export interface AllocationRun {
  readonly length: number;
  /** Takes no room where it is kept (reads as zeroes). */
  readonly hole: boolean;
  readonly zero: boolean;
}
