/**
 * A set of blocks of one disk: which are dirty, which belong to a cut, which were never compared with the replica.
 *
 * A bitmap in chunks that exist only where something is set, because a disk of a terabyte has 2^28 blocks and a cut of it a few
 * hundred: an empty set of it costs 32 KiB, not 32 MiB, and a cut every few seconds stays cheap.
 *
 * ```
 *  block 0                       65536                      131072
 *  ├── chunk: 2048 words of 32 ──┼── undefined: all clear ──┼── …
 * ```
 *
 * Invariants:
 * - `count` is the number of bits set, always;
 * - no bit at or past `size` is set, so a run never reaches past the end of the disk;
 * - runs come in order, never touch each other, never empty.
 */
export interface BlockRun {
  /** Index of the first block. */
  readonly start: number;
  /** Number of blocks; at least 1. */
  readonly count: number;
}

const CHUNK_BITS = 65536;
const CHUNK_WORDS = CHUNK_BITS / 32;

export class BlockSet {
  /** Blocks of the disk. */
  readonly size: number;
  #chunks: (Uint32Array | undefined)[];
  #count = 0;

  constructor(size: number) {
    if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`Set of ${size} blocks`);
    this.size = size;
    this.#chunks = new Array<Uint32Array | undefined>(Math.ceil(size / CHUNK_BITS)).fill(undefined);
  }

  /** Number of blocks in the set. */
  get count(): number {
    return this.#count;
  }

  has(block: number): boolean {
    const chunk = this.#chunks[Math.floor(block / CHUNK_BITS)];
    if (chunk === undefined) return false;
    const bit = block % CHUNK_BITS;
    return ((chunk[bit >>> 5]! >>> (bit & 31)) & 1) === 1;
  }

  /** Add `count` blocks from `start`. Throws RangeError past the end of the disk. */
  add(start: number, count = 1): void {
    this.#check(start, count);
    for (let at = start, end = start + count; at < end;) {
      const index = Math.floor(at / CHUNK_BITS);
      const from = at - index * CHUNK_BITS;
      const to = Math.min(CHUNK_BITS, end - index * CHUNK_BITS);
      const chunk = (this.#chunks[index] ??= new Uint32Array(CHUNK_WORDS));
      this.#count += setBits(chunk, from, to);
      at = index * CHUNK_BITS + to;
    }
  }

  /** Remove `count` blocks from `start`. Throws RangeError past the end of the disk. */
  delete(start: number, count = 1): void {
    this.#check(start, count);
    for (let at = start, end = start + count; at < end;) {
      const index = Math.floor(at / CHUNK_BITS);
      const from = at - index * CHUNK_BITS;
      const to = Math.min(CHUNK_BITS, end - index * CHUNK_BITS);
      const chunk = this.#chunks[index];
      if (chunk !== undefined) this.#count -= clearBits(chunk, from, to);
      at = index * CHUNK_BITS + to;
    }
  }

  /** Union: every block of `other` too. */
  merge(other: BlockSet): void {
    this.#sameDisk(other);
    for (const [index, theirs] of other.#chunks.entries()) {
      if (theirs === undefined) continue;
      const chunk = this.#chunks[index];
      if (chunk === undefined) {
        this.#chunks[index] = theirs.slice();
        this.#count += countChunk(theirs);
        continue;
      }
      for (let word = 0; word < CHUNK_WORDS; word++) {
        const added = (theirs[word]! & ~chunk[word]!) >>> 0;
        if (added !== 0) {
          chunk[word] = chunk[word]! | added;
          this.#count += popCount(added);
        }
      }
    }
  }

  /** Difference: no block of `other` any more. */
  subtract(other: BlockSet): void {
    this.#sameDisk(other);
    for (const [index, theirs] of other.#chunks.entries()) {
      const chunk = this.#chunks[index];
      if (theirs === undefined || chunk === undefined) continue;
      for (let word = 0; word < CHUNK_WORDS; word++) {
        const removed = (theirs[word]! & chunk[word]!) >>> 0;
        if (removed !== 0) {
          chunk[word] = chunk[word]! & ~removed;
          this.#count -= popCount(removed);
        }
      }
    }
  }

  clone(): BlockSet {
    const copy = new BlockSet(this.size);
    copy.#chunks = this.#chunks.map((chunk) => chunk?.slice());
    copy.#count = this.#count;
    return copy;
  }

  clear(): void {
    this.#chunks.fill(undefined);
    this.#count = 0;
  }

  addAll(): void {
    if (this.size > 0) this.add(0, this.size);
  }

  /** The first block in the set at or after `from` and before `to`; -1 when there is none. */
  next(from: number, to = this.size): number {
    return this.#find(from, Math.min(to, this.size), 0);
  }

  /** Whether any block of [start, start + count) is in the set. */
  intersects(start: number, count: number): boolean {
    return this.next(start, start + count) !== -1;
  }

  /** The runs that lie in [from, to), cut at both ends, in order. The set may change while they are read: what lies ahead is seen as it is then. */
  *runs(from = 0, to = this.size): Generator<BlockRun> {
    const end = Math.min(to, this.size);
    for (let at = from; at < end;) {
      const start = this.#find(at, end, 0);
      if (start === -1) return;
      const stop = this.#find(start, end, 0xffffffff);
      at = stop === -1 ? end : stop;
      yield { start, count: at - start };
    }
  }

  /** First block in [from, to) whose bit, xor the bit of `flip`, is set. */
  #find(from: number, to: number, flip: 0 | 0xffffffff): number {
    for (let at = Math.max(from, 0); at < to;) {
      const index = Math.floor(at / CHUNK_BITS);
      const base = index * CHUNK_BITS;
      const chunk = this.#chunks[index];
      if (chunk === undefined) {
        if (flip !== 0) return at;
        at = base + CHUNK_BITS;
        continue;
      }
      const bit = at - base;
      let word = bit >>> 5;
      let bits = ((chunk[word]! ^ flip) & (-1 << (bit & 31))) >>> 0;
      while (bits === 0 && ++word < CHUNK_WORDS) bits = (chunk[word]! ^ flip) >>> 0;
      if (word < CHUNK_WORDS) {
        const found = base + word * 32 + trailingZeroes(bits);
        return found < to ? found : -1;
      }
      at = base + CHUNK_BITS;
    }
    return -1;
  }

  #check(start: number, count: number): void {
    if (!(start >= 0 && count >= 0 && start + count <= this.size))
      throw new RangeError(`Blocks ${start}+${count} of a set of ${this.size}`);
  }

  #sameDisk(other: BlockSet): void {
    if (other.size !== this.size) throw new RangeError(`Sets of ${this.size} and ${other.size} blocks`);
  }
}

/** Set the bits [from, to) of a chunk; returns how many were clear. */
function setBits(chunk: Uint32Array, from: number, to: number): number {
  let added = 0;
  for (let at = from; at < to;) {
    const word = at >>> 5;
    const next = Math.min(to, (word + 1) * 32);
    const mask = maskOf(at & 31, next - at);
    added += popCount((mask & ~chunk[word]!) >>> 0);
    chunk[word] = chunk[word]! | mask;
    at = next;
  }
  return added;
}

/** Clear the bits [from, to) of a chunk; returns how many were set. */
function clearBits(chunk: Uint32Array, from: number, to: number): number {
  let removed = 0;
  for (let at = from; at < to;) {
    const word = at >>> 5;
    const next = Math.min(to, (word + 1) * 32);
    const mask = maskOf(at & 31, next - at);
    removed += popCount((mask & chunk[word]!) >>> 0);
    chunk[word] = chunk[word]! & ~mask;
    at = next;
  }
  return removed;
}

function maskOf(shift: number, length: number): number {
  return length === 32 ? 0xffffffff : ((2 ** length - 1) << shift) >>> 0;
}

function countChunk(chunk: Uint32Array): number {
  let count = 0;
  for (const word of chunk) count += popCount(word);
  return count;
}

function trailingZeroes(word: number): number {
  return 31 - Math.clz32(word & -word);
}

function popCount(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  bits = (bits + (bits >>> 4)) & 0x0f0f0f0f;
  return Math.imul(bits, 0x01010101) >>> 24;
}
