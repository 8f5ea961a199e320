/**
 * Replies as bytes. Simple ones are 16 bytes of header; structured ones have 20 and a body. Every reply of ours is one chunk.
 * Source: NBD `doc/proto.md`, "Simple reply message", "Structured reply chunk message".
 */
import type { AllocationRun } from "#ports/block-device.ts";
import * as nbd from "./protocol.ts";

/** What every reply needs of its request. */
export interface ReplyTo {
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly offset: number;
}

const SIMPLE_BYTES = 16;
const CHUNK_BYTES = 20;
/** Descriptors in one answer to BLOCK_STATUS; the client asks again from where they end. */
const MAX_STATUS_RUNS = 4096;

/** Bytes in front of the data of a read. */
export function readHeadBytes(structured: boolean): number {
  return structured ? CHUNK_BYTES + 8 : SIMPLE_BYTES;
}

/** Writes the `readHeadBytes` in front of `length` bytes of data that follow in the same buffer. */
export function writeReadHead(target: Buffer, at: number, request: ReplyTo, length: number, structured: boolean): void {
  if (!structured) {
    writeSimple(target, at, request, 0);
    return;
  }
  writeChunkHead(target, at, request, nbd.REPLY_OFFSET_DATA, 8 + length);
  writeUint64(target, at + CHUNK_BYTES, request.offset);
}

/** Bytes of `writeResult`. */
export function resultBytes(error: number, structured: boolean): number {
  if (!structured) return SIMPLE_BYTES;
  return CHUNK_BYTES + (error === 0 ? 0 : 6);
}

/** A reply without data: success, or an error number. `structured` only for those commands whose reply must be. */
export function writeResult(target: Buffer, at: number, request: ReplyTo, error: number, structured: boolean): void {
  if (!structured) {
    writeSimple(target, at, request, error);
  } else if (error === 0) {
    writeChunkHead(target, at, request, nbd.REPLY_NONE, 0);
  } else {
    writeChunkHead(target, at, request, nbd.REPLY_ERROR, 6);
    target.writeUInt32BE(error, at + CHUNK_BYTES);
    target.writeUInt16BE(0, at + CHUNK_BYTES + 4);
  }
}

/** Neighbours of one state are one descriptor; at most one with `onlyOne`, which is then cut to `length`. */
export function blockStatusReply(
  request: ReplyTo,
  length: number,
  runs: readonly AllocationRun[],
  onlyOne: boolean,
): Buffer {
  const descriptors: { length: number; state: number }[] = [];
  let covered = 0;
  for (const run of runs) {
    if (covered >= length) break;
    const state = (run.hole ? nbd.STATE_HOLE : 0) | (run.zero ? nbd.STATE_ZERO : 0);
    const runLength = Math.min(run.length, length - covered);
    const last = descriptors.at(-1);
    if (last !== undefined && last.state === state) last.length += runLength;
    else if (descriptors.length === (onlyOne ? 1 : MAX_STATUS_RUNS)) break;
    else descriptors.push({ length: runLength, state });
    covered += runLength;
  }
  const reply = Buffer.alloc(CHUNK_BYTES + 4 + 8 * descriptors.length);
  writeChunkHead(reply, 0, request, nbd.REPLY_BLOCK_STATUS, reply.length - CHUNK_BYTES);
  reply.writeUInt32BE(nbd.META_CONTEXT_ID, CHUNK_BYTES);
  for (const [index, descriptor] of descriptors.entries()) {
    reply.writeUInt32BE(descriptor.length, CHUNK_BYTES + 4 + 8 * index);
    reply.writeUInt32BE(descriptor.state, CHUNK_BYTES + 8 + 8 * index);
  }
  return reply;
}

function writeSimple(target: Buffer, at: number, request: ReplyTo, error: number): void {
  target.writeUInt32BE(nbd.SIMPLE_REPLY_MAGIC, at);
  target.writeUInt32BE(error, at + 4);
  target.writeUInt32BE(request.cookieHigh, at + 8);
  target.writeUInt32BE(request.cookieLow, at + 12);
}

function writeChunkHead(target: Buffer, at: number, request: ReplyTo, type: number, length: number): void {
  target.writeUInt32BE(nbd.STRUCTURED_REPLY_MAGIC, at);
  target.writeUInt16BE(nbd.REPLY_FLAG_DONE, at + 4);
  target.writeUInt16BE(type, at + 6);
  target.writeUInt32BE(request.cookieHigh, at + 8);
  target.writeUInt32BE(request.cookieLow, at + 12);
  target.writeUInt32BE(length, at + 16);
}

function writeUint64(target: Buffer, at: number, value: number): void {
  target.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  target.writeUInt32BE(value % 2 ** 32, at + 4);
}
