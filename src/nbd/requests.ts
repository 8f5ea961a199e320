/**
 * The second half of an NBD session, pure: bytes in, requests out, one at a time, so that the shell can stop between two of them when
 * too much is in flight.
 *
 * A write whose payload lies in one received chunk is handed out as a view into that chunk, otherwise it is gathered in a buffer
 * from `allocate`; `buffer` says which, so that the shell can give it back.
 *
 * Invariants: no input throws; a payload over MAX_PAYLOAD_BYTES is never stored (it is skipped, or ends the session).
 * Source: NBD `doc/proto.md`, "Transmission phase", "Request message".
 */
import * as nbd from "./protocol.ts";
import type { ExportFacts } from "./protocol.ts";

const HEADER_BYTES = 28;
const NOTHING = Buffer.alloc(0);
/** A longer payload than this is not worth skipping. */
const SKIP_BYTES = 2 * nbd.MAX_PAYLOAD_BYTES;

export interface NbdRequest {
  readonly type: number;
  readonly flags: number;
  /** The client's name for the request, in two halves: what we do with it is to send it back. */
  readonly cookieHigh: number;
  readonly cookieLow: number;
  /** Bytes. Above 2^53 it is not exact, and past the end of any disk all the same. */
  readonly offset: number;
  readonly length: number;
  /** The payload of a write; undefined for one that was too long and is skipped. */
  readonly data: Buffer | undefined;
  /** Where the payload was gathered; the caller's to recycle. */
  readonly buffer: Buffer | undefined;
}

export interface RequestReader {
  push(chunk: Buffer): void;
  /** The next request; undefined when more bytes are needed; a string when the stream makes no sense and must be closed. */
  next(): NbdRequest | string | undefined;
}

export function createRequestReader(allocate: (length: number) => Buffer): RequestReader {
  let chunk: Buffer = NOTHING;
  let at = 0;
  const queue: Buffer[] = [];
  const header = Buffer.alloc(HEADER_BYTES);
  let headerBytes = 0;
  let gathering: { readonly buffer: Buffer; filled: number } | undefined;
  let skip = 0;
  let broken: string | undefined;

  /** Whether a byte can be read now. */
  function available(): boolean {
    while (at === chunk.length) {
      const following = queue.shift();
      if (following === undefined) return false;
      chunk = following;
      at = 0;
    }
    return true;
  }

  function fail(reason: string): string {
    broken = reason;
    return reason;
  }

  return {
    push(bytes) {
      if (broken === undefined) queue.push(bytes);
    },
    next() {
      if (broken !== undefined) return broken;
      while (available()) {
        if (skip > 0) {
          const skipped = Math.min(skip, chunk.length - at);
          at += skipped;
          skip -= skipped;
          continue;
        }
        if (gathering !== undefined) {
          const { buffer } = gathering;
          const length = header.readUInt32BE(24);
          const copied = chunk.copy(
            buffer,
            gathering.filled,
            at,
            Math.min(chunk.length, at + length - gathering.filled),
          );
          at += copied;
          gathering.filled += copied;
          if (gathering.filled < length) continue;
          gathering = undefined;
          headerBytes = 0;
          return toRequest(header, buffer.subarray(0, length), buffer);
        }
        const copied = chunk.copy(header, headerBytes, at, Math.min(chunk.length, at + HEADER_BYTES - headerBytes));
        at += copied;
        headerBytes += copied;
        if (headerBytes < HEADER_BYTES) continue;
        if (header.readUInt32BE(0) !== nbd.REQUEST_MAGIC) return fail("a request without its magic number");
        const payload = header.readUInt16BE(6) === nbd.CMD_WRITE ? header.readUInt32BE(24) : 0;
        if (payload === 0) {
          headerBytes = 0;
          return toRequest(header, NOTHING, undefined);
        }
        if (payload > nbd.MAX_PAYLOAD_BYTES) {
          if (payload > SKIP_BYTES) return fail(`a write of ${payload} bytes`);
          headerBytes = 0;
          skip = payload;
          return toRequest(header, undefined, undefined);
        }
        if (chunk.length - at >= payload) {
          headerBytes = 0;
          at += payload;
          return toRequest(header, chunk.subarray(at - payload, at), undefined);
        }
        gathering = { buffer: allocate(payload), filled: 0 };
      }
      return undefined;
    },
  };
}

function toRequest(header: Buffer, data: Buffer | undefined, buffer: Buffer | undefined): NbdRequest {
  return {
    flags: header.readUInt16BE(4),
    type: header.readUInt16BE(6),
    cookieHigh: header.readUInt32BE(8),
    cookieLow: header.readUInt32BE(12),
    offset: header.readUInt32BE(16) * 2 ** 32 + header.readUInt32BE(20),
    length: header.readUInt32BE(24),
    data,
    buffer,
  };
}

/** The error number that a request deserves before the device is asked; 0 when it may be tried. */
export function checkRequest(
  request: NbdRequest,
  facts: ExportFacts,
  negotiated: { readonly structured: boolean; readonly allocation: boolean },
): number {
  const { type, flags, offset, length } = request;
  const unknownFlags = flags & ~allowedFlags(type, negotiated.structured);
  switch (type) {
    case nbd.CMD_READ:
    case nbd.CMD_CACHE:
      if (unknownFlags !== 0 || length === 0 || offset + length > facts.sizeBytes) return nbd.EINVAL;
      return type === nbd.CMD_READ && length > nbd.MAX_PAYLOAD_BYTES ? nbd.EINVAL : 0;
    case nbd.CMD_WRITE:
      if (unknownFlags !== 0 || request.data === undefined || length === 0) return nbd.EINVAL;
      if (facts.readOnly) return nbd.EPERM;
      return offset + length > facts.sizeBytes ? nbd.ENOSPC : 0;
    case nbd.CMD_WRITE_ZEROES:
      if (unknownFlags !== 0 || length === 0) return nbd.EINVAL;
      if (facts.readOnly) return nbd.EPERM;
      if (offset + length > facts.sizeBytes) return nbd.ENOSPC;
      return (flags & nbd.CMD_FLAG_FAST_ZERO) !== 0 && facts.fastZero !== true ? nbd.ENOTSUP : 0;
    case nbd.CMD_TRIM:
      if (unknownFlags !== 0 || length === 0) return nbd.EINVAL;
      if (facts.readOnly) return nbd.EPERM;
      return offset + length > facts.sizeBytes ? nbd.EINVAL : 0;
    case nbd.CMD_BLOCK_STATUS:
      return !negotiated.allocation || unknownFlags !== 0 || length === 0 || offset + length > facts.sizeBytes
        ? nbd.EINVAL
        : 0;
    case nbd.CMD_FLUSH:
      return unknownFlags !== 0 ? nbd.EINVAL : 0;
    default:
      return nbd.EINVAL;
  }
}

/** FUA is allowed everywhere once it was offered: the document asks to ignore it where it has no meaning. */
function allowedFlags(type: number, structured: boolean): number {
  switch (type) {
    case nbd.CMD_READ:
      return nbd.CMD_FLAG_FUA | (structured ? nbd.CMD_FLAG_DF : 0);
    case nbd.CMD_WRITE_ZEROES:
      return nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO;
    case nbd.CMD_BLOCK_STATUS:
      return nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_REQ_ONE;
    default:
      return nbd.CMD_FLAG_FUA;
  }
}
