/**
 * What makes delta frames smaller before they go into the spool: repeats are left out, and what arrived raw is compressed if this is the place
 * to do it. Records are kept in order per disk.
 */
import { createRepeatFilter, type RepeatFilter, type Statement } from "#model/repeat-filter.ts";

/** Returns the same records with raw frames compressed. The payload may be reused once it settles; the result is the caller's. */
export type CompressPayload = (payload: Uint8Array) => Promise<Uint8Array>;

export interface StreamReducer {
  /** What is left of a delta payload of `diskId`; possibly nothing. A view that is valid until the next call for this disk. */
  reduce(
    diskId: string,
    payload: Uint8Array,
    compress: boolean,
  ): Promise<{ readonly payload: Uint8Array; readonly said: readonly Statement[] }>;
  /** A sweep's payload: only compressed. */
  compressOnly: CompressPayload;
  /** A sweep covers these blocks. */
  forgetSwept(diskId: string, run: { readonly block: number; readonly blocks: number }): void;
  /** What went into the stream will not be committed, or someone else wrote: nothing is a repeat any more. */
  forget(): void;
  /** What a former life said of the disk. Ignored when something was said in this one. */
  restore(diskId: string, said: Iterable<Statement>): void;
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
      const disk = filterOf(diskId);
      if (disk.target.length < payload.length) disk.target = new Uint8Array(payload.length);
      const { bytes, said, elidedBytes: elided } = disk.filter.filter(payload, disk.target);
      elidedBytes += elided;
      const kept = disk.target.subarray(0, bytes);
      return { payload: compress && bytes > 0 ? await compressPayload(kept) : kept, said };
    },
    forgetSwept: (diskId, run) => filters.get(diskId)?.filter.forget(run),
    forget() {
      for (const { filter } of filters.values()) filter.clear();
    },
    restore(diskId, said) {
      if (!filters.has(diskId)) filterOf(diskId).filter.restore(said);
    },
    get elidedBytes() {
      return elidedBytes;
    },
  };

  function filterOf(diskId: string) {
    let disk = filters.get(diskId);
    if (disk === undefined)
      filters.set(diskId, (disk = { filter: createRepeatFilter(BLOCKS_MAX), target: new Uint8Array(0) }));
    return disk;
  }
}
