/**
 * A bandwidth limit: tokens are bytes; they come at a constant rate and at most `burstBytes` of them wait.
 *
 * What is taken may be more than there is: the bucket then goes below zero and the taker waits until it is paid back. So a payload longer
 * than the burst passes, and the mean rate still holds.
 */
export interface TokenBucket {
  /** Take `bytes` at `nowMs` (monotonic); how many ms to wait before sending them. */
  take(bytes: number, nowMs: number): number;
}

export function createTokenBucket(bytesPerSecond: number, burstBytes: number): TokenBucket {
  if (!(bytesPerSecond > 0 && burstBytes >= 0))
    throw new RangeError(`Bucket of ${bytesPerSecond} bytes a second, ${burstBytes} burst`);
  let tokens = burstBytes;
  let filledAtMs: number | undefined;
  return {
    take(bytes, nowMs) {
      tokens = Math.min(burstBytes, tokens + ((nowMs - (filledAtMs ?? nowMs)) / 1_000) * bytesPerSecond);
      filledAtMs = nowMs;
      tokens -= bytes;
      return tokens >= 0 ? 0 : (-tokens / bytesPerSecond) * 1_000;
    },
  };
}
