import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { crc32c } from "#model/checksum.ts";
import { type ExtentMap, extentMapBuilder, SOURCE_TRIM, SOURCE_ZERO } from "#model/extent-map.ts";
import { Fault } from "#model/fault.ts";
import { byteReader, byteWriter } from "#model/format/byte-cursor.ts";
import { type CommitIndex, decodeIndex, encodeIndex } from "#model/format/commit-index.ts";
import { MAX_U48 } from "#model/format/fields.ts";
import { decodeFooter, encodeFooter } from "#model/format/footer.ts";
import {
  bodyBytesOf,
  digestBytesOf,
  type FrameDirectory,
  frameDirectoryBuilder,
} from "#model/format/frame-directory.ts";
import {
  type ContainerHeader,
  decodeHeader,
  encodeHeader,
  formatContainerId,
  HEADER_BYTES,
  parseContainerId,
} from "#model/format/header.ts";
import * as names from "#model/format/object-names.ts";
import * as records from "#model/format/records.ts";
import { decodeWrappedKey, encodeWrappedKey, type WrappedKeyRecord } from "#model/format/wrapped-key.ts";
import { HEADER } from "../support/format-samples.ts";

const u48 = fc.integer({ min: 0, max: MAX_U48 });
const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const hexText = (length: number) => bytes(length).map((data) => Buffer.from(data).toString("hex"));
const name = (limit: number) => fc.stringMatching(new RegExp(`^[A-Za-z0-9][A-Za-z0-9._-]{0,${limit - 1}}$`));
const containerId = fc
  .tuple(fc.constantFrom("writer", "collector"), fc.integer({ min: 0, max: 0xffffffff }), u48)
  .map(([role, term, counter]) => formatContainerId({ role, term, counter }));

const header: fc.Arbitrary<ContainerHeader> = fc.record({
  kind: fc.constantFrom("journal", "segment", "pack", "fence"),
  cipher: fc.constantFrom("none", "aes-256-gcm"),
  flags: fc.integer({ min: 0, max: 0xffffffff }),
  incompatible: fc.constant(0),
  storeId: fc.uuid(),
  diskId: name(36),
  branchId: name(20),
  epoch: u48,
  seq: u48,
  cycle: u48,
  cycleDisks: fc.integer({ min: 0, max: 0xffff }),
  firstWriteMs: u48,
  cutMs: u48,
  rawCutMs: u48,
  chain: bytes(16),
  diskSizeBytes: u48,
  sectorBytes: fc.constantFrom(512, 1024, 2048, 4096),
  indexBytes: fc.integer({ min: 0, max: 1 << 20 }),
  frameCount: fc.integer({ min: 0, max: 0xffffffff }),
  extentCount: fc.integer({ min: 0, max: 0xffffffff }),
  bodyBytes: fc.integer({ min: 0, max: 64 << 20 }),
  containerId,
  salt: bytes(32),
  indexSalt: bytes(16),
  dataKeyId: hexText(8),
  writerId: hexText(8),
});

/** `decode` may only return or throw one of the faults that say "this is not what was written". */
function refusesOrReads(decode: () => unknown): void {
  try {
    decode();
  } catch (error) {
    assert.ok(error instanceof Fault && ["OBJECT_CORRUPT", "FORMAT_UNSUPPORTED"].includes(error.code), String(error));
  }
}

test("CRC32C has the check value of its standard, and continues", () => {
  assert.equal(crc32c(Buffer.from("123456789")), 0xe3069283);
  assert.equal(crc32c(Buffer.from("6789"), crc32c(Buffer.from("12345"))), 0xe3069283);
});

test("Any header is decoded as it was encoded, also from the middle of a buffer", () => {
  fc.assert(
    fc.property(header, (value) => {
      const buffer = new Uint8Array(HEADER_BYTES + 20).fill(0xee);
      encodeHeader(value, buffer.subarray(7));
      const { major, minor, totalBytes, ...decoded } = decodeHeader(buffer.subarray(7));
      assert.deepEqual(decoded, { ...value });
      assert.deepEqual([major, minor], [1, 0]);
      assert.equal(totalBytes, HEADER_BYTES + value.indexBytes + value.bodyBytes + 80);
      assert.ok(
        buffer.subarray(7 + HEADER_BYTES).every((byte) => byte === 0xee),
        "nothing behind it is touched",
      );
    }),
  );
});

test("Every bit of a header matters", () => {
  const encoded = encodeHeader(HEADER);
  for (let bit = 0; bit < HEADER_BYTES * 8; bit++) {
    const damaged = encoded.slice();
    damaged[bit >> 3]! ^= 1 << (bit & 7);
    assert.throws(() => decodeHeader(damaged), { code: "OBJECT_CORRUPT" }, `bit ${bit}`);
  }
  for (let length = 0; length < HEADER_BYTES; length++) {
    assert.throws(() => decodeHeader(encoded.subarray(0, length)), { code: "OBJECT_CORRUPT" });
  }
});

test("A header with a valid CRC and anything else in it is read, or refused with a fault", () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(251), fc.nat(255)), { minLength: 1, maxLength: 6 }), (changes) => {
      const damaged = encodeHeader(HEADER).slice();
      for (const [at, value] of changes) if (at >= 4) damaged[at] = value;
      new DataView(damaged.buffer).setUint32(252, crc32c(damaged.subarray(0, 252)), true);
      refusesOrReads(() => decodeHeader(damaged));
    }),
    { numRuns: 3000 },
  );
});

test("What a later version may write is refused as unsupported, and says so", () => {
  const changed = (at: number, value: number): Uint8Array => {
    const data = encodeHeader(HEADER).slice();
    data[at] = value;
    new DataView(data.buffer).setUint32(252, crc32c(data.subarray(0, 252)), true);
    return data;
  };
  for (const at of [4, 8, 9, 10, 11, 16, 19]) {
    assert.throws(() => decodeHeader(changed(at, 99)), { code: "FORMAT_UNSUPPORTED" }, `byte ${at}`);
  }
  assert.equal(decodeHeader(changed(6, 9)).minor, 9, "a minor version is none of our business");
  assert.equal(decodeHeader(changed(15, 0x80)).flags, 0x80000001, "nor is an unknown compatible flag");
});

test("Fields out of bounds are a bug of the caller", () => {
  for (const wrong of [
    { epoch: -1 },
    { seq: 2 ** 48 },
    { cycle: 1.5 },
    { chain: new Uint8Array(15) },
    { diskId: "a/b" },
    { diskId: "x".repeat(37) },
    { branchId: "" },
    { storeId: "not-a-uuid" },
    { sectorBytes: 520 },
    { containerId: "0" },
    { bodyBytes: 2 ** 31 },
    { cycleDisks: 70_000 },
  ]) {
    assert.throws(() => encodeHeader({ ...HEADER, ...wrong }), RangeError, JSON.stringify(wrong));
  }
});

test("Container ids sort by role, term and counter, and parse back", () => {
  const id = fc.record({
    role: fc.constantFrom("writer" as const, "collector" as const),
    term: fc.integer({ min: 0, max: 0xffffffff }),
    counter: u48,
  });
  fc.assert(fc.property(id, (value) => assert.deepEqual(parseContainerId(formatContainerId(value)), { ...value })));
  assert.ok(
    formatContainerId({ role: "writer", term: 9, counter: 99 }) <
      formatContainerId({ role: "writer", term: 10, counter: 1 }),
  );
  assert.equal(parseContainerId("030000000000000000000000"), undefined);
});

test("Numbers and texts are read as they were written, to the last whole number there is", () => {
  fc.assert(
    fc.property(
      fc.array(fc.maxSafeNat()),
      fc.array(fc.integer()),
      fc.string({ unit: "binary" }),
      (numbers, signed, text) => {
        const writer = byteWriter(1);
        for (const value of [...numbers, Number.MAX_SAFE_INTEGER]) writer.varint(value);
        for (const value of signed) writer.signed(value);
        writer.text(text.toWellFormed());
        const reader = byteReader(writer.view(), "Test");
        for (const value of [...numbers, Number.MAX_SAFE_INTEGER]) assert.equal(reader.varint(), value);
        for (const value of signed) assert.equal(reader.signed(), value);
        assert.equal(reader.text(), text.toWellFormed());
        assert.equal(reader.remaining, 0);
        assert.throws(() => reader.byte(), { code: "OBJECT_CORRUPT" });
      },
    ),
  );
  assert.throws(() => byteReader(new Uint8Array(9).fill(0xff), "Test").varint(), { code: "OBJECT_CORRUPT" });
});

const DISK_BLOCKS = 100_000;

const directory = fc
  .array(
    fc.record({
      block: fc.nat(DISK_BLOCKS - 64),
      blocks: fc.integer({ min: 1, max: 64 }),
      codec: fc.constantFrom(0, 1),
      part: fc.integer({ min: 1, max: 4095 }),
    }),
    { maxLength: 20 },
  )
  .map((frames) => {
    const builder = frameDirectoryBuilder(1);
    for (const frame of frames)
      builder.push(frame, frame.codec === 0 ? frame.blocks * 4096 : frame.blocks * frame.part);
    return builder.view();
  });

/** Some run in each frame of the directories that does not overlap another, and zeroes behind all. */
function extentsFor(directories: readonly FrameDirectory[]): ExtentMap {
  const all = directories.flatMap((frames, source) =>
    Array.from(frames.block, (block, frame) => ({ start: block, length: frames.blocks[frame]!, source, frame })),
  );
  all.sort((a, b) => a.start - b.start);
  const builder = extentMapBuilder();
  let end = 0;
  for (const run of all) {
    const start = Math.max(run.start, end);
    const stop = run.start + run.length;
    if (stop <= start) continue;
    builder.push(start, stop - start, run.source, run.frame);
    end = stop;
  }
  if (end + 3 <= DISK_BLOCKS) {
    builder.push(end, 1, SOURCE_TRIM, 0);
    builder.push(end + 2, DISK_BLOCKS - end - 2, SOURCE_ZERO, 0);
  }
  return builder.finish();
}

const index: fc.Arbitrary<CommitIndex> = fc
  .tuple(
    fc.array(directory, { minLength: 1, maxLength: 4 }),
    fc.tuple(containerId, bytes(32), bytes(32), hexText(8), fc.nat(9999)),
    fc.boolean(),
  )
  .map(([directories, [id, headSha256, salt, dataKeyId, indexBytes], marked]) => ({
    directories,
    segments: directories.slice(1).map((frames) => ({
      containerId: id,
      headSha256,
      salt,
      dataKeyId,
      indexBytes,
      bodyBytes: bodyBytesOf(frames, 16),
    })),
    digests: new Uint8Array(digestBytesOf(directories[0]!)).fill(0xab),
    extents: extentsFor(directories),
    ...(marked && {
      tracker: { bootId: "boot", generation: 7, lostEvents: 0, holdMs: 3 },
      barrier: { groupId: "g", groupEpoch: 2, barrier: 9, point: false },
      sync: { remainingBytes: 1, totalBytes: 2 },
    }),
  }));

function headerFor(value: CommitIndex): ContainerHeader {
  const own = value.directories[0]!;
  return {
    ...HEADER,
    diskSizeBytes: DISK_BLOCKS * 4096,
    frameCount: own.count,
    bodyBytes: bodyBytesOf(own, 16),
    extentCount: value.extents.count,
  };
}

const plain = (map: ExtentMap) =>
  Array.from({ length: map.count }, (_, at) => [map.start[at], map.length[at], map.source[at], map.frame[at]]);

test("Any index is decoded as it was encoded", () => {
  fc.assert(
    fc.property(index, (value) => {
      const decoded = decodeIndex(encodeIndex(value), headerFor(value));
      assert.deepEqual({ ...decoded, extents: plain(decoded.extents) }, { ...value, extents: plain(value.extents) });
    }),
  );
});

test("An index with changed, missing or additional bytes is read or refused, and never read past its end", () => {
  fc.assert(
    fc.property(
      index,
      fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }),
      fc.integer({ min: -20, max: 20 }),
      (value, changes, longer) => {
        const encoded = encodeIndex(value);
        const length = Math.max(0, encoded.length + longer);
        // Canaries around it: a decoder that reads beyond its view would read these.
        const framed = new Uint8Array(length + 64).fill(0x01);
        framed.set(encoded.subarray(0, length), 32);
        const damaged = framed.subarray(32, 32 + length);
        for (const [at, byte] of changes) if (length > 0) damaged[at % length] = byte;
        refusesOrReads(() => decodeIndex(damaged, headerFor(value)));
      },
    ),
    { numRuns: 3000 },
  );
});

test("An unknown section is skipped when it may be, and refused when it is critical", () => {
  fc.assert(
    fc.property(index, (value) => {
      const encoded = encodeIndex(value);
      const withSection = (id: number): Uint8Array => {
        const writer = byteWriter();
        writer.bytes(encoded);
        writer.varint(id);
        writer.varint(3);
        writer.bytes(Uint8Array.of(1, 2, 3));
        return writer.view();
      };
      assert.deepEqual(plain(decodeIndex(withSection(200), headerFor(value)).extents), plain(value.extents));
      assert.throws(() => decodeIndex(withSection(16), headerFor(value)), { code: "FORMAT_UNSUPPORTED" });
    }),
    { numRuns: 20 },
  );
});

test("A footer is decoded as it was encoded, and no byte of it can change unseen", () => {
  const footer = { totalBytes: 123_456, headSha256: HEADER.salt, bodySha256: HEADER.salt.toReversed() };
  const encoded = encodeFooter(footer);
  assert.deepEqual(decodeFooter(encoded), footer);
  for (let at = 0; at < encoded.length; at++) {
    const damaged = encoded.slice();
    damaged[at]! ^= 0x10;
    assert.throws(() => decodeFooter(damaged), { code: "OBJECT_CORRUPT" });
  }
});

const MEMBER = { diskId: "disk-1", branch: "root", epoch: 3, seq: 9, commitHash: "ab".repeat(16) };
const BARRIER: records.BarrierRecord = {
  barrier: 5,
  groupId: "group",
  groupEpoch: 2,
  cutAtMs: 1_786_000_000_000,
  consistency: "app",
  members: [MEMBER],
};
const mac = (data: Uint8Array) => new Uint8Array(32).fill(crc32c(data) & 0xff);
const POINT: records.PointRecord = {
  barrier: BARRIER,
  kind: "bookmark",
  name: "vor dem Umzug – №1",
  reasonKept: "",
  operation: "op",
  createdAtMs: 7,
};
const KEY: WrappedKeyRecord = {
  keyId: "00112233445566aa",
  storeId: HEADER.storeId,
  diskId: "disk-1",
  month: "2026-08",
  createdAtMs: 1,
  cipher: "aes-256-gcm",
  nonce: "ab".repeat(12),
  sealed: "cd".repeat(48),
};

const codecs = {
  store: [
    { storeId: HEADER.storeId, features: [], createdAtMs: 5 },
    records.encodeStoreRecord,
    records.decodeStoreRecord,
  ],
  diskClaim: [
    { epoch: 4, activeSite: "one", branch: "root", groupEpoch: 2, operation: "op", holder: "h", claimedAtMs: 5 },
    records.encodeDiskClaim,
    records.decodeDiskClaim,
  ],
  groupClaim: [
    {
      groupEpoch: 2,
      activeSite: "one",
      branch: "root",
      disks: ["disk-1"],
      operation: "op",
      holder: "h",
      claimedAtMs: 5,
    },
    records.encodeGroupClaim,
    records.decodeGroupClaim,
  ],
  origin: [
    {
      branch: "b-1",
      reason: "failover",
      operation: "op",
      createdAtMs: 5,
      parent: { branch: "root", seq: 3, commitHash: "ab".repeat(16) },
    },
    records.encodeBranchOrigin,
    records.decodeBranchOrigin,
  ],
  barrier: [BARRIER, records.encodeBarrier, records.decodeBarrier],
  point: [
    POINT,
    (value: records.PointRecord) => records.encodePoint(value, mac),
    (data: Uint8Array, key: string) => records.decodePoint(data, key, mac),
  ],
  key: [KEY, encodeWrappedKey, decodeWrappedKey],
} as const;

for (const [what, [value, encode, decode]] of Object.entries(codecs)) {
  // Each row pairs a value with its own codec; the loop cannot see that.
  const encoded = (encode as (value: unknown) => Uint8Array)(value);
  test(`A ${what} record is decoded as it was encoded`, () => {
    assert.deepEqual(decode(encoded, "key"), value);
  });

  test(`A ${what} record that was damaged is read or refused with a fault that names the object`, () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(encoded.length - 1), fc.nat(255)), { minLength: 1, maxLength: 3 }),
        fc.nat(encoded.length),
        (changes, length) => {
          const damaged = encoded.slice();
          for (const [at, byte] of changes) damaged[at] = byte;
          refusesOrReads(() => decode(damaged, "key"));
          refusesOrReads(() => decode(encoded.subarray(0, length), "key"));
        },
      ),
      { numRuns: 500 },
    );
  });

  test(`A ${what} record of a later format is unsupported; one with an unknown member is read`, () => {
    const json = JSON.parse(Buffer.from(encoded).toString()) as Record<string, unknown>;
    assert.throws(() => decode(Buffer.from(JSON.stringify({ ...json, format: 2 })), "key"), {
      code: "FORMAT_UNSUPPORTED",
    });
    if (what !== "point")
      assert.deepEqual(decode(Buffer.from(JSON.stringify({ ...json, later: { x: 1 } })), "key"), value);
    for (const member of Object.keys(json)) {
      if (what === "origin" && member === "parent") continue;
      refusesOrReads(() => decode(Buffer.from(JSON.stringify({ ...json, [member]: null })), "key"));
      assert.throws(
        () => decode(Buffer.from(JSON.stringify({ ...json, [member]: undefined })), "key"),
        { code: "OBJECT_CORRUPT" },
        member,
      );
    }
  });
}

test("A point that was changed without the key is refused", () => {
  const text = Buffer.from(records.encodePoint(POINT, mac)).toString();
  assert.throws(() => records.decodePoint(Buffer.from(text.replace('"seq":9', '"seq":8')), "key", mac), {
    code: "OBJECT_CORRUPT",
  });
});

test("Names are built and parsed in one way only, and numbers sort", () => {
  const disk = names.diskNames("replica/a", "disk-1");
  assert.equal(disk.commit("root", 18), "replica/a/disks/disk-1/branches/root/journal/0000000000000012");
  assert.equal(names.diskNames("", "d").segment(3, 10), "disks/d/segments/00000003-00000000000a");
  assert.equal(
    names.groupNames("r", "g").point(1_786_000_000_000, 5),
    "r/groups/g/points/1786000000000-0000000000000005",
  );
  fc.assert(
    fc.property(u48, fc.integer({ min: 0, max: 0xffffffff }), u48, name(20), (number, epoch, counter, branch) => {
      assert.equal(names.parseNumbered(disk.journal(branch), disk.commit(branch, number)), number);
      assert.equal(names.parseNumbered(disk.epochs, disk.epoch(number)), number);
      assert.deepEqual(names.parseSegment(disk.segments, disk.segment(epoch, counter)), { epoch, counter });
      assert.equal(names.parseNamed(disk.branches, disk.origin(branch), "/origin.json"), branch);
      const cut = number % 10_000_000_000_000;
      assert.deepEqual(names.parsePointId(names.formatPointId(cut, counter)), { cutAtMs: cut, barrier: counter });
    }),
  );
  for (const wrong of ["", "a/b", "../x", "ä", "x".repeat(65), ".", "-"]) {
    assert.throws(() => names.diskNames("", wrong), RangeError, wrong);
  }
  for (const wrong of ["/a", "a/"]) assert.throws(() => names.storeNames(wrong), RangeError);
  assert.equal(names.parseNumbered(disk.epochs, `${disk.epochs}12`), undefined);
  assert.equal(names.parseNamed(disk.keys, `${disk.keys}a/b`), undefined);
});
