import assert from "node:assert/strict";
import { test } from "node:test";
import { frameCache } from "../../src/data-mover/frame-cache.ts";
import { seededRandom } from "../support/format-samples.ts";

const LIMIT = 1 << 20;

test("Whatever is put in and looked up, the cache holds what was put, the newest first, and no more than its bound", () => {
  const random = seededRandom("cache");
  const cache = frameCache(LIMIT);
  const order: number[] = []; // Least recently used first.
  for (let step = 0; step < 5000; step++) {
    const frame = random.below(400);
    if (cache.has(frame)) {
      const plain = cache.get(frame)!;
      assert.ok(plain.every((byte) => byte === frame % 251));
      order.splice(order.indexOf(frame), 1);
      order.push(frame);
      continue;
    }
    assert.equal(cache.get(frame), undefined);
    const plain = cache.take((1 + random.below(64)) * 4096);
    plain.fill(frame % 251);
    if (random.below(10) === 0) {
      cache.discard(plain);
      continue;
    }
    cache.put(frame, plain);
    order.push(frame);
    assert.ok(cache.usedBytes <= LIMIT);
    assert.ok(cache.has(frame), "the newest is there");
    // Who is gone is older than who is there.
    const firstThere = order.findIndex((one) => cache.has(one));
    assert.ok(order.slice(firstThere).every((one) => cache.has(one)));
    order.splice(0, firstThere);
  }
});

test("A buffer is used again, and never by two frames at once", () => {
  const cache = frameCache(LIMIT);
  const buffers = new Set<ArrayBufferLike>();
  for (let frame = 0; frame < 1000; frame++) {
    const plain = cache.take(256 << 10);
    buffers.add(plain.buffer);
    cache.put(frame, plain);
  }
  assert.ok(buffers.size <= 6, `${buffers.size} buffers`);
  const there = [...Array(1000).keys()].flatMap((frame) => (cache.has(frame) ? [cache.get(frame)!.buffer] : []));
  assert.equal(new Set(there).size, there.length);
});

test("A frame larger than the bound is not kept", () => {
  const cache = frameCache(64 << 10);
  cache.put(1, cache.take(256 << 10));
  assert.equal(cache.has(1), false);
  assert.equal(cache.usedBytes, 0);
});
