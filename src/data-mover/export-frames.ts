/** Plain blocks of an export's cut as frame records: the same packing as at an agent, in this thread, for cuts here are small. */
import { hash } from "node:crypto";
import binding from "zstd-napi/binding.js";
import { createFramePacker, ZSTD_PARAMETERS, type FramePacker, type FrameTools } from "#model/frame-packer.ts";
import { DIGEST_BYTES, type FrameKind } from "#model/frame-record.ts";

/** 64 KiB: what a delta's frame has at most, so that a cold read fetches little. */
export const DELTA_FRAME_BLOCKS = 16;

export function exportPacker(
  kind: FrameKind,
  emit: (payload: Uint8Array, records: number) => Promise<void>,
): FramePacker {
  return createFramePacker({ tools, kind, frameBlocks: DELTA_FRAME_BLOCKS, compress: true, emit });
}

const compressor = new binding.CCtx();
for (const [name, value] of Object.entries(ZSTD_PARAMETERS)) {
  compressor.setParameter(binding.CParameter[name as keyof typeof ZSTD_PARAMETERS], value); // Object.entries widens the keys.
}
const ZEROES = Buffer.alloc(1 << 16);

const tools: FrameTools = {
  compress: (target, plain) => compressor.compress2(target, plain),
  digest: (target, piece) => target.set(hash("sha256", piece, "buffer").subarray(0, DIGEST_BYTES)),
  isZero: (plain) => ZEROES.compare(plain, 0, plain.length, 0, plain.length) === 0,
};
