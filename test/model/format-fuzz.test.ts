/**
 * The decoders of the format against bytes that know the format: numbers at their limits in the right places, sections dropped, doubled and exchanged,
 * members of records of another kind, checksums that hold all the same. `format.property.test.ts` changes bytes blindly; most of those die at the first
 * check.
 *
 * A decoder answers or throws OBJECT_CORRUPT or FORMAT_UNSUPPORTED, soon; and what it answers can be written and read again as the same.
 *
 * Seeded: the same inputs in every run. `LEEWARD_FUZZ=N` tries N times as many, from other seeds. What once failed lies in `test/corpus/format/` and is
 * tried first; a new failure is put there.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { crc32c } from "#model/checksum.ts";
import { extentMapBuilder, SOURCE_TRIM, SOURCE_ZERO } from "#model/extent-map.ts";
import { Fault } from "#model/fault.ts";
import { byteReader, byteWriter } from "#model/format/byte-cursor.ts";
import { type CommitIndex, decodeIndex, encodeIndex } from "#model/format/commit-index.ts";
import { decodeFooter, encodeFooter } from "#model/format/footer.ts";
import { bodyBytesOf, digestBytesOf, frameDirectoryBuilder } from "#model/format/frame-directory.ts";
import { decodeHeader, encodeHeader } from "#model/format/header.ts";
import { decodeManifest } from "#model/format/manifest.ts";
import * as records from "#model/format/records.ts";
import { decodeWrappedKey } from "#model/format/wrapped-key.ts";
import type { JsonObject } from "#model/json.ts";
import { HEADER, seededRandom } from "../support/format-samples.ts";

const TIMES = Number(process.env["LEEWARD_FUZZ"] ?? "1");
const RUNS = 3000 * TIMES;
const SLOWEST_MS = 2_000;
const corpus = join(import.meta.dirname, "..", "corpus", "format");

type Below = (limit: number) => number;

interface Target {
  readonly name: string;
  /** One input; `below` is the only source of chance. */
  make(below: Below): Uint8Array;
  /** Throws what must not be thrown. */
  decode(data: Uint8Array): void;
}

/** Numbers at which something changes. */
const EDGES: readonly number[] = [
  0,
  1,
  2,
  3,
  63,
  64,
  65,
  127,
  128,
  129,
  255,
  4095,
  4096,
  65_535,
  65_536,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  2 ** 48 - 1,
  2 ** 52,
  Number.MAX_SAFE_INTEGER,
];

function refusesOrReads(decode: () => unknown): void {
  try {
    decode();
  } catch (error) {
    const known = error instanceof Fault && (error.code === "OBJECT_CORRUPT" || error.code === "FORMAT_UNSUPPORTED");
    if (!known) throw error;
  }
}

// --- headers and footers, with checksums that hold

const HEADER_FIELDS: readonly (readonly [number, number])[] = [
  [4, 2],
  [6, 2],
  [8, 1],
  [9, 1],
  [10, 1],
  [11, 1],
  [12, 4],
  [16, 4],
  [36, 6],
  [42, 6],
  [48, 6],
  [54, 6],
  [60, 6],
  [66, 6],
  [88, 6],
  [94, 2],
  [96, 4],
  [100, 4],
  [104, 4],
  [108, 4],
  [112, 4],
  [116, 1],
  [117, 1],
  [118, 2],
  [192, 1],
  [227, 1],
  [228, 1],
  [247, 1],
  [248, 2],
  [250, 2],
];

const header: Target = {
  name: "header",
  make(below) {
    const data = Buffer.from(encodeHeader(HEADER));
    for (let change = 1 + below(3); change > 0; change--) {
      const [at, bytes] = HEADER_FIELDS[below(HEADER_FIELDS.length)]!;
      data.writeUIntLE(EDGES[below(EDGES.length)]! % 2 ** (8 * bytes), at, bytes);
    }
    // The lengths add up half of the time, so that more than their sum is looked at.
    if (below(2) === 0) data.writeUInt32LE((256 + data.readUInt32LE(96) + data.readUInt32LE(108) + 80) % 2 ** 32, 112);
    data.writeUInt32LE(crc32c(data.subarray(0, 252)), 252);
    return data;
  },
  decode(data) {
    refusesOrReads(() => {
      const { major: _, minor: __, totalBytes, ...decoded } = decodeHeader(data);
      const { totalBytes: again, ...same } = decodeHeader(encodeHeader(decoded));
      assert.deepEqual({ ...same, totalBytes: again }, { major: 1, minor: 0, ...decoded, totalBytes });
    });
  },
};

const footer: Target = {
  name: "footer",
  make(below) {
    const data = Buffer.from(
      encodeFooter({ totalBytes: EDGES[below(19)]! % 2 ** 32, headSha256: HEADER.salt, bodySha256: HEADER.salt }),
    );
    if (below(3) > 0) data[below(76)] = below(256);
    if (below(4) > 0) data.writeUInt32LE(crc32c(data.subarray(0, 76)), 76);
    return data.subarray(0, below(5) === 0 ? below(81) : 80);
  },
  decode: (data) => refusesOrReads(() => decodeFooter(data)),
};

// --- the index: sections of numbers

const DISK_BLOCKS = 100_000;

function sampleIndex(): CommitIndex {
  const directoryOf = (first: number) => {
    const builder = frameDirectoryBuilder();
    builder.push({ block: first, blocks: 64, codec: 1 }, 5000);
    builder.push({ block: first + 64, blocks: 3, codec: 0 }, 3 * 4096);
    builder.push({ block: first + 500, blocks: 16, codec: 1 }, 700);
    return builder.view();
  };
  const directories = [directoryOf(10), directoryOf(20_000), directoryOf(90_000)];
  const extents = extentMapBuilder();
  extents.push(10, 64, 0, 0);
  extents.push(74, 3, 0, 1);
  extents.push(200, 100, SOURCE_ZERO, 0);
  extents.push(400, 1, SOURCE_TRIM, 0);
  extents.push(20_000, 20, 1, 0);
  extents.push(20_500, 16, 1, 2);
  extents.push(90_064, 2, 2, 1);
  return {
    directories,
    segments: directories.slice(1).map((directory, index) => ({
      containerId: `01000000000${index + 1}00000000000${index + 1}`.slice(0, 24),
      headSha256: HEADER.salt,
      salt: HEADER.salt,
      dataKeyId: HEADER.dataKeyId,
      indexBytes: 900,
      bodyBytes: bodyBytesOf(directory, 16),
    })),
    digests: new Uint8Array(digestBytesOf(directories[0]!)).fill(7),
    extents: extents.finish(),
    tracker: { bootId: "boot", generation: 7, lostEvents: 0, holdMs: 3 },
    barrier: { groupId: "g", groupEpoch: 2, barrier: 9, point: true },
    sync: { remainingBytes: 1, totalBytes: 2 },
  };
}

const INDEX = sampleIndex();
const INDEX_HEADER = {
  ...HEADER,
  diskSizeBytes: DISK_BLOCKS * 4096,
  frameCount: 3,
  bodyBytes: bodyBytesOf(INDEX.directories[0]!, 16),
  extentCount: INDEX.extents.count,
};

/** The payload with some of its bytes read as numbers and others in their place. */
function mutateNumbers(payload: Uint8Array, below: Below): Uint8Array {
  const writer = byteWriter();
  const reader = byteReader(payload, "Fuzz");
  const chance = Math.max(1, payload.length);
  while (reader.remaining > 0) {
    if (below(chance) > 2) {
      writer.byte(reader.byte());
      continue;
    }
    try {
      const value = reader.varint();
      const edge = EDGES[below(EDGES.length)]!;
      const near = Math.min(Number.MAX_SAFE_INTEGER, Math.max(0, value + below(5) - 2));
      writer.varint(below(2) === 0 ? edge : near);
    } catch (error) {
      if (!(error instanceof Fault)) throw error; // No number here: what was read of it is left out.
    }
  }
  return writer.view().slice();
}

const index: Target = {
  name: "index",
  make(below) {
    const reader = byteReader(encodeIndex(INDEX), "Fuzz");
    let sections: { id: number; payload: Uint8Array }[] = [];
    while (reader.remaining > 0) sections.push({ id: reader.varint(), payload: reader.bytes(reader.varint()) });
    for (let change = 1 + below(3); change > 0; change--) {
      const at = below(sections.length);
      const one = sections[at];
      if (one === undefined) break;
      const how = below(10);
      if (how < 6) one.payload = mutateNumbers(one.payload, below);
      else if (how === 6) one.payload = one.payload.slice(0, below(one.payload.length + 1));
      else if (how === 7) one.id = [0, 5, 16, 127, 128, 131, 2 ** 40][below(7)]!;
      else if (how === 8) sections = sections.filter((_, index) => index !== at);
      else sections.splice(below(sections.length), 0, { ...one });
    }
    const writer = byteWriter();
    for (const { id, payload } of sections) {
      writer.varint(id);
      writer.varint(below(40) === 0 ? EDGES[below(EDGES.length)]! : payload.length);
      writer.bytes(payload);
    }
    return writer.view().slice();
  },
  decode: (data) =>
    refusesOrReads(() => {
      const decoded = decodeIndex(data, INDEX_HEADER);
      const again = decodeIndex(encodeIndex(decoded), INDEX_HEADER);
      const plain = ({ extents: { count, start, length, source, frame }, ...rest }: CommitIndex) => ({
        ...rest,
        extents: [start, length, source, frame].map((column) => Array.from(column.subarray(0, count))),
      });
      assert.deepEqual(plain(again), plain(decoded));
    }),
};

// --- records: trees of members

const mac = () => new Uint8Array(32);
const MEMBER = { diskId: "disk-1", branch: "root", epoch: 3, seq: 9, commitHash: "ab".repeat(16) };
const BARRIER = {
  format: 1,
  barrier: 5,
  groupId: "group",
  groupEpoch: 2,
  cutAtMs: 1_786_000_000_000,
  consistency: "app",
  members: [MEMBER, { ...MEMBER, diskId: "disk-2" }],
};
const CLAIM = {
  format: 1,
  activeSite: "one",
  branch: "root",
  groupEpoch: 2,
  operation: "op",
  holder: "h",
  claimedAtMs: 5,
};
const POSITION = { epoch: 1, seq: 4, commitHash: "ab".repeat(16) };
const ANCHOR = {
  branch: "root",
  ...POSITION,
  data: { ...POSITION, cycle: 4, cutAtMs: 9, writerId: "a1b2c3d4e5f60718" },
  cutAtMs: 9,
  sizeBytes: 1 << 30,
  sectorBytes: 512,
  maps: [0],
};

const RECORDS: readonly (readonly [string, object, (data: Uint8Array) => unknown])[] = [
  [
    "store",
    { format: 1, storeId: HEADER.storeId, features: [], createdAtMs: 5 },
    (data) => records.decodeStoreRecord(data, "key"),
  ],
  ["disk-claim", { ...CLAIM, epoch: 4, moving: true }, (data) => records.decodeDiskClaim(data, "key")],
  ["group-claim", { ...CLAIM, disks: ["disk-1"] }, (data) => records.decodeGroupClaim(data, "key")],
  [
    "origin",
    {
      format: 1,
      branch: "b-1",
      reason: "failover",
      operation: "op",
      createdAtMs: 5,
      parent: { branch: "root", seq: 3, commitHash: "ab".repeat(16) },
    },
    (data) => records.decodeBranchOrigin(data, "key"),
  ],
  ["barrier", BARRIER, (data) => records.decodeBarrier(data, "key")],
  [
    "point",
    {
      format: 1,
      barrier: BARRIER,
      kind: "bookmark",
      name: "№1",
      reasonKept: "",
      operation: "op",
      createdAtMs: 7,
      mac: "00".repeat(32),
    },
    (data) => records.decodePoint(data, "key", mac),
  ],
  [
    "wrapped-key",
    {
      format: 1,
      keyId: "00112233445566aa",
      storeId: HEADER.storeId,
      diskId: "disk-1",
      month: "2026-08",
      createdAtMs: 1,
      cipher: "aes-256-gcm",
      nonce: "ab".repeat(12),
      sealed: "cd".repeat(48),
    },
    (data) => decodeWrappedKey(data, "key"),
  ],
  [
    "manifest",
    {
      format: 1,
      no: 1,
      storeId: HEADER.storeId,
      diskId: "disk-1",
      writerId: "a1b2c3d4e5f60718",
      createdAtMs: 5,
      maps: [{ shard: 0, name: "000000000004-a1b2c3d4e5f60718", head: "ab".repeat(16), bytes: 400 }],
      anchors: [ANCHOR],
      mac: "00".repeat(32),
    },
    (data) => decodeManifest(data, "key", mac),
  ],
];

const VALUES: readonly unknown[] = [
  null,
  true,
  false,
  "",
  "root",
  "__proto__",
  "constructor",
  "/",
  "..",
  "\u0000",
  "\ud800",
  "x".repeat(5000),
  "ab".repeat(16),
  0,
  -0,
  -1,
  0.5,
  1e21,
  Number.MAX_SAFE_INTEGER,
  2 ** 53,
  [],
  {},
  [[]],
  { format: 2 },
  [null],
];

/** One member or item, anywhere in it, changed. */
function mutateTree(value: unknown, below: Below): unknown {
  if (typeof value !== "object" || value === null || below(4) === 0) return VALUES[below(VALUES.length)];
  if (Array.isArray(value)) {
    const list = [...(value as unknown[])];
    const at = below(list.length + 1);
    const how = below(4);
    if (how === 0) list.splice(at, 1);
    else if (how === 1) list.splice(at, 0, list[0] ?? null);
    else if (list.length > 0) list[at % list.length] = mutateTree(list[at % list.length], below);
    return list;
  }
  const members = Object.entries(value as JsonObject);
  const at = below(Math.max(1, members.length));
  const [name, member] = members[at] ?? ["x", null];
  const how = below(5);
  if (how === 0) members.splice(at, 1);
  else if (how === 1) members[at] = [["format", "__proto__", "mac", "x", "toString"][below(5)]!, member];
  else members[at] = [name, mutateTree(member, below) as JsonObject[string]];
  return Object.fromEntries(members);
}

function recordTarget([name, value, decode]: (typeof RECORDS)[number]): Target {
  return {
    name: `${name}-record`,
    make(below) {
      let tree: unknown = value;
      for (let change = 1 + below(2); change > 0; change--) tree = mutateTree(tree, below);
      let text = JSON.stringify(tree) ?? "";
      if (below(10) === 0) text = text.replace(/\d+/, String(EDGES[below(EDGES.length)]!));
      if (below(20) === 0) text = text.slice(0, below(text.length + 1));
      return Buffer.from(text);
    },
    decode: (data) => refusesOrReads(() => decode(data)),
  };
}

const TARGETS: readonly Target[] = [header, footer, index, ...RECORDS.map(recordTarget)];

for (const target of TARGETS) {
  test(`A ${target.name} made to deceive is read or refused with a fault, at once (${RUNS} inputs)`, () => {
    const attempt = (data: Uint8Array, what: string): void => {
      const before = performance.now();
      try {
        target.decode(data);
      } catch (error) {
        throw new Error(`${what}: ${String(error)}`, { cause: error });
      }
      assert.ok(performance.now() - before < SLOWEST_MS, `${what} takes too long`);
    };
    if (existsSync(corpus)) {
      for (const name of readdirSync(corpus))
        if (name.startsWith(`${target.name}-`)) attempt(readFileSync(join(corpus, name)), name);
    }
    for (let seed = 0; seed < TIMES; seed++) {
      const { below } = seededRandom(`fuzz ${target.name} ${seed}`);
      for (let run = 0; run < RUNS / TIMES; run++) {
        const data = target.make(below);
        try {
          attempt(data, `input ${run} of seed ${seed}`);
        } catch (error) {
          mkdirSync(corpus, { recursive: true });
          writeFileSync(
            join(corpus, `${target.name}-${createHash("sha256").update(data).digest("hex").slice(0, 16)}`),
            data,
          );
          throw error;
        }
      }
    }
  });
}

test("A record of the right form passes, so that the inputs above are near ones", () => {
  for (const [name, value, decode] of RECORDS) {
    if (name === "point" || name === "manifest") continue; // Their MAC is over what was changed, too; it is the sample's for none.
    assert.ok(decode(Buffer.from(JSON.stringify(value))), name);
  }
  assert.equal(decodeIndex(encodeIndex(INDEX), INDEX_HEADER).extents.count, INDEX.extents.count);
});
