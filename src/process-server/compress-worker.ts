/** A compressing thread (see compress-pool.ts). */
import { parentPort } from "node:worker_threads";
import zstd from "zstd-napi/binding.js"; // CommonJS with getters: named imports are not seen.
import { compressRecords, ZSTD_PARAMETERS } from "#model/frame-packer.ts";
import type { CompressResult, CompressTask } from "./compress-pool.ts";

const port = parentPort;
if (port === null) throw new RangeError("Expected to run in a worker thread");
const compressor = new zstd.CCtx();
for (const [name, value] of Object.entries(ZSTD_PARAMETERS)) {
  compressor.setParameter(zstd.CParameter[name as keyof typeof ZSTD_PARAMETERS], value); // Object.entries widens the keys.
}

port.on("message", ({ buffer, payloadBytes }: CompressTask) => {
  const target = new Uint8Array(buffer, payloadBytes);
  const bytes = compressRecords(new Uint8Array(buffer, 0, payloadBytes), target, (to, plain) =>
    compressor.compress2(to, plain),
  );
  port.postMessage({ buffer, offset: payloadBytes, bytes } satisfies CompressResult, [buffer]);
});
