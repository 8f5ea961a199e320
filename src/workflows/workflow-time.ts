/** The workflow's clock: in the sandbox `Date.now` is deterministic, the time of the current workflow task. Ms since 1970. */
export function now(): number {
  // eslint-disable-next-line no-restricted-syntax -- The one place; everywhere else time is asked here.
  return Date.now();
}

/** RFC 3339, whole seconds, for people. */
export function timestamp(ms: number): string {
  return new Date(ms).toISOString().replace(/\.\d{3}Z$/, "Z");
}
