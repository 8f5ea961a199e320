/** The packer against a flat array: whatever goes in, unpacking the records gives the same blocks, and nothing else. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { decompress } from "zstd-napi";
import { compressRecords, createFramePacker, recompressedBytesMax } from "#model/frame-packer.ts";
import { CODEC_RAW, CODEC_ZERO, CODEC_ZSTD, KIND_DELTA, PIECE_BYTES, readFrameRecords } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { createFrameTools } from "../../src/agent/frame-tools.ts";

const tools = createFrameTools();

/** What a block holds: nothing, text that compresses, or noise that does not. Each says which block it is. */
type Fill = "zero" | "text" | "noise";

function blockOf(fill: Fill, block: number): Buffer {
  if (fill === "zero") return Buffer.alloc(BLOCK_SIZE);
  const bytes = fill === "noise" ? randomBytes(BLOCK_SIZE) : Buffer.alloc(BLOCK_SIZE, `block ${block} `);
  bytes.writeDoubleLE(block + 1, 0);
  return bytes;
}

async function pack(
  runs: readonly { start: number; plain: Buffer }[],
  frameBlocks: number,
  compress: boolean,
): Promise<Buffer[]> {
  const payloads: Buffer[] = [];
  const packer = createFramePacker({
    tools,
    kind: KIND_DELTA,
    frameBlocks,
    compress,
    async emit(payload) {
      await new Promise((resolve) => setImmediate(resolve)); // The batch must not be reused before this settles.
      payloads.push(Buffer.from(payload));
    },
  });
  for (const { start, plain } of runs) await packer.add(plain, start);
  await packer.flush();
  return payloads;
}

/** Block → content, with every claim of the records checked. */
function unpack(payloads: readonly Uint8Array[], frameBlocks: number): Map<number, Buffer> {
  const blocks = new Map<number, Buffer>();
  for (const record of payloads.flatMap((payload) => [...readFrameRecords(payload)])) {
    let plain: Buffer = Buffer.alloc(record.blocks * BLOCK_SIZE);
    if (record.codec !== CODEC_ZERO) {
      assert.ok(record.blocks <= frameBlocks);
      plain = record.codec === CODEC_ZSTD ? decompress(record.stored) : Buffer.from(record.stored);
      for (let at = 0; at < plain.length; at += PIECE_BYTES) {
        const digest = createHash("sha256")
          .update(plain.subarray(at, at + PIECE_BYTES))
          .digest()
          .subarray(0, 16);
        assert.deepEqual(
          Buffer.from(record.digests.subarray((at / PIECE_BYTES) * 16, (at / PIECE_BYTES) * 16 + 16)),
          digest,
        );
      }
    }
    for (let index = 0; index < record.blocks; index += 1) {
      assert.ok(!blocks.has(record.block + index), `block ${record.block + index} came twice`);
      blocks.set(record.block + index, plain.subarray(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE));
    }
  }
  return blocks;
}

const fill = fc.constantFrom<Fill>("zero", "zero", "text", "noise");
const stretches = fc.array(fc.tuple(fill, fc.integer({ min: 1, max: 40 })), { minLength: 1, maxLength: 8 });
const runsOf = fc.array(fc.tuple(fc.integer({ min: 0, max: 60 }), stretches), { minLength: 1, maxLength: 6 });

test("what is packed is what is unpacked, at every frame size, compressed and raw", async () => {
  await fc.assert(
    fc.asyncProperty(runsOf, fc.constantFrom(1, 16, 64), fc.boolean(), async (shape, frameBlocks, compress) => {
      let next = 2 ** 33; // Beyond 32 bits.
      const expected = new Map<number, Buffer>();
      const runs = shape.map(([gap, parts]) => {
        const start = next + gap;
        const blocks = parts
          .flatMap(([kind, count]) => Array.from({ length: count }, () => kind))
          .map((kind, index) => blockOf(kind, start + index));
        blocks.forEach((block, index) => expected.set(start + index, block));
        next = start + blocks.length;
        return { start, plain: Buffer.concat(blocks) };
      });
      const payloads = await pack(runs, frameBlocks, compress);
      for (const payload of payloads) assert.ok(payload.length <= 2 << 20);
      assert.deepEqual(unpack(payloads, frameBlocks), expected);
      const again = payloads.map((payload) => {
        const target = new Uint8Array(recompressedBytesMax(payload));
        return target.slice(0, compressRecords(payload, target, tools.compress));
      });
      assert.deepEqual(unpack(again, frameBlocks), expected);
    }),
    { numRuns: 60 },
  );
});

test("zero runs are joined over windows, and noise is stored raw", async () => {
  const zeroes = Buffer.alloc(64 * BLOCK_SIZE);
  const noise = Buffer.concat(Array.from({ length: 16 }, (_, index) => blockOf("noise", 256 + index)));
  const payloads = await pack(
    [...[0, 64, 128, 192].map((start) => ({ start, plain: zeroes })), { start: 256, plain: noise }],
    64,
    true,
  );
  const records = payloads.flatMap((payload) => [...readFrameRecords(payload)]);
  assert.deepEqual(
    records.map(({ block, blocks, codec }) => ({ block, blocks, codec })),
    [
      { block: 0, blocks: 256, codec: CODEC_ZERO },
      { block: 256, blocks: 16, codec: CODEC_RAW },
    ],
  );
});

test("a send that fails ends the packing with its fault", async () => {
  const packer = createFramePacker({
    tools,
    kind: KIND_DELTA,
    frameBlocks: 16,
    compress: false,
    emit: () => Promise.reject(new Error("the lane is gone")),
  });
  await assert.rejects(async () => {
    for (let start = 0; start < 4096; start += 16)
      await packer.add(Buffer.concat(Array.from({ length: 16 }, (_, index) => blockOf("text", start + index))), start);
    await packer.flush();
  }, /the lane is gone/);
});
