/**
 * Requests of one client against one device, replies out in whatever order they complete.
 *
 * A device that answers at once (an image file) is answered within the same turn; one that answers later (a recovery point in S3) has
 * many requests in flight. What is in flight is bounded: past the bound no further request is taken from the stream and
 * `blocked` tells the shell to stop reading its socket.
 *
 * Faults of the device become error numbers of NBD. Anything else that is thrown is a bug and ends the process.
 */
import { isFault } from "#model/fault.ts";
import type { Fault } from "#model/fault.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import type { BufferPool } from "./buffer-pool.ts";
import type { Negotiated } from "./negotiation.ts";
import * as nbd from "./protocol.ts";
import { blockStatusReply, readHeadBytes, resultBytes, writeReadHead, writeResult } from "./replies.ts";
import { BATCH_BYTES } from "./reply-writer.ts";
import type { ReplyWriter } from "./reply-writer.ts";
import { checkRequest, createRequestReader } from "./requests.ts";
import type { NbdRequest } from "./requests.ts";

const MAX_REQUESTS_IN_FLIGHT = 256;
const MAX_BYTES_IN_FLIGHT = 64 << 20;
/** After a read that took its time, so many reads get a buffer of their own from the start. */
const EXPECT_SLOW_READS = 64;
/** A late reply up to this size is copied into the batch; a larger one is sent from where it is. */
const COPY_BYTES = 16 << 10;

export interface Transmission {
  push(chunk: Buffer): void;
  /** Take up requests again after the socket took bytes. */
  resume(): void;
  /** Too much is in flight: read no further. */
  readonly blocked: boolean;
  /** Answer what comes from now on with ESHUTDOWN. */
  shutDown(): void;
  readonly inFlight: number;
}

export interface TransmissionOptions {
  readonly device: BlockDevice;
  readonly negotiated: Negotiated;
  readonly pool: BufferPool;
  readonly writer: ReplyWriter;
  /** The client said goodbye (no reason) or nonsense; nothing further is taken. */
  readonly onEnd: (reason: string | undefined) => void;
  /** A request was answered, or `blocked` may have changed. */
  readonly onProgress: () => void;
  readonly onFault: (fault: Fault, request: NbdRequest) => void;
}

export function createTransmission(options: TransmissionOptions): Transmission {
  const { device, negotiated, pool, writer } = options;
  const { structured } = negotiated;
  const facts = negotiated.facts;
  const reader = createRequestReader((length) => pool.take(length));
  let inFlight = 0;
  let bytesInFlight = 0;
  let slowReads = 0;
  let ended = false;
  let shuttingDown = false;
  let working = false;

  function isBlocked(): boolean {
    return inFlight >= MAX_REQUESTS_IN_FLIGHT || bytesInFlight + writer.waitingBytes >= MAX_BYTES_IN_FLIGHT;
  }

  function work(): void {
    if (working) return;
    working = true;
    while (!ended && !isBlocked()) {
      const request = reader.next();
      if (request === undefined) break;
      if (typeof request === "string") {
        ended = true;
        options.onEnd(request);
      } else if (request.type === nbd.CMD_DISC) {
        ended = true;
        options.onEnd(undefined);
      } else {
        take(request);
      }
    }
    working = false;
  }

  function take(request: NbdRequest): void {
    const error = shuttingDown ? nbd.ESHUTDOWN : checkRequest(request, facts, negotiated);
    if (error !== 0) {
      recycle(request);
      reply(request, error);
      return;
    }
    const fua = (request.flags & nbd.CMD_FLAG_FUA) !== 0;
    switch (request.type) {
      case nbd.CMD_READ:
        read(request);
        return;
      case nbd.CMD_WRITE:
        perform(request, () => device.write(request.data!, request.offset, fua ? { fua } : undefined));
        return;
      case nbd.CMD_FLUSH:
        perform(request, () => device.flush());
        return;
      case nbd.CMD_TRIM:
        perform(request, async () => {
          await device.trim(request.offset, request.length);
          if (fua) await device.flush();
        });
        return;
      case nbd.CMD_WRITE_ZEROES: {
        const mayTrim = (request.flags & nbd.CMD_FLAG_NO_HOLE) === 0;
        perform(request, () => device.zero(request.offset, request.length, { mayTrim, fua }));
        return;
      }
      case nbd.CMD_BLOCK_STATUS:
        status(request);
        return;
      default:
        reply(request, 0); // CACHE: a hint; reads are cached or they are not.
    }
  }

  /** Anything whose reply carries no data. */
  function perform(request: NbdRequest, work_: () => void | Promise<void>): void {
    const done = (error: number): void => {
      recycle(request);
      reply(request, error);
    };
    attempt(request, request.data?.length ?? 0, work_, () => done(0), done);
  }

  /** Run `action`, now or later; exactly one of `succeeded` and `failed` is called. */
  function attempt<T>(
    request: NbdRequest,
    bytes: number,
    action: () => T | Promise<T>,
    succeeded: (value: T, late: boolean) => void,
    failed: (error: number) => void,
  ): void {
    let result: T | Promise<T>;
    try {
      result = action();
    } catch (error) {
      failed(errorNumber(error, request));
      return;
    }
    if (!(result instanceof Promise)) {
      succeeded(result, false);
      return;
    }
    inFlight++;
    bytesInFlight += bytes;
    const settled = (): void => {
      inFlight--;
      bytesInFlight -= bytes;
    };
    void result
      .then(
        (value) => {
          settled();
          succeeded(value, true);
        },
        (error: unknown) => {
          settled();
          failed(errorNumber(error, request));
        },
      )
      .then(() => {
        work();
        writer.flushLater();
        options.onProgress();
      });
  }

  function read(request: NbdRequest): void {
    const headBytes = readHeadBytes(structured);
    const total = headBytes + request.length;
    if (total > BATCH_BYTES || slowReads > 0) {
      if (slowReads > 0) slowReads--;
      readIntoOwn(request, headBytes, total);
      return;
    }
    const { buffer, at } = writer.room(total);
    attempt(
      request,
      request.length,
      () => {
        const result = device.read(buffer.subarray(at + headBytes, at + total), request.offset);
        if (result instanceof Promise) {
          slowReads = EXPECT_SLOW_READS;
          writer.detach();
        }
        return result;
      },
      (_, late) => {
        writeReadHead(buffer, at, request, request.length, structured);
        // This batch was given away with whatever else is in it: it is not used again.
        if (late) writer.sendOwn(buffer.subarray(at, at + total), () => undefined);
        else writer.added(total);
      },
      (error) => reply(request, error),
    );
  }

  function readIntoOwn(request: NbdRequest, headBytes: number, total: number): void {
    const buffer = pool.take(total);
    attempt(
      request,
      request.length,
      () => device.read(buffer.subarray(headBytes, total), request.offset),
      (_, late) => {
        if (late) slowReads = EXPECT_SLOW_READS;
        writeReadHead(buffer, 0, request, request.length, structured);
        if (total > COPY_BYTES) {
          writer.sendOwn(buffer.subarray(0, total), () => pool.give(buffer));
          return;
        }
        const place = writer.room(total);
        buffer.copy(place.buffer, place.at, 0, total);
        writer.added(total);
        pool.give(buffer);
      },
      (error) => {
        pool.give(buffer);
        reply(request, error);
      },
    );
  }

  function status(request: NbdRequest): void {
    const onlyOne = (request.flags & nbd.CMD_FLAG_REQ_ONE) !== 0;
    attempt(
      request,
      0,
      () => device.status?.(request.offset, request.length) ?? [{ length: request.length, hole: false, zero: false }],
      (runs) => {
        const bytes = blockStatusReply(request, request.length, runs, onlyOne);
        const place = writer.room(bytes.length);
        bytes.copy(place.buffer, place.at);
        writer.added(bytes.length);
      },
      (error) => reply(request, error),
    );
  }

  function reply(request: NbdRequest, error: number): void {
    const mustBeStructured = structured && (request.type === nbd.CMD_READ || request.type === nbd.CMD_BLOCK_STATUS);
    const bytes = resultBytes(error, mustBeStructured);
    const { buffer, at } = writer.room(bytes);
    writeResult(buffer, at, request, error, mustBeStructured);
    writer.added(bytes);
  }

  function recycle(request: NbdRequest): void {
    if (request.buffer !== undefined) pool.give(request.buffer);
  }

  function errorNumber(error: unknown, request: NbdRequest): number {
    if (!isFault(error)) throw error;
    options.onFault(error, request);
    return error.code === "DISK_FULL" || error.code === "OVERLAY_FULL" ? nbd.ENOSPC : nbd.EIO;
  }

  return {
    push(chunk) {
      reader.push(chunk);
      work();
      writer.flush();
    },
    resume() {
      work();
      writer.flushLater();
    },
    get blocked() {
      return isBlocked();
    },
    shutDown() {
      shuttingDown = true;
    },
    get inFlight() {
      return inFlight;
    },
  };
}
