/** Time as an argument. `now` is wall time in ms since 1970; `monotonic` only ever grows, in ms, from an unknown origin. */
export interface Clock {
  now(): number;
  monotonic(): number;
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}
