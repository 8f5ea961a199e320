/**
 * The file of a write intent: one bit for each region of the disk, behind a header that says whose they are and whether they can be trusted.
 *
 * What a start finds:
 *
 * | state file                                   | to be swept            |
 * | -------------------------------------------- | ---------------------- |
 * | stopped cleanly, image untouched since       | regions with a bit     |
 * | not stopped cleanly, same boot of the machine| regions with a bit     |
 * | not stopped cleanly, another boot            | everything             |
 * | missing, damaged, of another disk or size; image changed while stopped | everything |
 *
 * The file, little-endian: a header of 4096 bytes, then the bits (bit n of byte k: region 8k + n).
 *
 * ```
 *  0  8 bytes  "LWINTENT"          32  u64  modification time of the image at the clean stop, ns
 *  8  u32      version, 1          40  16 bytes  boot id
 * 12  u32      1: stopped cleanly  56  u32  length of the disk id, at most 1024
 * 16  u64      image size          60  …    disk id, UTF-8
 * 24  u64      generation        4092  u32  CRC32C of the 4092 bytes before
 * ```
 *
 * The checksum does not cover the bits: a torn write of them leaves bits old or new, and a write never starts before its bit is known
 * to be there. The modification time of a block device's node says nothing; for those the rule "image untouched" always holds.
 * This comment is the description of the file; it never leaves the machine.
 */
import { fdatasync, fstatSync, fsyncSync, readSync, write, writeSync } from "node:fs";
import { crc32c } from "#model/checksum.ts";

export const HEADER_BYTES = 4096;
const MAGIC = "LWINTENT";
const VERSION = 1;

export interface IntentIdentity {
  readonly diskId: string;
  readonly imageBytes: number;
  /** `/proc/sys/kernel/random/boot_id`. */
  readonly bootId: string;
  /** Modification time of the image now, ns. */
  readonly imageMtimeNs: bigint;
}

export interface IntentState {
  readonly bits: Buffer;
  readonly generation: number;
  readonly reason: string;
}

/** What an earlier life left; a string says why it is not to be used. */
export function readState(fd: number, bitBytes: number, identity: IntentIdentity): IntentState | string {
  const fileBytes = fstatSync(fd).size;
  if (fileBytes === 0) return "initial sync: the disk was not tracked before";
  const header = Buffer.alloc(HEADER_BYTES);
  const bits = Buffer.alloc(bitBytes);
  if (readSync(fd, header, 0, HEADER_BYTES, 0) !== HEADER_BYTES || !isIntact(header))
    return "resync: the write-intent file is damaged";
  const idBytes = header.readUInt32LE(56);
  const diskId = header.toString("utf8", 60, 60 + Math.min(idBytes, 1024));
  if (diskId !== identity.diskId) return `resync: the write-intent file belongs to disk "${diskId}"`;
  const imageBytes = Number(header.readBigUInt64LE(16));
  if (imageBytes !== identity.imageBytes)
    return `resync: the image had ${imageBytes} bytes and now has ${identity.imageBytes}`;
  if (readSync(fd, bits, 0, bitBytes, HEADER_BYTES) !== bitBytes) return "resync: the write-intent file is cut off";
  const clean = header.readUInt32LE(12) === 1;
  const bootId = header.toString("latin1", 40, 56);
  const generation = Number(header.readBigUInt64LE(24));
  if (!clean && bootId !== packBootId(identity.bootId).toString("latin1"))
    return "resync: the machine went down without a clean stop of the tap";
  if (clean && header.readBigUInt64LE(32) !== identity.imageMtimeNs)
    return "resync: the image was changed while the tap was stopped";
  return { bits, generation, reason: clean ? "catch-up after a stop of the tap" : "catch-up after the tap was killed" };
}

function isIntact(header: Buffer): boolean {
  return (
    header.toString("latin1", 0, 8) === MAGIC &&
    header.readUInt32LE(8) === VERSION &&
    header.readUInt32LE(HEADER_BYTES - 4) === crc32c(header.subarray(0, HEADER_BYTES - 4))
  );
}

/** The generation of a file that is otherwise not to be used, so that numbers are not used again; 0 when there is none. */
export function readGeneration(fd: number): number {
  const header = Buffer.alloc(HEADER_BYTES);
  return readSync(fd, header, 0, HEADER_BYTES, 0) === HEADER_BYTES && isIntact(header)
    ? Number(header.readBigUInt64LE(24))
    : 0;
}

export function writeHeader(
  fd: number,
  identity: IntentIdentity,
  generation: number,
  cleanMtimeNs: bigint | undefined,
): void {
  const header = Buffer.alloc(HEADER_BYTES);
  header.write(MAGIC, 0, "latin1");
  header.writeUInt32LE(VERSION, 8);
  header.writeUInt32LE(cleanMtimeNs === undefined ? 0 : 1, 12);
  header.writeBigUInt64LE(BigInt(identity.imageBytes), 16);
  header.writeBigUInt64LE(BigInt(generation), 24);
  header.writeBigUInt64LE(cleanMtimeNs ?? 0n, 32);
  packBootId(identity.bootId).copy(header, 40);
  const id = Buffer.from(identity.diskId);
  if (id.length > 1024) throw new RangeError(`Disk id of ${id.length} bytes`);
  header.writeUInt32LE(id.length, 56);
  id.copy(header, 60);
  header.writeUInt32LE(crc32c(header.subarray(0, HEADER_BYTES - 4)), HEADER_BYTES - 4);
  writeAll(fd, header, 0);
  fsyncSync(fd);
}

/** One writeSync may write a part only, on a disk that is nearly full. */
export function writeAll(fd: number, data: Buffer, position: number): void {
  for (let at = 0; at < data.length;) at += writeSync(fd, data, at, data.length - at, position + at);
}

function packBootId(bootId: string): Buffer {
  const packed = Buffer.alloc(16);
  Buffer.from(bootId.replaceAll("-", ""), "hex").copy(packed);
  return packed;
}

export function writePage(fd: number, page: Buffer, offset: number): Promise<void> {
  return new Promise((resolve, reject) => {
    write(fd, page, 0, page.length, offset, (error, written) => {
      if (error !== null) reject(error);
      else if (written !== page.length) reject(new Error(`${written} of ${page.length} bytes were written`));
      else resolve();
    });
  });
}

export function syncData(fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    fdatasync(fd, (error) => (error === null ? resolve() : reject(error)));
  });
}

export function hasBit(bits: Buffer, index: number): boolean {
  return ((bits[index >>> 3]! >>> (index & 7)) & 1) === 1;
}

export function setBit(bits: Buffer, index: number): void {
  bits[index >>> 3] = bits[index >>> 3]! | (1 << (index & 7));
}

export function clearBit(bits: Buffer, index: number): void {
  bits[index >>> 3] = bits[index >>> 3]! & ~(1 << (index & 7));
}
