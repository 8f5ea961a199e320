/**
 * What makes delta frames smaller before they go into the spool: repeats are left out, and what arrived raw is compressed if this is the place
 * to do it. Records are kept in order per disk.
 */
import { createRepeatFilter, type RepeatFilter } from "#model/repeat-filter.ts";

/** Returns the same records with raw frames compressed. The payload may be reused once it settles; the result is the caller's. */
export type CompressPayload = (payload: Uint8Array) => Promise<Uint8Array>;

export interface StreamReducer {
  /** What is left of a delta payload of `diskId`; possibly nothing. A view that is valid until the next call for this disk. */
  reduce(diskId: string, payload: Uint8Array, compress: boolean): Promise<{ readonly payload: Uint8Array; readonly records: number }>;
  /** A sweep's payload: only compressed. */
  compressOnly: CompressPayload;
  /** What went into the stream will not be committed, or someone else wrote: nothing is a repeat any more. */
  forget(): void;
  readonly elidedBytes: number;
}

/** Blocks remembered per disk: 512 MiB of what was written last, in about 16 MiB of memory. */
const BLOCKS_MAX = 131_072;

export function createStreamReducer(compressPayload: CompressPayload): StreamReducer {
  const filters = new Map<string, { readonly filter: RepeatFilter; target: Uint8Array }>();
  let elidedBytes = 0;
  return {
    compressOnly: compressPayload,
    async reduce(diskId, payload, compress) {
      let disk = filters.get(diskId);
      if (disk === undefined) filters.set(diskId, (disk = { filter: createRepeatFilter(BLOCKS_MAX), target: new Uint8Array(0) }));
      if (disk.target.length < payload.length) disk.target = new Uint8Array(payload.length);
      const { bytes, records, elidedBytes: elided } = disk.filter.filter(payload, disk.target);
      elidedBytes += elided;
      const kept = disk.target.subarray(0, bytes);
      return { payload: compress && bytes > 0 ? await compressPayload(kept) : kept, records };
    },
    forget() {
      for (const { filter } of filters.values()) filter.clear();
    },
    get elidedBytes() {
      return elidedBytes;
    },
  };
}
