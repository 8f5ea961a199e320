/**
 * Gathers the replies of one turn of the event loop into one write to the socket: a system call costs more than a 4 KiB read.
 *
 * ```
 *  batch: [ reply | reply | … | free ]   one at a time, from the pool; goes out when full, at the end of the turn, or before a
 *                                        reply that has a buffer of its own
 * ```
 *
 * A small write mostly ends in the socket's buffer before `write` returns: then the batch is free again at once, and no callback is needed.
 *
 * Invariant: bytes leave in the order in which they were added; a buffer returns to the pool only after the socket is done with it.
 */
import type { BufferPool } from "./buffer-pool.ts";

/** Largest reply that is gathered; larger ones have their own buffer. */
export const BATCH_BYTES = 256 << 10;

/** Up to here a write that finds the socket empty fits in whole. */
const SMALL_BYTES = 64 << 10;

/** What we use of a socket. */
export interface ReplySink {
  write(bytes: Uint8Array, done?: () => void): unknown;
  /** Bytes that were written and not taken yet. */
  readonly writableLength: number;
}

export interface ReplyWriter {
  /** Room for `bytes` (at most BATCH_BYTES) in the batch: write at `at` of `buffer`, then `added(bytes)`. */
  room(bytes: number): { readonly buffer: Buffer; readonly at: number };
  added(bytes: number): void;
  /** Somebody else goes on filling the room that was given last: the batch is theirs from now on, what lies before it is sent. */
  detach(): void;
  /** Send the bytes behind what was added; `done` when the socket is done with them. */
  sendOwn(bytes: Buffer, done: () => void): void;
  flush(): void;
  /** Flush at the end of this turn. */
  flushLater(): void;
  /** Bytes that the socket has not taken yet. */
  readonly waitingBytes: number;
  /** The session is over: nothing is added any more. */
  release(): void;
}

export function createReplyWriter(pool: BufferPool, sink: ReplySink): ReplyWriter {
  let batch: Buffer | undefined;
  let used = 0;
  let scheduled = false;
  const place: { buffer: Buffer; at: number } = { buffer: Buffer.alloc(0), at: 0 };

  function flush(): void {
    if (batch === undefined || used === 0) return;
    const full = batch;
    const bytes = full.subarray(0, used);
    used = 0;
    if (bytes.length > SMALL_BYTES || sink.writableLength > 0) {
      batch = undefined;
      sink.write(bytes, () => pool.give(full));
      return;
    }
    sink.write(bytes);
    // Rarely, the socket has not taken it and keeps it: then it is not used again.
    if (sink.writableLength > 0) batch = undefined;
  }

  return {
    room(bytes) {
      if (batch !== undefined && used + bytes > BATCH_BYTES) flush();
      batch ??= pool.take(BATCH_BYTES);
      place.buffer = batch;
      place.at = used;
      return place;
    },
    added(bytes) {
      used += bytes;
    },
    detach() {
      if (batch === undefined) return;
      const before = batch.subarray(0, used);
      batch = undefined;
      used = 0;
      if (before.length > 0) sink.write(before);
    },
    sendOwn(bytes, done) {
      flush();
      sink.write(bytes, done);
    },
    flush,
    flushLater() {
      if (scheduled) return;
      scheduled = true;
      setImmediate(() => {
        scheduled = false;
        flush();
      });
    },
    get waitingBytes() {
      return sink.writableLength;
    },
    release() {
      if (batch !== undefined) pool.give(batch);
      batch = undefined;
      used = 0;
    },
  };
}
