/**
 * Notices readers that go forward and says what they will want next.
 *
 * Clients keep several requests in flight and may run several streams at once, so a request counts as the continuation of a stream
 * when it begins within a window around the stream's end.
 */
export interface ReadAhead {
  /** A read of [start, end) happens. Yields the range to fetch ahead of it, if any. */
  observe(start: number, end: number): { readonly start: number; readonly end: number } | undefined;
}

const STREAMS = 16;
/** A stream is believed after so many reads that continue it. */
const BELIEVED_AFTER = 2;

/** Units are the caller's; `window` is how far ahead to fetch, and how far out of order reads may come. */
export function readAhead(window: number, limit: number): ReadAhead {
  const streams: { end: number; hits: number; ahead: number }[] = [];
  return {
    observe(start, end) {
      const index = streams.findIndex(
        (stream) => start >= stream.end - window && start <= stream.end + window && end > stream.end,
      );
      const stream = index < 0 ? { end, hits: 0, ahead: end } : streams.splice(index, 1)[0]!;
      streams.push(stream);
      if (streams.length > STREAMS) streams.shift();
      if (index < 0) return undefined;
      stream.end = end;
      stream.hits++;
      const from = Math.max(stream.ahead, end);
      const to = Math.min(end + window, limit);
      // Half a window at a time, so that neighbours come with one request.
      if (stream.hits < BELIEVED_AFTER || (to - from < window / 2 && to < limit) || to <= from) return undefined;
      stream.ahead = to;
      return { start: from, end: to };
    },
  };
}
