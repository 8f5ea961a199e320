/**
 * What an overlay holds of each block: nothing (the image below answers), data, or zeroes. Two bits a block, four blocks a byte,
 * which is also the layout of the map on disk (overlay-map.ts).
 */
import { BLOCK_SIZE } from "#model/units.ts";

export const ABSENT = 0;
export const DATA = 1;
export const ZERO = 2;
export type BlockState = typeof ABSENT | typeof DATA | typeof ZERO;

export interface StateRun {
  readonly block: number;
  readonly blocks: number;
  readonly state: BlockState;
}

export interface OverlayStates {
  readonly blockCount: number;
  /** The bits themselves: block b is at bits 2·(b mod 4) of byte b div 4. Read-only for others. */
  readonly bits: Uint8Array;
  get(block: number): BlockState;
  /** Returns true when any block changed. Throws RangeError past the end. */
  set(block: number, blocks: number, state: BlockState): boolean;
  /** How many of these blocks hold data. */
  countData(block: number, blocks: number): number;
  /** Runs of one state, in order, covering exactly the range. */
  runs(block: number, blocks: number): Generator<StateRun>;
}

export function createOverlayStates(blockCount: number, bits = new Uint8Array(stateBytes(blockCount))): OverlayStates {
  if (bits.length !== stateBytes(blockCount))
    throw new RangeError(`${bits.length} bytes of states for ${blockCount} blocks`);

  const get = (block: number): BlockState =>
    (((bits[Math.floor(block / 4)] ?? 0) >> ((block % 4) * 2)) & 3) as BlockState;

  const check = (block: number, blocks: number): void => {
    if (block < 0 || blocks < 0 || block + blocks > blockCount)
      throw new RangeError(`Blocks ${block}+${blocks} of ${blockCount}`);
  };

  function* runs(block: number, blocks: number): Generator<StateRun> {
    check(block, blocks);
    const end = block + blocks;
    for (let at = block; at < end;) {
      const state = get(at);
      const whole = state * 0x55; // The byte in which all four blocks are of this state.
      let next = at + 1;
      while (next < end) {
        if (next % 4 === 0 && next + 4 <= end && bits[Math.floor(next / 4)] === whole) next += 4;
        else if (get(next) === state) next++;
        else break;
      }
      yield { block: at, blocks: next - at, state };
      at = next;
    }
  }

  return {
    blockCount,
    bits,
    get,
    set(block, blocks, state) {
      check(block, blocks);
      let changed = false;
      const end = block + blocks;
      for (let at = block; at < end;) {
        const index = Math.floor(at / 4);
        const old = bits[index] ?? 0;
        if ((at & 3) === 0 && at + 4 <= end) {
          bits[index] = state * 0x55;
          at += 4;
        } else {
          const shift = (at & 3) * 2;
          bits[index] = (old & ~(3 << shift)) | (state << shift);
          at++;
        }
        if (bits[index] !== old) changed = true;
      }
      return changed;
    },
    countData(block, blocks) {
      let count = 0;
      for (const run of runs(block, blocks)) if (run.state === DATA) count += run.blocks;
      return count;
    },
    runs,
  };
}

/** Bytes that the states of `blockCount` blocks take. */
export function stateBytes(blockCount: number): number {
  return Math.ceil(blockCount / 4);
}

/** Whole blocks inside [offset, offset + length), rounded inward; a partial last block of the disk counts as whole when it is covered to its end. */
export function blocksInside(
  offset: number,
  length: number,
  sizeBytes: number,
): { readonly block: number; readonly blocks: number } {
  const end = offset + length;
  const first = Math.ceil(offset / BLOCK_SIZE);
  const last = end === sizeBytes ? Math.ceil(end / BLOCK_SIZE) : Math.floor(end / BLOCK_SIZE);
  return { block: first, blocks: Math.max(0, last - first) };
}
