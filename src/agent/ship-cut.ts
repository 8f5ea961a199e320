/** Reads a cut out of the tap, as it was when it was marked, and sends it as delta frames. */
import { batchRuns, countBlocks } from "#model/block-runs.ts";
import { createFramePacker, type FrameTools } from "#model/frame-packer.ts";
import { KIND_DELTA } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { TapClient } from "../capture/tap/tap-client.ts";

/** 64 KiB: a cold read from the replica costs one frame, and small writes stay small. */
const FRAME_BLOCKS = 16;
/** 1 MiB: what the tap reads at once, between two turns of serving the machine. */
const READ_BLOCKS = 256;

/**
 * Sends all blocks of the cut through `emit`, and tells the tap that it need not keep their old data any more.
 * Returns the plain bytes. Throws CUT_OVERFLOWED, NOT_FOUND (another life of the tap), and what `emit` throws; the cut is then to be discarded.
 */
export async function shipCut(options: {
  readonly tap: TapClient;
  readonly diskId: string;
  readonly cycle: number;
  readonly compress: boolean;
  readonly tools: FrameTools;
  readonly emit: (payload: Uint8Array) => Promise<void>;
}): Promise<number> {
  const { tap, diskId, cycle, compress, tools, emit } = options;
  const extents = await tap.cutExtents(diskId, cycle);
  const packer = createFramePacker({ tools, kind: KIND_DELTA, frameBlocks: FRAME_BLOCKS, compress, emit });
  const batches = [...batchRuns(extents, READ_BLOCKS)];
  // The next batch is read while this one is packed.
  let reading = batches[0] === undefined ? undefined : tap.readCut(diskId, cycle, batches[0]);
  for (const [index, batch] of batches.entries()) {
    const plain = await reading!; // There is one for every batch.
    const following = batches[index + 1];
    reading = following === undefined ? undefined : tap.readCut(diskId, cycle, following);
    reading?.catch(() => undefined); // It is awaited in the next turn, unless packing fails first.
    let at = 0;
    for (const run of batch) {
      await packer.add(plain.subarray(at, at + run.count * BLOCK_SIZE), run.start);
      at += run.count * BLOCK_SIZE;
    }
  }
  await packer.flush();
  await tap.shipped(diskId, cycle);
  return countBlocks(extents) * BLOCK_SIZE;
}
