/** The native parts of packing frames: zstd, SHA-256, comparing. One per thread: a compressor is not shared. */
import { hash } from "node:crypto";
import zstd from "zstd-napi/binding.js"; // CommonJS with getters: named imports are not seen.
import { DIGEST_BYTES } from "#model/frame-record.ts";
import { ZSTD_PARAMETERS, type FrameTools } from "#model/frame-packer.ts";

const ZEROES = Buffer.alloc(1 << 16);

export function createFrameTools(): FrameTools {
  const compressor = new zstd.CCtx();
  for (const [name, value] of Object.entries(ZSTD_PARAMETERS)) {
    compressor.setParameter(zstd.CParameter[name as keyof typeof ZSTD_PARAMETERS], value); // Object.entries widens the keys.
  }
  return {
    compress: (target, plain) => compressor.compress2(target, plain),
    digest: (target, piece) => target.set(hash("sha256", piece, "buffer").subarray(0, DIGEST_BYTES)),
    isZero: (plain) => ZEROES.compare(plain, 0, plain.length, 0, plain.length) === 0,
  };
}
