/**
 * Gathers the replies of one turn of the event loop into one write to the socket: a system call costs more than a 4 KiB read.
 *
 * ```
 *  batch: [ reply | reply | … | free ]   one at a time, from the pool; goes out when full, at the end of the turn, or before a
 *                                        reply that has a buffer of its own
 * ```
 *
 * Invariant: bytes leave in the order in which they were added; a buffer returns to the pool only after the socket is done with it.
 */
import type { BufferPool } from "./buffer-pool.ts";

/** Largest reply that is gathered; larger ones have their own buffer. */
export const BATCH_BYTES = 256 << 10;

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
}

export function createReplyWriter(pool: BufferPool, write: (bytes: Buffer, done: () => void) => void, drained: () => void): ReplyWriter {
  let batch: Buffer | undefined;
  let used = 0;
  let waitingBytes = 0;
  let scheduled = false;
  const place: { buffer: Buffer; at: number } = { buffer: Buffer.alloc(0), at: 0 };

  function send(bytes: Buffer, done: () => void): void {
    waitingBytes += bytes.length;
    write(bytes, () => {
      waitingBytes -= bytes.length;
      done();
      drained();
    });
  }

  function flush(): void {
    if (batch === undefined) return;
    const full = batch;
    const bytes = used;
    batch = undefined;
    used = 0;
    if (bytes === 0) pool.give(full);
    else send(full.subarray(0, bytes), () => pool.give(full));
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
      if (before.length > 0) send(before, () => undefined);
    },
    sendOwn(bytes, done) {
      flush();
      send(bytes, done);
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
      return waitingBytes;
    },
  };
}
