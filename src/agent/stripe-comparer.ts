/**
 * Compares stripes with the replica, and ships of them what differs. Source: src/model/comparison.ts.
 *
 * Several stripes are asked about at a time, so that the way to the replica and back costs a lane nothing as long as it has others to read. A stripe is read
 * twice where it differs: keeping what was read would cost a lane more memory than all else. Either reading is as good, for a block that
 * changed between them is in the cut.
 */
import { splitRuns } from "#model/block-runs.ts";
import type { BlockRun } from "#model/block-set.ts";
import {
  type Comparison,
  MARK_BYTES,
  markBlocks,
  PIECE_BLOCKS,
  PIECE_OTHER,
  PIECE_SAME,
  PIECE_UNKNOWN,
  runsWhere,
  sameBytes,
} from "#model/comparison.ts";
import { Fault, isFault } from "#model/fault.ts";
import type { FrameTools } from "#model/frame-packer.ts";
import { DIGEST_BYTES, MAX_FRAME_BLOCKS } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";

export interface StripeComparer {
  /** Asks about a run inside one stripe; settles when it may be given the next. Throws what `ship` and `read` throw. */
  add(run: BlockRun): Promise<void>;
  /** Everything that was added is compared and shipped. */
  finish(): Promise<void>;
}

export interface StripeComparerOptions {
  readonly tools: Pick<FrameTools, "digest" | "isZero">;
  /** Blocks of the disk, whole; valid until the next call. At most MAX_FRAME_BLOCKS. */
  readonly read: (block: number, count: number) => Uint8Array;
  /** `digests`: DIGEST_BYTES for each piece of the run. Throws a Fault when there is no answer. */
  readonly ask: (run: BlockRun, digests: Uint8Array) => Promise<Comparison>;
  readonly ship: (plain: Uint8Array, block: number) => Promise<void>;
  readonly onCompared: (blocks: number, sameBlocks: number) => void;
  /** No answer: the run is shipped as it is. */
  readonly onFault: (fault: Fault) => void;
}

/** Stripes that are asked about at a time: at 100 ms to the replica, a lane can still read 640 MiB/s. */
const ASKED_MAX = 4;

export function createStripeComparer(options: StripeComparerOptions): StripeComparer {
  const { tools, read, ask, ship } = options;
  const asked: { readonly run: BlockRun; readonly answer: Promise<Comparison | undefined> }[] = [];

  return {
    async add(run) {
      const answer = ask(run, hashPieces(run)).catch((error: unknown) => {
        if (!isFault(error)) throw error;
        options.onFault(error);
        return undefined;
      });
      answer.catch(() => undefined); // Awaited below; until then nobody may take it for lost.
      asked.push({ run, answer });
      if (asked.length >= ASKED_MAX) await settleOldest();
    },
    async finish() {
      while (asked.length > 0) await settleOldest();
    },
  };

  function hashPieces(run: BlockRun): Uint8Array {
    const pieces = [...splitRuns([run], PIECE_BLOCKS)];
    const digests = new Uint8Array(pieces.length * DIGEST_BYTES);
    let at = 0;
    for (const window of splitRuns([run], MAX_FRAME_BLOCKS)) {
      const plain = read(window.start, window.count);
      for (const piece of splitRuns([window], PIECE_BLOCKS)) {
        tools.digest(digests.subarray(at, at + DIGEST_BYTES), blocksOf(plain, window, piece));
        at += DIGEST_BYTES;
      }
    }
    return digests;
  }

  async function settleOldest(): Promise<void> {
    const { run, answer } = asked.shift()!;
    const comparison = await answer;
    let shipped = 0;
    let piece = 0;
    let marked = 0;
    for (const window of splitRuns([run], MAX_FRAME_BLOCKS)) {
      const pieces = [...splitRuns([window], PIECE_BLOCKS)].map((one) => {
        const state = comparison === undefined ? PIECE_UNKNOWN : comparison.pieces[piece]!;
        const marksAt = marked;
        piece += 1;
        if (state === PIECE_OTHER) marked += one.count * MARK_BYTES;
        return { ...one, state, marksAt };
      });
      if (pieces.every((one) => one.state === PIECE_SAME)) continue;
      const plain = read(window.start, window.count);
      const differing = new Uint8Array(window.count);
      for (const one of pieces) {
        const at = one.start - window.start;
        const differs = differencesOf(blocksOf(plain, window, one), one, comparison);
        for (let index = 0; index < one.count; index += 1) differing[at + index] = differs(index) ? 1 : 0;
      }
      for (const part of runsWhere(window.start, window.count, (index) => differing[index] === 1)) {
        shipped += part.count;
        await ship(blocksOf(plain, window, part), part.start);
      }
    }
    if (comparison !== undefined) options.onCompared(run.count, run.count - shipped);
  }

  /** Which blocks of a piece, by their number in it, the replica has otherwise. */
  function differencesOf(
    plain: Uint8Array,
    piece: { readonly state: number; readonly marksAt: number },
    comparison: Comparison | undefined,
  ): (index: number) => boolean {
    if (piece.state === PIECE_SAME) return () => false;
    if (piece.state === PIECE_UNKNOWN || comparison === undefined) return () => true;
    if (piece.state !== PIECE_OTHER)
      return (index) => !tools.isZero(plain.subarray(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE));
    const marks = markBlocks(plain, comparison.salt, tools.digest);
    return (index) =>
      !sameBytes(marks, index * MARK_BYTES, comparison.marks, piece.marksAt + index * MARK_BYTES, MARK_BYTES);
  }
}

function blocksOf(plain: Uint8Array, window: BlockRun, part: BlockRun): Uint8Array {
  const at = (part.start - window.start) * BLOCK_SIZE;
  return plain.subarray(at, at + part.count * BLOCK_SIZE);
}

/** What the replica answered to a question about `run`. Throws PROTOCOL_INVALID for one that does not fit it. */
export function readComparison(answer: unknown, run: BlockRun): Comparison {
  const fields = (answer ?? {}) as Record<string, unknown>;
  const [pieces, salt, marks] = ["pieces", "salt", "marks"].map((name) =>
    Buffer.from(typeof fields[name] === "string" ? fields[name] : "", "base64"),
  ) as [Buffer, Buffer, Buffer]; // As many as names.
  let marksBytes = 0;
  let count = 0;
  for (const piece of splitRuns([run], PIECE_BLOCKS)) {
    if (pieces[count] === PIECE_OTHER) marksBytes += piece.count * MARK_BYTES;
    count += 1;
  }
  if (pieces.length === count && marks.length === marksBytes && pieces.every((state) => state <= PIECE_UNKNOWN))
    return { pieces, salt, marks };
  throw new Fault("PROTOCOL_INVALID", `Expected an answer about ${count} pieces, got ${pieces.length} pieces`);
}
