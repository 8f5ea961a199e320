import assert from "node:assert/strict";
import { hash } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { runsOf, SOURCE_TRIM, SOURCE_ZERO } from "#model/extent-map.ts";
import { Fault } from "#model/fault.ts";
import { decodeFooter } from "#model/format/footer.ts";
import { decodeHeader, FOOTER_BYTES, formatContainerId, HEADER_BYTES } from "#model/format/header.ts";
import { CODEC_ZERO, KIND_DELTA, KIND_SWEEP } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import {
  digestsHold,
  frameOpener,
  openHead,
  type OpenedHead,
  readIndex,
} from "../../src/data-mover/container-reader.ts";
import { containerWriter, type SealedContainer } from "../../src/data-mover/container-writer.ts";
import {
  blockData,
  DETAILS,
  DISK_ID,
  frameOf,
  PLACE,
  STORE_ID,
  TEST_DATA_KEY,
  writerOptions,
} from "../support/format-samples.ts";

const KEYS = { cipher: "aes-256-gcm", keyOf: () => TEST_DATA_KEY.key } as const;

function opened(bytes: Uint8Array, keys: Parameters<typeof openHead>[1] = KEYS): OpenedHead {
  const head = openHead(bytes, keys);
  assert.ok(!("needBytes" in head));
  return head;
}

function sample(): SealedContainer {
  const writer = containerWriter(writerOptions());
  writer.append(frameOf(100, blockData(100, 16), KIND_SWEEP));
  writer.append(frameOf(104, blockData(104, 2, 2)));
  writer.append({
    block: 300,
    blocks: 40,
    codec: CODEC_ZERO,
    kind: KIND_DELTA,
    digests: new Uint8Array(),
    stored: new Uint8Array(),
  });
  writer.appendTrim({ block: 500, blocks: 8, kind: KIND_DELTA });
  return writer.finish(PLACE, DETAILS);
}

test("What a writer seals a reader opens: header, extents, frames and digests", () => {
  const { bytes, header, headSha256, commitHash } = sample();
  const head = opened(bytes);
  assert.deepEqual({ ...head.header, major: 1, minor: 0 }, { ...header, major: 1, minor: 0, totalBytes: bytes.length });
  assert.equal(head.commitHash, commitHash);
  const index = readIndex(head);
  const runs = [...runsOf(index.extents, 98, 500)].map(({ start, length, source, frame }) => [
    start,
    length,
    source,
    frame,
  ]);
  assert.deepEqual(runs, [
    [98, 2, undefined, 0],
    [100, 4, 0, 0],
    [104, 2, 0, 1],
    [106, 10, 0, 0],
    [116, 184, undefined, 0],
    [300, 40, SOURCE_ZERO, 0],
    [340, 160, undefined, 0],
    [500, 8, SOURCE_TRIM, 0],
    [508, 90, undefined, 0],
  ]);

  const directory = index.directories[0]!;
  const opener = frameOpener({ ...header, storeId: STORE_ID, diskId: DISK_ID, dataKey: TEST_DATA_KEY.key });
  let at = HEADER_BYTES + header.indexBytes;
  [blockData(100, 16), blockData(104, 2, 2)].forEach((expected, frame) => {
    const end = at + directory.storedBytes[frame]! + opener.tagBytes;
    const place = {
      frame,
      block: directory.block[frame]!,
      blocks: directory.blocks[frame]!,
      codec: directory.codec[frame]!,
    };
    const plain = Buffer.alloc(place.blocks * BLOCK_SIZE);
    opener.openInto(plain, bytes.subarray(at, end), place);
    assert.deepEqual(plain, expected);
    assert.ok(digestsHold(plain, index.digests.subarray(frame * 16, frame * 16 + 16)));
    assert.ok(
      !digestsHold(blockData(1, plain.length / BLOCK_SIZE), index.digests.subarray(frame * 16, frame * 16 + 16)),
    );
    for (const wrong of [{ frame: frame + 1 }, { block: place.block + 1 }, { blocks: place.blocks - 1 }]) {
      assert.throws(() => opener.openInto(plain, bytes.subarray(at, end), { ...place, ...wrong }), {
        code: "OBJECT_CORRUPT",
      });
    }
    at = end;
  });
  assert.equal(at, bytes.length - FOOTER_BYTES);

  const footer = decodeFooter(bytes.subarray(-FOOTER_BYTES));
  assert.deepEqual(footer.headSha256, new Uint8Array(headSha256));
  assert.deepEqual(
    footer.bodySha256,
    new Uint8Array(hash("sha256", bytes.subarray(HEADER_BYTES + header.indexBytes, -FOOTER_BYTES), "buffer")),
  );
  assert.equal(footer.totalBytes, bytes.length);
});

test("Finishing again for another slot changes header and index, and leaves the frames as they were sealed", () => {
  const writer = containerWriter(writerOptions());
  writer.append(frameOf(7, blockData(7, 3)));
  const first = writer.finish(PLACE, DETAILS);
  const firstBytes = first.bytes.slice();
  const second = writer.finish({ ...PLACE, seq: 2, chain: "ab".repeat(16) }, DETAILS);
  const bodyOf = (bytes: Uint8Array, { header }: SealedContainer): Buffer =>
    Buffer.from(bytes.subarray(HEADER_BYTES + header.indexBytes, bytes.length - FOOTER_BYTES));
  assert.deepEqual(bodyOf(second.bytes, second), bodyOf(firstBytes, first));
  assert.notDeepEqual(second.header.indexSalt, first.header.indexSalt);
  assert.deepEqual(second.header.salt, first.header.salt);
  assert.notEqual(second.commitHash, first.commitHash);
  assert.equal(opened(second.bytes).header.seq, 2);
});

test("A commit names the frames of its segments, and needs only their sealed form to do so", () => {
  const containerId = formatContainerId({ role: "writer", term: 1, counter: 5 });
  const segmentWriter = containerWriter(writerOptions({ containerId }));
  segmentWriter.append(frameOf(0, blockData(0, 64), KIND_SWEEP));
  segmentWriter.append(frameOf(64, blockData(64, 64), KIND_SWEEP));
  const { bytes: segmentBytes, segment } = segmentWriter.finishSegment(PLACE, DETAILS);
  const journal = containerWriter(writerOptions());
  journal.append(frameOf(60, blockData(60, 8, 2)));
  const commit = journal.finish(PLACE, { ...DETAILS, segments: [segment] });
  const index = readIndex(opened(commit.bytes));
  assert.deepEqual(
    [...runsOf(index.extents, 0, 128)].map((run) => [run.start, run.length, run.source, run.frame]),
    [
      [0, 60, 1, 0],
      [60, 8, 0, 0],
      [68, 60, 1, 1],
    ],
  );
  assert.equal(index.segments[0]!.containerId, containerId);
  const segmentHead = opened(segmentBytes);
  assert.equal(segmentHead.header.kind, "segment");
  assert.deepEqual(index.segments[0]!.headSha256, new Uint8Array(segmentHead.headSha256));
  assert.deepEqual(readIndex(segmentHead).directories[0], index.directories[1]);
});

test("A full buffer yields one object of at most its size, and says beforehand what still fits", () => {
  const writer = containerWriter(writerOptions({ buffer: new Uint8Array(1 << 20) }));
  let frames = 0;
  for (;;) {
    const frame = frameOf(frames % 8192, Buffer.from(writerOptions().random.bytes(BLOCK_SIZE)));
    if (!writer.fits(frame.stored.length)) {
      assert.throws(() => writer.append(frame), RangeError);
      break;
    }
    writer.append(frame);
    frames++;
  }
  assert.ok(frames > 240);
  const { bytes } = writer.finish(PLACE, { ...DETAILS, diskSizeBytes: 8192 * BLOCK_SIZE });
  assert.ok(bytes.length <= 1 << 20);
  assert.equal(readIndex(opened(bytes)).directories[0]!.count, frames);
});

test("An index that outgrows its reserve is still one object", () => {
  const writer = containerWriter(writerOptions({ buffer: new Uint8Array(64 << 10) }));
  for (let block = 0; block < 60_000; block++) {
    const blocks = 1 + ((block * 7919) % 13);
    writer.append({
      block: block * 17 + (block % 3),
      blocks,
      codec: CODEC_ZERO,
      kind: KIND_DELTA,
      digests: new Uint8Array(),
      stored: new Uint8Array(),
    });
  }
  const { bytes } = writer.finish(PLACE, { ...DETAILS, diskSizeBytes: 2 ** 40 });
  assert.equal(readIndex(opened(bytes)).extents.count, 60_000);
});

test("Marks of tracker, barrier and sync travel in the index", () => {
  const marks = {
    tracker: { bootId: "5e0a…", generation: 3, lostEvents: 1, holdMs: 12 },
    barrier: { groupId: "grüppe", groupEpoch: 4, barrier: 2 ** 40, point: true },
    sync: { remainingBytes: 5, totalBytes: 2 ** 45 },
  };
  const index = readIndex(opened(containerWriter(writerOptions()).finish(PLACE, { ...DETAILS, ...marks }).bytes));
  assert.deepEqual({ tracker: index.tracker, barrier: index.barrier, sync: index.sync }, marks);
});

test("Every single changed byte of header, index or footer is refused with a fault", () => {
  const { bytes, header } = sample();
  const headBytes = HEADER_BYTES + header.indexBytes;
  for (let at = 0; at < headBytes; at++) {
    const damaged = bytes.slice();
    damaged[at]! ^= 1 + (at % 255);
    assert.throws(
      () => openHead(damaged, KEYS),
      (error) => error instanceof Fault,
      `byte ${at}`,
    );
  }
  for (let at = bytes.length - FOOTER_BYTES; at < bytes.length; at++) {
    const damaged = bytes.slice();
    damaged[at]! ^= 1 + (at % 255);
    assert.throws(() => decodeFooter(damaged.subarray(-FOOTER_BYTES)), { code: "OBJECT_CORRUPT" }, `byte ${at}`);
  }
});

test("A changed byte of a frame is refused", () => {
  const { bytes, header } = sample();
  const head = opened(bytes);
  const directory = readIndex(head).directories[0]!;
  const opener = frameOpener({ ...header, dataKey: TEST_DATA_KEY.key });
  const start = HEADER_BYTES + header.indexBytes;
  const end = start + directory.storedBytes[0]! + opener.tagBytes;
  const place = { frame: 0, block: directory.block[0]!, blocks: directory.blocks[0]!, codec: directory.codec[0]! };
  for (let at = start; at < end; at += 7) {
    const damaged = bytes.slice(start, end);
    damaged[at - start]! ^= 0x40;
    assert.throws(() => opener.openInto(Buffer.alloc(place.blocks * BLOCK_SIZE), damaged, place), {
      code: "OBJECT_CORRUPT",
    });
  }
});

test("Another key, another cipher, a cut-off object: each refusal says which", () => {
  const { bytes } = sample();
  const other = { cipher: "aes-256-gcm", keyOf: () => writerOtherKey } as const;
  assert.throws(() => openHead(bytes, other), { code: "OBJECT_CORRUPT" });
  assert.throws(() => openHead(bytes, { ...KEYS, cipher: "none" }), { code: "OBJECT_CORRUPT" });
  assert.deepEqual(openHead(bytes.subarray(0, 100), KEYS), { needBytes: 256 });
  assert.deepEqual(openHead(bytes.subarray(0, 300), KEYS), {
    needBytes: HEADER_BYTES + decodeHeader(bytes).indexBytes,
  });
});

test("Without a cipher, random damage behind the CRC still yields only faults", () => {
  // The index is compressed, so damage mostly meets zstd or the section reader.
  const writer = containerWriter(writerOptions({ cipher: "none", dataKey: undefined }));
  for (let frame = 0; frame < 20; frame++) writer.append(frameOf(frame * 3, blockData(frame * 3, 2)));
  const { bytes, header } = writer.finish(PLACE, DETAILS);
  const keys = { cipher: "none", keyOf: () => TEST_DATA_KEY.key } as const;
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(header.indexBytes - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }),
      (changes) => {
        const damaged = bytes.slice();
        for (const [at, value] of changes) damaged[HEADER_BYTES + at] = value;
        try {
          readIndex(opened(damaged, keys));
        } catch (error) {
          assert.ok(
            error instanceof Fault && (error.code === "OBJECT_CORRUPT" || error.code === "FORMAT_UNSUPPORTED"),
            String(error),
          );
        }
      },
    ),
    { numRuns: 2000 },
  );
});

const writerOtherKey = (await import("node:crypto")).createSecretKey(Buffer.alloc(32, 8));
