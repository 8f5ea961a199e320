/** Containers, headers and data for tests of the format. Data says which block it is: no test compares zeroes with zeroes. */
import { createHash, createSecretKey, hash } from "node:crypto";
import {
  CODEC_RAW,
  CODEC_ZSTD,
  type FrameRecord,
  KIND_DELTA,
  type FrameKind,
  PIECE_BYTES,
} from "#model/frame-record.ts";
import { type ContainerHeader, formatContainerId } from "#model/format/header.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { Random } from "#ports/random.ts";
import type { CommitDetails, ContainerWriterOptions } from "../../src/data-mover/container-writer.ts";
import { compress } from "../../src/data-mover/zstd.ts";

export const STORE_ID = "6f1de3a8-90ab-4cde-8f01-23456789abcd";
export const DISK_ID = "disk-1";

/** The same bytes in every run: SHA-256 over a counter. */
export function seededRandom(seed: string): Random & { below(limit: number): number } {
  let counter = 0;
  const next = (): Buffer => createHash("sha256").update(`${seed}:${counter++}`).digest();
  return {
    bytes(length) {
      const parts: Buffer[] = [];
      for (let have = 0; have < length; have += 32) parts.push(next());
      return new Uint8Array(Buffer.concat(parts).subarray(0, length));
    },
    below: (limit) => next().readUIntLE(0, 6) % limit,
  };
}

/** `blocks` blocks from `block`: every 16 bytes hold block number, version and offset, and a word that varies with all. */
export function blockData(block: number, blocks: number, version = 1): Buffer {
  const words = new Uint32Array((blocks * BLOCK_SIZE) / 4);
  let at = 0;
  for (let number = block; number < block + blocks; number++) {
    const mixed = Math.imul(number + 1, 2654435761);
    for (let offset = 0; offset < BLOCK_SIZE; offset += 16) {
      words[at++] = number;
      words[at++] = version;
      words[at++] = mixed ^ Math.imul(offset + version, 40503);
      words[at++] = offset;
    }
  }
  return Buffer.from(words.buffer);
}

export function digestsOf(plain: Uint8Array): Buffer {
  const digests: Buffer[] = [];
  for (let at = 0; at < plain.length; at += PIECE_BYTES) {
    digests.push(hash("sha256", plain.subarray(at, at + PIECE_BYTES), "buffer").subarray(0, 16));
  }
  return Buffer.concat(digests);
}

export function frameOf(block: number, plain: Uint8Array, kind: FrameKind = KIND_DELTA): FrameRecord {
  const packed = compress(plain);
  const useful = packed.length < plain.length;
  return {
    block,
    blocks: plain.length / BLOCK_SIZE,
    codec: useful ? CODEC_ZSTD : CODEC_RAW,
    kind,
    digests: digestsOf(plain),
    stored: useful ? packed : plain,
  };
}

export const TEST_DATA_KEY = { id: "00112233445566aa", key: createSecretKey(Buffer.alloc(32, 7)) };

export function writerOptions(more: Partial<ContainerWriterOptions> = {}): ContainerWriterOptions {
  return {
    buffer: new Uint8Array(4 << 20),
    kind: "journal",
    cipher: "aes-256-gcm",
    dataKey: TEST_DATA_KEY,
    storeId: STORE_ID,
    diskId: DISK_ID,
    containerId: formatContainerId({ role: "writer", term: 1, counter: 1 }),
    random: seededRandom("writer"),
    ...more,
  };
}

export const PLACE = {
  branch: "root",
  epoch: 1,
  seq: 1,
  chain: "0".repeat(32),
  writerId: "a1b2c3d4e5f60718",
} as const;

export const DETAILS: CommitDetails = {
  cycle: 1,
  cycleDisks: 1,
  flags: 0,
  firstWriteMs: 1_786_000_000_000,
  cutMs: 1_786_000_005_000,
  rawCutMs: 1_786_000_004_900,
  diskSizeBytes: 64 << 20,
  sectorBytes: 512,
};

export const HEADER: ContainerHeader = {
  kind: "journal",
  cipher: "aes-256-gcm",
  flags: 1,
  incompatible: 0,
  storeId: STORE_ID,
  diskId: "0b9c1f5e-4a37-4d11-9d0e-c5a1f2e3d4b5",
  branchId: "b-00112233445566778",
  epoch: 3,
  seq: 77,
  cycle: 1234,
  cycleDisks: 2,
  firstWriteMs: 1_786_000_000_000,
  cutMs: 1_786_000_005_000,
  rawCutMs: 1_786_000_004_900,
  chain: Uint8Array.from({ length: 16 }, (_, index) => index + 1),
  diskSizeBytes: 5_000_000_512,
  sectorBytes: 512,
  indexBytes: 1000,
  frameCount: 12,
  extentCount: 34,
  bodyBytes: 56_789,
  containerId: formatContainerId({ role: "writer", term: 3, counter: 9 }),
  salt: Uint8Array.from({ length: 32 }, (_, index) => 255 - index),
  indexSalt: Uint8Array.from({ length: 16 }, (_, index) => 100 + index),
  dataKeyId: "00112233445566aa",
  writerId: "a1b2c3d4e5f60718",
};
