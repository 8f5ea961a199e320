/**
 * Repeat elimination: a frame that says what the stream said last about exactly these blocks is left out.
 *
 * Invariants:
 * - it compares only with the *immediately preceding* version in the same ordered stream, in the order in which the records will be
 *   committed. Comparing with what is committed while another version waits in a spool gave wrong images;
 * - what was filtered but will not be committed (a discarded cycle) makes the memory wrong: the caller then calls `clear`;
 * - a frame of other bounds that touches a remembered one replaces it for its blocks, and what is left of the old one never matches again;
 * - forgetting is always safe. Memory is bounded by forgetting the oldest.
 *
 * Sweep frames do not pass here: a block that changed since it was remembered is in a later delta anyway, and one that did not change says the same.
 * Only frames of one piece (64 KiB) are remembered.
 */
import { CODEC_ZERO, DIGEST_BYTES, frameRecordBytes, readFrameRecords } from "./frame-record.ts";
import { BLOCK_SIZE } from "./units.ts";

export interface RepeatFilter {
  /**
   * Copies the records of `payload` that say something new to `target` (as long as `payload`), in order.
   * Throws PROTOCOL_INVALID for a payload that is not whole records; nothing was copied or remembered of what follows the fault.
   */
  filter(payload: Uint8Array, target: Uint8Array): { readonly bytes: number; readonly records: number; readonly elidedBytes: number };
  clear(): void;
  /** Everything remembered, oldest first. */
  entries(): Iterable<RepeatEntry>;
  /** Put back what `entries` gave, in another life. */
  restore(entries: Iterable<RepeatEntry>): void;
}

export interface RepeatEntry {
  readonly block: number;
  readonly blocks: number;
  /** 16 bytes as 4 numbers: cheap to compare, and plain JSON. */
  readonly digest: readonly [number, number, number, number];
}

/** `blocksMax`: blocks remembered at most, about 120 bytes of memory each. */
export function createRepeatFilter(blocksMax: number): RepeatFilter {
  /** Block → the frame that covers it. A frame counts only while all its blocks still lead to it. */
  let frames = new Map<number, RepeatEntry>();

  return {
    filter(payload, target) {
      let bytes = 0;
      let records = 0;
      let elidedBytes = 0;
      let at = 0;
      for (const record of readFrameRecords(payload)) {
        const length = frameRecordBytes(record.blocks, record.stored.length, record.codec);
        const entry = record.digests.length === DIGEST_BYTES ? entryOf(record.block, record.blocks, record.digests) : undefined;
        if (entry !== undefined && says(entry)) {
          elidedBytes += record.blocks * BLOCK_SIZE;
        } else {
          if (entry === undefined) forget(record.block, record.blocks, record.codec === CODEC_ZERO);
          else remember(entry);
          target.set(payload.subarray(at, at + length), bytes);
          bytes += length;
          records += 1;
        }
        at += length;
      }
      return { bytes, records, elidedBytes };
    },
    clear() {
      frames = new Map();
    },
    entries: () => new Set(frames.values()),
    restore(entries) {
      frames = new Map();
      for (const entry of entries) remember(entry);
    },
  };

  function says(entry: RepeatEntry): boolean {
    const known = frames.get(entry.block);
    if (known === undefined || known.block !== entry.block || known.blocks !== entry.blocks) return false;
    for (let part = 0; part < 4; part += 1) if (known.digest[part] !== entry.digest[part]) return false;
    for (let block = entry.block + 1; block < entry.block + entry.blocks; block += 1) if (frames.get(block) !== known) return false;
    return true;
  }

  function remember(entry: RepeatEntry): void {
    for (let block = entry.block; block < entry.block + entry.blocks; block += 1) {
      frames.delete(block); // So that it becomes the youngest.
      frames.set(block, entry);
    }
    for (const oldest of frames.keys()) {
      if (frames.size <= blocksMax) break;
      frames.delete(oldest);
    }
  }

  function forget(start: number, count: number, zero: boolean): void {
    if (zero && count > frames.size) {
      for (const block of frames.keys()) if (block >= start && block < start + count) frames.delete(block);
      return;
    }
    for (let block = start; block < start + count; block += 1) frames.delete(block);
  }
}

function entryOf(block: number, blocks: number, digest: Uint8Array): RepeatEntry {
  const view = new DataView(digest.buffer, digest.byteOffset, digest.byteLength);
  return { block, blocks, digest: [view.getUint32(0), view.getUint32(4), view.getUint32(8), view.getUint32(12)] };
}
