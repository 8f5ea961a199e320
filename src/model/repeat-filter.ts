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
 * Sweep frames do not pass here, but what they cover is forgotten: a block may be read by the sweep between two writes of which the second says what
 * the stream said last. Were that delta left out, the sweep's reading would stand.
 * Only frames of one piece (64 KiB) are remembered.
 */
import { DIGEST_BYTES, frameRecordBytes, readFrameRecords } from "./frame-record.ts";
import { BLOCK_SIZE } from "./units.ts";

export interface RepeatFilter {
  /**
   * Copies the records of `payload` that say something new to `target` (as long as `payload`), in order.
   * Throws PROTOCOL_INVALID for a payload that is not whole records; nothing was copied or remembered of what follows the fault.
   */
  filter(
    payload: Uint8Array,
    target: Uint8Array,
  ): { readonly bytes: number; readonly said: readonly Statement[]; readonly elidedBytes: number };
  /** The stream says something else about these blocks. */
  forget(run: { readonly block: number; readonly blocks: number }): void;
  clear(): void;
  /** Remember what was said in another life, in the order in which it was said. */
  restore(said: Iterable<Statement>): void;
}

/** What the stream says about a run of blocks. */
export interface Statement {
  readonly block: number;
  readonly blocks: number;
  /** 16 bytes as 4 numbers: cheap to compare, and plain JSON. Undefined: something that is not remembered (zeroes, a longer frame). */
  readonly digest: readonly [number, number, number, number] | undefined;
}

/** `blocksMax`: blocks remembered at most, about 120 bytes of memory each. */
export function createRepeatFilter(blocksMax: number): RepeatFilter {
  /** Block → the frame that covers it. A frame counts only while all its blocks still lead to it. */
  let frames = new Map<number, Statement>();

  return {
    filter(payload, target) {
      const said: Statement[] = [];
      let bytes = 0;
      let elidedBytes = 0;
      let at = 0;
      for (const record of readFrameRecords(payload)) {
        const length = frameRecordBytes(record.blocks, record.stored.length, record.codec);
        const statement = { block: record.block, blocks: record.blocks, digest: digestOf(record.digests) };
        if (isRepeat(statement)) {
          elidedBytes += record.blocks * BLOCK_SIZE;
        } else {
          hear(statement);
          said.push(statement);
          target.set(payload.subarray(at, at + length), bytes);
          bytes += length;
        }
        at += length;
      }
      return { bytes, said, elidedBytes };
    },
    forget,
    clear() {
      frames = new Map();
    },
    restore(said) {
      frames = new Map();
      for (const statement of said) hear(statement);
    },
  };

  function hear(statement: Statement): void {
    if (statement.digest === undefined) forget(statement);
    else remember(statement);
  }

  function isRepeat(statement: Statement): boolean {
    const known = frames.get(statement.block);
    if (known?.digest === undefined || statement.digest === undefined) return false;
    if (known.block !== statement.block || known.blocks !== statement.blocks) return false;
    for (let part = 0; part < 4; part += 1) if (known.digest[part] !== statement.digest[part]) return false;
    for (let block = known.block + 1; block < known.block + known.blocks; block += 1)
      if (frames.get(block) !== known) return false;
    return true;
  }

  function remember(statement: Statement): void {
    for (let block = statement.block; block < statement.block + statement.blocks; block += 1) {
      frames.delete(block); // So that it becomes the youngest.
      frames.set(block, statement);
    }
    for (const oldest of frames.keys()) {
      if (frames.size <= blocksMax) break;
      frames.delete(oldest);
    }
  }

  function forget({ block: start, blocks: count }: { readonly block: number; readonly blocks: number }): void {
    if (count > frames.size) {
      for (const block of frames.keys()) if (block >= start && block < start + count) frames.delete(block);
      return;
    }
    for (let block = start; block < start + count; block += 1) frames.delete(block);
  }
}

function digestOf(digests: Uint8Array): Statement["digest"] {
  if (digests.length !== DIGEST_BYTES) return undefined;
  const view = new DataView(digests.buffer, digests.byteOffset, digests.byteLength);
  return [view.getUint32(0), view.getUint32(4), view.getUint32(8), view.getUint32(12)];
}
