/**
 * One cut of one disk: the blocks that changed since the cut before, and a way to read them as they were at the mark.
 *
 * ```
 *  set      ├─ exposed: still on the live disk as of the cut; must be kept before it is overwritten
 *           └─ saved:   was about to be overwritten; the old block is here
 *  open ──shipped──► shipped (only `set` is kept) ──committed, discard──► gone
 *    └──── no room for old data ──► void (its blocks are dirty again)
 * ```
 *
 * Several cuts may be open. A block exposed in one was not written since that cut, so it is in no newer cut: the live block belongs to
 * at most one open cut, and one write saves it at most once.
 */
import { BlockSet } from "#model/block-set.ts";
import type { BlockRun } from "#model/block-set.ts";
import { Fault } from "#model/fault.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { BlockDevice } from "#ports/block-device.ts";

export interface FrozenCut {
  readonly cutId: number;
  readonly markedAtMs: number;
  state: "open" | "shipped" | "void";
  set: BlockSet;
  /** Why it is void. */
  failure: string;
  exposed: BlockSet;
  readonly saved: Map<number, Uint8Array>;
}

export function freezeCut(cutId: number, markedAtMs: number, set: BlockSet): FrozenCut {
  return { cutId, markedAtMs, state: "open", set, failure: "", exposed: set.clone(), saved: new Map() };
}

/** Forget the old data, keep the set. Returns the bytes that were freed. */
export function closeCut(cut: FrozenCut, state: "shipped" | "void"): number {
  const freed = cut.saved.size * BLOCK_SIZE;
  cut.saved.clear();
  cut.exposed = new BlockSet(0);
  cut.state = state;
  return freed;
}

/** Keep old blocks: `bytes` are those of `run`, read before they are overwritten. */
export function saveBlocks(cut: FrozenCut, run: BlockRun, bytes: Uint8Array): void {
  cut.exposed.delete(run.start, run.count);
  for (let index = 0; index < run.count; index++)
    cut.saved.set(run.start + index, bytes.subarray(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE));
}

/**
 * Fill `target` with the blocks of `runs` as of the cut. Throws CUT_OVERFLOWED when the cut is or becomes void, PROTOCOL_INVALID for a
 * block that is not in it or a cut that was shipped, and what the device throws.
 */
export async function readFrozen(
  cut: FrozenCut,
  device: BlockDevice,
  runs: readonly BlockRun[],
  target: Uint8Array,
): Promise<void> {
  checkReadable(cut);
  let at = 0;
  const reads: { run: BlockRun; at: number; reading: void | Promise<void> }[] = [];
  for (const run of runs) {
    for (let block = run.start; block < run.start + run.count;) {
      const saved = cut.saved.get(block);
      if (saved !== undefined) {
        target.set(saved, at);
        block++;
        at += BLOCK_SIZE;
        continue;
      }
      const exposed = cut.exposed.runs(block, run.start + run.count).next().value as BlockRun | undefined;
      if (exposed?.start !== block)
        throw new Fault("PROTOCOL_INVALID", `Block "${block}" is not in cut "${cut.cutId}"`);
      reads.push({
        run: exposed,
        at,
        reading: readBlocks(device, exposed, target.subarray(at, at + exposed.count * BLOCK_SIZE)),
      });
      block += exposed.count;
      at += exposed.count * BLOCK_SIZE;
    }
  }
  for (const { run, at: readAt, reading } of reads) {
    if (!(reading instanceof Promise)) continue;
    await reading;
    checkReadable(cut);
    // While the device read, a write may have come: then what it read may be either, and what was saved is right.
    for (let index = 0; index < run.count; index++) {
      const saved = cut.saved.get(run.start + index);
      if (saved !== undefined) target.set(saved, readAt + index * BLOCK_SIZE);
    }
  }
}

function checkReadable(cut: FrozenCut): void {
  if (cut.state === "open") return;
  if (cut.state === "shipped") throw new Fault("PROTOCOL_INVALID", `Cut "${cut.cutId}" was shipped already`);
  throw overflowed(cut);
}

export function overflowed(cut: FrozenCut): Fault {
  return new Fault("CUT_OVERFLOWED", `Cut "${cut.cutId}" is void: ${cut.failure}`, {
    details: { cut: cut.cutId },
    hint: "Nothing is lost: its blocks are shipped with the next cut. If it happens often, cut more often or allow more memory for frozen data.",
  });
}

/** Whole blocks of the live disk; a partial last block is padded with zeroes. */
export function readBlocks(device: BlockDevice, run: BlockRun, target: Uint8Array): void | Promise<void> {
  const offset = run.start * BLOCK_SIZE;
  const bytes = Math.min(run.count * BLOCK_SIZE, device.sizeBytes - offset);
  target.fill(0, bytes);
  return device.read(target.subarray(0, bytes), offset);
}
