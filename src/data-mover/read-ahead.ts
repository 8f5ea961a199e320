/**
 * Notices readers that go forward and says what they will want next.
 *
 * Clients keep several requests in flight and may run several streams at once, so a request counts as the continuation of a stream
 * when it begins near the stream's end. How far ahead is fetched grows with what the stream has read: a short one costs little, a
 * long one (a kernel, a copy of the disk) finds everything at hand.
 */
export interface ReadAhead {
  /** A read of [start, end) happens. Yields the range to fetch ahead of it, if any; never any while there is no `room`. */
  observe(start: number, end: number, room: boolean): { readonly start: number; readonly end: number } | undefined;
}

export interface ReadAheadLimits {
  /** How far out of order reads of one stream may come. */
  readonly reach: number;
  /** Fetched ahead at least, once a stream is believed, and at most. */
  readonly least: number;
  readonly most: number;
  /** Nothing is beyond. */
  readonly end: number;
}

const STREAMS = 16;
/** A stream is believed after so many reads that continue it. */
const BELIEVED_AFTER = 2;

/** Units are the caller's. */
export function readAhead({ reach, least, most, end: limit }: ReadAheadLimits): ReadAhead {
  const streams: { begin: number; end: number; hits: number; ahead: number }[] = [];
  return {
    observe(start, end, room) {
      const index = streams.findIndex(
        (stream) => start >= stream.end - reach && start <= stream.end + reach && end > stream.end,
      );
      const stream = index < 0 ? { begin: start, end, hits: 0, ahead: end } : streams.splice(index, 1)[0]!;
      streams.push(stream);
      if (streams.length > STREAMS) streams.shift();
      if (index < 0) return undefined;
      stream.end = end;
      stream.hits++;
      const window = Math.min(most, Math.max(least, 2 * (end - stream.begin)));
      const from = Math.max(stream.ahead, end);
      const to = Math.min(end + window, limit);
      // Half a window at a time, so that neighbours come with one request.
      if (!room || stream.hits < BELIEVED_AFTER || (to - from < window / 2 && to < limit) || to <= from)
        return undefined;
      stream.ahead = to;
      return { start: from, end: to };
    },
  };
}
