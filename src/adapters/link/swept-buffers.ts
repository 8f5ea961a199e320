/**
 * Frees what was received, soon after it was received.
 *
 * Each chunk that a TLS socket delivers is a buffer outside V8's heap that nobody needs a moment later. V8 hardly sees them: they are small
 * objects with large bodies, so it collects only once 64 MiB have piled up, in every process that relays bulk data. A collection of the young
 * generation takes about a millisecond and frees them all; it is asked for every `STEP_BYTES`.
 *
 * Roles are started with `--expose-gc`; without it nothing happens here and only memory is lost.
 */
const STEP_BYTES = 16 * 1024 * 1024;

let pending = 0;

export function countReceived(bytes: number): void {
  pending += bytes;
  if (pending < STEP_BYTES) return;
  pending = 0;
  globalThis.gc?.({ type: "minor" });
}
