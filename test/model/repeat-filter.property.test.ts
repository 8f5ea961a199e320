/** Repeat elimination against a flat array: applying what is left gives the same disk as applying everything. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  CODEC_RAW,
  CODEC_ZERO,
  FRAME_HEADER_BYTES,
  KIND_DELTA,
  readFrameRecords,
  writeFrameHeader,
} from "#model/frame-record.ts";
import { createRepeatFilter, type Statement } from "#model/repeat-filter.ts";
import { BLOCK_SIZE } from "#model/units.ts";

const BLOCKS = 24;

interface Write {
  readonly block: number;
  readonly blocks: number;
  /** Undefined: zeroes. Few values, so that repeats happen. */
  readonly value: number | undefined;
}

/** Raw records whose content and digest are made of `value`. */
function payloadOf(writes: readonly Write[]): Uint8Array {
  return Buffer.concat(
    writes.map(({ block, blocks, value }) => {
      const storedBytes = value === undefined ? 0 : blocks * BLOCK_SIZE;
      const record = Buffer.alloc(FRAME_HEADER_BYTES + (value === undefined ? 0 : 16) + storedBytes, (value ?? 0) + 1);
      const view = new DataView(record.buffer, record.byteOffset, record.byteLength);
      writeFrameHeader(view, 0, {
        block,
        blocks,
        codec: value === undefined ? CODEC_ZERO : CODEC_RAW,
        kind: KIND_DELTA,
        storedBytes,
      });
      return record;
    }),
  );
}

function apply(disk: number[], payload: Uint8Array): void {
  for (const record of readFrameRecords(payload)) {
    disk.fill(record.codec === CODEC_ZERO ? 0 : record.stored[0]!, record.block, record.block + record.blocks);
  }
}

const write = fc
  .record({
    block: fc.integer({ min: 0, max: BLOCKS - 1 }),
    blocks: fc.integer({ min: 1, max: 6 }),
    value: fc.option(fc.integer({ min: 0, max: 2 }), { nil: undefined, freq: 5 }),
  })
  .map((one) => ({ ...one, blocks: Math.min(one.blocks, BLOCKS - one.block) }));

test("leaving repeats out changes nothing, however little is remembered", () => {
  fc.assert(
    fc.property(
      fc.array(fc.array(write, { minLength: 1, maxLength: 5 }), { maxLength: 30 }),
      fc.integer({ min: 1, max: 40 }),
      (cycles, blocksMax) => {
        const filter = createRepeatFilter(blocksMax);
        const whole = new Array<number>(BLOCKS).fill(0);
        const reduced = new Array<number>(BLOCKS).fill(0);
        for (const writes of cycles) {
          const payload = payloadOf(writes);
          const target = new Uint8Array(payload.length);
          const { bytes, said, elidedBytes } = filter.filter(payload, target);
          assert.equal([...readFrameRecords(target.subarray(0, bytes))].length, said.length);
          assert.equal(elidedBytes > 0, said.length < writes.length);
          apply(whole, payload);
          apply(reduced, target.subarray(0, bytes));
          assert.deepEqual(reduced, whole);
        }
      },
    ),
    { numRuns: 500 },
  );
});

test("a repeat is left out, a version in between is not forgotten, and nothing is a repeat after clear or in another life", () => {
  const filter = createRepeatFilter(100);
  const all: Statement[] = [];
  const kept = (writes: readonly Write[]): number => {
    const payload = payloadOf(writes);
    const { said } = filter.filter(payload, new Uint8Array(payload.length));
    all.push(...said);
    return said.length;
  };
  const a = { block: 4, blocks: 3, value: 1 };
  assert.equal(kept([a]), 1);
  assert.equal(kept([a]), 0);
  assert.equal(kept([{ ...a, value: 2 }]), 1);
  assert.equal(kept([a]), 1, "A, B, A: the second A is news");
  assert.equal(kept([{ block: 5, blocks: 1, value: undefined }]), 1);
  assert.equal(kept([a]), 1, "a part of it was zeroed");
  filter.clear();
  assert.equal(kept([a]), 1);
  const another = createRepeatFilter(100);
  another.restore(all);
  assert.equal(another.filter(payloadOf([a]), new Uint8Array(3 * BLOCK_SIZE + 32)).said.length, 0);
});
