/**
 * The 256-byte header of a container: what an object of the replica store is, whose it is, and where its parts lie.
 *
 * A container is one object: header, sealed index, frames, footer, in this order and without gaps, so that one range read from
 * offset 0 recovers a commit. The commit hash is the first 16 bytes of SHA-256 over header and index; the next commit on
 * the branch carries it as its `chain`.
 *
 * Invariants:
 * - magic, version and the CRC32C keep their places in every version of the format;
 * - an unknown bit in `incompatible` means: refuse; unknown bits in `flags` may be ignored;
 * - `totalBytes` = 256 + `indexBytes` + `bodyBytes` + footer, and nothing here is believed before the CRC holds;
 * - bytes 0 … 251 are the additional data under which the index is sealed, so with a key the whole header is authenticated.
 *
 * Source: docs/format.md, "Header".
 */
import { crc32c } from "../checksum.ts";
import { Fault } from "../fault.ts";
import {
  corrupt,
  fromHex,
  getName,
  getU48,
  setName,
  setU32,
  setU48,
  toHex,
  uuidFromBytes,
  uuidToBytes,
} from "./fields.ts";

export const HEADER_BYTES = 256;
/** The part of the header that the CRC covers and under which the index is sealed. */
export const HEADER_AUTHENTICATED_BYTES = 252;
export const FOOTER_BYTES = 80;
export const FORMAT_MAJOR = 1;
export const FORMAT_MINOR = 0;

/** First bytes of SHA-256 that a chain keeps. */
export const CHAIN_BYTES = 16;
export const SALT_BYTES = 32;
export const INDEX_SALT_BYTES = 16;

export const MAX_DISK_ID_LENGTH = 36;
export const MAX_BRANCH_ID_LENGTH = 20;
/** Largest object that a reader accepts. */
export const MAX_CONTAINER_BYTES = 128 << 20;
/** Largest sealed index that a reader accepts. */
export const MAX_INDEX_BYTES = 64 << 20;

const MAGIC = Uint8Array.of(0x4c, 0x57, 0x52, 0x44); // "LWRD"

const KINDS = { journal: 1, segment: 2, pack: 3, fence: 4, map: 5 } as const;
const CIPHERS = { none: 0, "aes-256-gcm": 1 } as const;
const CODECS = { zstd: 1 } as const;
const HASHES = { sha256: 1 } as const;

/** `fence`: a commit without data, by which a writer takes its place at the tail of a branch. `map`: a map shard, which has no frames. */
export type ContainerKind = keyof typeof KINDS;
export type Cipher = keyof typeof CIPHERS;

/** Compatible flags. The replica does not hold a whole disk yet, or a resync is under way: no point here. */
export const FLAG_SYNC_IN_PROGRESS = 1;
/** The cycle of this commit began with nothing left to sync, and its cut is consistent: a barrier may name it. */
export const FLAG_POINT_CLEAN = 2;
/** The applications on the source were quiesced for the cut. */
export const FLAG_APP_CONSISTENT = 4;

/** Incompatible feature bits that this version understands: none yet. */
export const KNOWN_INCOMPATIBLE = 0;

export interface ContainerHeader {
  readonly kind: ContainerKind;
  readonly cipher: Cipher;
  /** FLAG_… bits. */
  readonly flags: number;
  /** Feature bits without which the object must not be read. */
  readonly incompatible: number;
  /** UUID, lower case. */
  readonly storeId: string;
  /** At most 36 characters that are safe in a key (`isName`). */
  readonly diskId: string;
  /** At most 20 such characters; the first branch is `root`. */
  readonly branchId: string;
  readonly epoch: number;
  /** Number of the commit on its branch; 0 for segments and packs, which are not commits. */
  readonly seq: number;
  /** The source's cycle, which is also the number of its barrier; 0 for a fence. */
  readonly cycle: number;
  /** How many disks of the group have a commit of this cycle (the others were idle); 0 when the writer does not say. */
  readonly cycleDisks: number;
  /** Times in ms since 1970. First write in it; the cut, made monotone along the branch; the cut by the source's own clock. */
  readonly firstWriteMs: number;
  readonly cutMs: number;
  readonly rawCutMs: number;
  /** 16 bytes: commit hash of the commit before on this branch (of the parent, for the first of a branch; zeroes for the first of `root`). */
  readonly chain: Uint8Array;
  readonly diskSizeBytes: number;
  readonly sectorBytes: number;
  /** Sealed index, as stored (tag included). */
  readonly indexBytes: number;
  readonly frameCount: number;
  readonly extentCount: number;
  /** Frames, as stored. */
  readonly bodyBytes: number;
  /** `formatContainerId`, 24 hex digits. */
  readonly containerId: string;
  /** 32 random bytes; frame and index keys derive from them. */
  readonly salt: Uint8Array;
  /** 16 random bytes; new ones whenever any field of the header changes. */
  readonly indexSalt: Uint8Array;
  /** 16 hex digits: `keys/{id}`. All zeroes with cipher `none`. */
  readonly dataKeyId: string;
  /** 16 hex digits: the process that wrote it; tells "mine" from "another's" after a lost reply. */
  readonly writerId: string;
}

export interface DecodedHeader extends ContainerHeader {
  readonly major: number;
  readonly minor: number;
  readonly totalBytes: number;
}

/** Who numbers a container: a writer by its epoch, or the collector by its term. */
export type ContainerRole = "writer" | "collector";
const ROLES = { writer: 1, collector: 2 } as const;

/** (role, term, counter) as 24 hex digits; unique on a disk, and they sort in that order. */
export function formatContainerId(id: {
  readonly role: ContainerRole;
  readonly term: number;
  readonly counter: number;
}): string {
  if (!Number.isInteger(id.term) || id.term < 0 || id.term > 0xffffffff)
    throw new RangeError(`Container term ${id.term}`);
  if (!Number.isSafeInteger(id.counter) || id.counter < 0 || id.counter > 2 ** 48 - 1)
    throw new RangeError(`Container counter ${id.counter}`);
  return `0${ROLES[id.role]}00${id.term.toString(16).padStart(8, "0")}${id.counter.toString(16).padStart(12, "0")}`;
}

/** Undefined for what `formatContainerId` cannot have made. */
export function parseContainerId(text: string): { role: ContainerRole; term: number; counter: number } | undefined {
  const match = /^0([12])00([0-9a-f]{8})([0-9a-f]{12})$/.exec(text);
  if (!match) return undefined;
  return {
    role: match[1] === "1" ? "writer" : "collector",
    term: Number.parseInt(match[2]!, 16),
    counter: Number.parseInt(match[3]!, 16),
  };
}

/** 256 bytes into `target` at 0 (a new array without). Throws RangeError for a field out of bounds: a bug in the caller. */
export function encodeHeader(header: ContainerHeader, target: Uint8Array = new Uint8Array(HEADER_BYTES)): Uint8Array {
  const view = new DataView(target.buffer, target.byteOffset, HEADER_BYTES);
  const totalBytes = HEADER_BYTES + header.indexBytes + header.bodyBytes + FOOTER_BYTES;
  if (totalBytes > MAX_CONTAINER_BYTES || header.indexBytes > MAX_INDEX_BYTES)
    throw new RangeError(`Container of ${totalBytes} bytes with an index of ${header.indexBytes}`);
  target.set(MAGIC, 0);
  view.setUint16(4, FORMAT_MAJOR, true);
  view.setUint16(6, FORMAT_MINOR, true);
  view.setUint8(8, KINDS[header.kind]);
  view.setUint8(9, CIPHERS[header.cipher]);
  view.setUint8(10, CODECS.zstd);
  view.setUint8(11, HASHES.sha256);
  setU32(view, 12, header.flags, "flags");
  setU32(view, 16, header.incompatible, "incompatible");
  target.set(uuidToBytes(header.storeId, "storeId"), 20);
  setU48(view, 36, header.epoch, "epoch");
  setU48(view, 42, header.seq, "seq");
  setU48(view, 48, header.cycle, "cycle");
  setU48(view, 54, header.firstWriteMs, "firstWriteMs");
  setU48(view, 60, header.cutMs, "cutMs");
  setU48(view, 66, header.rawCutMs, "rawCutMs");
  setBytes(target, 72, CHAIN_BYTES, header.chain, "chain");
  setU48(view, 88, header.diskSizeBytes, "diskSizeBytes");
  if (!isSectorSize(header.sectorBytes)) throw new RangeError(`Sector of ${header.sectorBytes} bytes`);
  view.setUint16(94, header.sectorBytes, true);
  setU32(view, 96, header.indexBytes, "indexBytes");
  setU32(view, 100, header.frameCount, "frameCount");
  setU32(view, 104, header.extentCount, "extentCount");
  setU32(view, 108, header.bodyBytes, "bodyBytes");
  setU32(view, 112, totalBytes, "totalBytes");
  if (parseContainerId(header.containerId) === undefined) throw new RangeError(`Container id "${header.containerId}"`);
  target.set(fromHex(header.containerId, 12, "containerId"), 116);
  setBytes(target, 128, SALT_BYTES, header.salt, "salt");
  setBytes(target, 160, INDEX_SALT_BYTES, header.indexSalt, "indexSalt");
  target.set(fromHex(header.dataKeyId, 8, "dataKeyId"), 176);
  target.set(fromHex(header.writerId, 8, "writerId"), 184);
  setName(target, 192, MAX_DISK_ID_LENGTH, header.diskId, "diskId");
  setName(target, 228, MAX_BRANCH_ID_LENGTH, header.branchId, "branchId");
  if (!Number.isInteger(header.cycleDisks) || header.cycleDisks < 0 || header.cycleDisks > 0xffff)
    throw new RangeError(`Cycle of ${header.cycleDisks} disks`);
  view.setUint16(248, header.cycleDisks, true);
  view.setUint16(250, 0, true);
  view.setUint32(HEADER_AUTHENTICATED_BYTES, crc32c(target.subarray(0, HEADER_AUTHENTICATED_BYTES)), true);
  return target.subarray(0, HEADER_BYTES);
}

/**
 * Inverse of `encodeHeader`; reads 256 bytes from the start of `source` and copies what it keeps.
 *
 * Throws: OBJECT_CORRUPT for anything that no writer of this format produced (too short, wrong magic, CRC, impossible field);
 *         FORMAT_UNSUPPORTED for another major version, an unknown kind, cipher, codec or hash, or an unknown incompatible bit.
 */
export function decodeHeader(source: Uint8Array): DecodedHeader {
  if (source.length < HEADER_BYTES) throw corrupt("Header", `expected ${HEADER_BYTES} bytes, got ${source.length}`);
  const view = new DataView(source.buffer, source.byteOffset, HEADER_BYTES);
  if (MAGIC.some((byte, index) => source[index] !== byte))
    throw corrupt("Header", "it does not begin with the magic number");
  if (crc32c(source.subarray(0, HEADER_AUTHENTICATED_BYTES)) !== view.getUint32(HEADER_AUTHENTICATED_BYTES, true))
    throw corrupt("Header", "its CRC32C does not match");
  const major = view.getUint16(4, true);
  const minor = view.getUint16(6, true);
  const incompatible = view.getUint32(16, true);
  if (major !== FORMAT_MAJOR)
    throw unsupported(`format version ${major}.${minor}, and this program reads version ${FORMAT_MAJOR}`);
  if ((incompatible & ~KNOWN_INCOMPATIBLE) !== 0)
    throw unsupported(`feature bits 0x${(incompatible & ~KNOWN_INCOMPATIBLE).toString(16)}`);
  const kind = nameOf(KINDS, view.getUint8(8), "kind");
  const cipher = nameOf(CIPHERS, view.getUint8(9), "cipher");
  nameOf(CODECS, view.getUint8(10), "codec");
  nameOf(HASHES, view.getUint8(11), "hash");

  const diskId = getName(source, 192, MAX_DISK_ID_LENGTH);
  const branchId = getName(source, 228, MAX_BRANCH_ID_LENGTH);
  const containerId = toHex(source.subarray(116, 128));
  const sectorBytes = view.getUint16(94, true);
  const indexBytes = view.getUint32(96, true);
  const bodyBytes = view.getUint32(108, true);
  const totalBytes = view.getUint32(112, true);
  if (diskId === undefined) throw corrupt("Header", "its disk id is not a name");
  if (branchId === undefined) throw corrupt("Header", "its branch id is not a name");
  if (parseContainerId(containerId) === undefined)
    throw corrupt("Header", `container id "${containerId}" is impossible`);
  if (!isSectorSize(sectorBytes)) throw corrupt("Header", `a sector cannot have ${sectorBytes} bytes`);
  if (indexBytes > MAX_INDEX_BYTES || totalBytes > MAX_CONTAINER_BYTES)
    throw corrupt("Header", `lengths are beyond the limits of the format`);
  if (totalBytes !== HEADER_BYTES + indexBytes + bodyBytes + FOOTER_BYTES)
    throw corrupt("Header", "its lengths do not add up");
  return {
    major,
    minor,
    kind,
    cipher,
    flags: view.getUint32(12, true),
    incompatible,
    storeId: uuidFromBytes(source.subarray(20, 36)),
    diskId,
    branchId,
    epoch: getU48(view, 36),
    seq: getU48(view, 42),
    cycle: getU48(view, 48),
    cycleDisks: view.getUint16(248, true),
    firstWriteMs: getU48(view, 54),
    cutMs: getU48(view, 60),
    rawCutMs: getU48(view, 66),
    chain: copyOf(source, 72, 88),
    diskSizeBytes: getU48(view, 88),
    sectorBytes,
    indexBytes,
    frameCount: view.getUint32(100, true),
    extentCount: view.getUint32(104, true),
    bodyBytes,
    totalBytes,
    containerId,
    salt: copyOf(source, 128, 160),
    indexSalt: copyOf(source, 160, 176),
    dataKeyId: toHex(source.subarray(176, 184)),
    writerId: toHex(source.subarray(184, 192)),
  };
}

/** A Buffer's own `slice` copies nothing, and would keep all that was read of an object in memory for a few bytes of it. */
function copyOf(source: Uint8Array, from: number, to: number): Uint8Array {
  return new Uint8Array(source.subarray(from, to));
}

function isSectorSize(size: number): boolean {
  return size >= 512 && size <= 4096 && (size & (size - 1)) === 0;
}

function setBytes(target: Uint8Array, at: number, length: number, value: Uint8Array, name: string): void {
  if (value.length !== length) throw new RangeError(`${name} must have ${length} bytes, got ${value.length}`);
  target.set(value, at);
}

function nameOf<Name extends string>(table: Readonly<Record<Name, number>>, value: number, field: string): Name {
  for (const name in table) if (table[name] === value) return name;
  throw unsupported(`${field} ${value}`);
}

function unsupported(what: string): Fault {
  return new Fault("FORMAT_UNSUPPORTED", `The object needs ${what}`, {
    hint: "Read it with the version of Leeward that wrote it, or a newer one.",
  });
}
