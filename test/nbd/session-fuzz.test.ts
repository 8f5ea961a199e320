/** Garbage, and sense cut into pieces: the session machines never throw, and what they understand does not depend on the pieces. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { createNegotiation } from "../../src/nbd/negotiation.ts";
import type { NegotiationStep } from "../../src/nbd/negotiation.ts";
import { checkRequest, createRequestReader } from "../../src/nbd/requests.ts";

const facts = { sizeBytes: 1 << 20, readOnly: false, preferredBlockBytes: 4096 };
const exports = {
  find: (name: string) => (name === "disk" || name === "" ? facts : undefined),
  names: () => ["disk", "other"],
};

function option(type: number, data: Buffer, length = data.length): Buffer {
  const head = Buffer.alloc(16);
  head.write("IHAVEOPT", 0, "latin1");
  head.writeUInt32BE(type, 8);
  head.writeUInt32BE(length, 12);
  return Buffer.concat([head, data]);
}

function named(name: string, rest: Buffer): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(Buffer.byteLength(name));
  return Buffer.concat([length, Buffer.from(name), rest]);
}

const anyBytes = fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from(bytes));
const anyOption = fc.oneof(
  fc.tuple(fc.nat(12), anyBytes).map(([type, data]) => option(type, data)),
  fc
    .tuple(fc.constantFrom(6, 7), fc.constantFrom("disk", "", "nope"), anyBytes)
    .map(([type, name, rest]) => option(type, named(name, rest))),
  fc.constantFrom(6, 7, 9, 10).map((type) => option(type, named("disk", Buffer.alloc(type < 8 ? 2 : 4)))),
  fc.constant(option(8, Buffer.alloc(0))),
  fc.constant(option(3, Buffer.alloc(0))),
  fc.integer({ min: 64 << 10, max: 70 << 10 }).map((length) => option(77, Buffer.alloc(length, 1))),
);
const anyStream = fc
  .tuple(
    fc.constantFrom(0, 1, 2, 3, 3, 3, 4),
    fc.array(fc.oneof({ weight: 8, arbitrary: anyOption }, { weight: 1, arbitrary: anyBytes }), { maxLength: 8 }),
  )
  .map(([flags, parts]) => {
    const start = Buffer.alloc(4);
    start.writeUInt32BE(flags);
    return Buffer.concat([start, ...parts]);
  });

function negotiate(chunks: readonly Buffer[]): { sent: Buffer; outcome: NegotiationStep["outcome"] } {
  const negotiation = createNegotiation(exports);
  const sent: Buffer[] = [];
  for (const [index, chunk] of chunks.entries()) {
    const step = negotiation.push(chunk);
    sent.push(...step.send);
    if (step.outcome === undefined) continue;
    if (step.outcome.type === "ended") return { sent: Buffer.concat(sent), outcome: step.outcome };
    const rest = Buffer.concat([step.outcome.rest, ...chunks.slice(index + 1)]);
    return { sent: Buffer.concat(sent), outcome: { ...step.outcome, rest } };
  }
  return { sent: Buffer.concat(sent), outcome: undefined };
}

function cutAt(stream: Buffer, cuts: readonly number[]): Buffer[] {
  const places = [...new Set(cuts.map((cut) => cut % (stream.length + 1)))].sort((a, b) => a - b);
  const chunks: Buffer[] = [];
  let from = 0;
  for (const place of [...places, stream.length]) {
    if (place > from) chunks.push(stream.subarray(from, place));
    from = place;
  }
  return chunks;
}

test("negotiation survives anything, and does not depend on how the bytes arrive", () => {
  fc.assert(
    fc.property(anyStream, fc.array(fc.nat(100_000), { maxLength: 20 }), (stream, cuts) => {
      assert.deepEqual(negotiate(cutAt(stream, cuts)), negotiate([stream]));
    }),
    { numRuns: 2000 },
  );
});

test("an option that is too long is refused and the next one understood; one that is far too long ends the session", () => {
  const flags = Buffer.from([0, 0, 0, 3]);
  const go = option(7, named("disk", Buffer.alloc(2)));
  const refused = negotiate([flags, option(99, Buffer.alloc(200_000)), go]);
  assert.equal(refused.sent.readUInt32BE(12), 0x80000009);
  assert.equal(refused.outcome?.type, "chosen");
  assert.equal(negotiate([flags, option(99, Buffer.alloc(0), 2 << 20)]).outcome?.type, "ended");
});

test("metadata contexts need structured replies and hold for the export they were asked for", () => {
  const flags = Buffer.from([0, 0, 0, 3]);
  const query = Buffer.concat([Buffer.from([0, 0, 0, 1]), named("base:allocation", Buffer.alloc(0))]);
  const set = option(10, named("disk", query));
  const go = (name: string): Buffer => option(7, named(name, Buffer.alloc(2)));
  const allocation = (...parts: Buffer[]): unknown => {
    const { outcome } = negotiate([flags, ...parts]);
    return outcome?.type === "chosen" ? outcome.negotiated.allocation : outcome;
  };
  const structured = option(8, Buffer.alloc(0));
  assert.equal(allocation(structured, set, go("disk")), true);
  assert.equal(allocation(set, go("disk")), false);
  assert.equal(allocation(structured, set, go("")), false);
  assert.equal(allocation(structured, set, option(10, named("disk", Buffer.alloc(4))), go("disk")), false);
});

interface Sent {
  readonly type: number;
  readonly flags: number;
  readonly offset: bigint;
  readonly length: number;
  readonly data: Buffer;
}

const anyRequest: fc.Arbitrary<Sent> = fc
  .record({
    type: fc.nat(9),
    flags: fc.nat(0x1f),
    offset: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    length: fc.nat(5000),
    fill: fc.integer({ min: 1, max: 255 }),
  })
  .map(({ fill, ...request }) => ({
    ...request,
    data: request.type === 1 ? Buffer.alloc(request.length, fill) : Buffer.alloc(0),
  }));

function encode(request: Sent, cookie: number): Buffer {
  const head = Buffer.alloc(28);
  head.writeUInt32BE(0x25609513, 0);
  head.writeUInt16BE(request.flags, 4);
  head.writeUInt16BE(request.type, 6);
  head.writeUInt32BE(0xdeadbeef, 8);
  head.writeUInt32BE(cookie, 12);
  head.writeBigUInt64BE(request.offset, 16);
  head.writeUInt32BE(request.length, 24);
  return Buffer.concat([head, request.data]);
}

test("requests come out as they were sent, however the stream is cut, and get one verdict each", () => {
  fc.assert(
    fc.property(
      fc.array(anyRequest, { maxLength: 10 }),
      fc.array(fc.nat(60_000), { maxLength: 20 }),
      (requests, cuts) => {
        const reader = createRequestReader((length) => Buffer.alloc(length + 10));
        const seen: unknown[] = [];
        for (const chunk of cutAt(Buffer.concat(requests.map((request, index) => encode(request, index))), cuts)) {
          reader.push(chunk);
          for (let request = reader.next(); request !== undefined; request = reader.next()) {
            assert.ok(typeof request !== "string");
            assert.ok(Number.isInteger(checkRequest(request, facts, { structured: true, allocation: true })));
            seen.push({
              type: request.type,
              flags: request.flags,
              cookie: request.cookieLow,
              length: request.length,
              offset: request.offset,
              data: Buffer.from(request.data ?? []),
            });
          }
        }
        const expected = requests.map((request, cookie) => ({
          type: request.type,
          flags: request.flags,
          cookie,
          length: request.length,
          offset: Number(request.offset),
          data: request.data,
        }));
        assert.deepEqual(seen, expected);
      },
    ),
    { numRuns: 1000 },
  );
});

test("a stream that makes no sense is given up, and stays so", () => {
  fc.assert(
    fc.property(anyBytes, (bytes) => {
      const reader = createRequestReader((length) => Buffer.alloc(length));
      reader.push(
        Buffer.concat([
          encode({ type: 3, flags: 0, offset: 0n, length: 0, data: Buffer.alloc(0) }, 1),
          Buffer.alloc(28, 0xee),
          bytes,
        ]),
      );
      assert.equal((reader.next() as { type: number }).type, 3);
      assert.equal(typeof reader.next(), "string");
      reader.push(bytes);
      assert.equal(typeof reader.next(), "string");
    }),
  );
});
