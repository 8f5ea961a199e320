/**
 * Presigned URLs by minio's Client.
 *
 * A signature costs some 0.15 ms of processor time, and an image reads the same object range by range. The range is not signed, so
 * the URL of a GET is kept and used again while it is young.
 */
import type { Client } from "minio";
import type { Clock } from "#ports/clock.ts";

/** A store refuses a signed request of this age: as long as a signature in a header would be taken. */
const VALID_SECONDS = 900;
/** A kept URL is used this long, well within its validity also if the two clocks differ. */
const KEPT_MS = 300_000;
const KEPT_URLS = 256;

/** Absolute, percent-encoded URL for one method on one key of the bucket. No request is made for it: the client knows its region. */
export function urlSigner(
  client: Client,
  bucket: string,
  clock: Clock,
): (method: string, key: string) => Promise<string> {
  // A Map iterates in order of insertion: the first is the oldest.
  const kept = new Map<string, { readonly url: string; readonly until: number }>();
  return async (method, key) => {
    if (method === "GET") {
      const known = kept.get(key);
      if (known !== undefined && clock.monotonic() < known.until) return known.url;
      kept.delete(key);
    }
    const url = await client.presignedUrl(method, bucket, key, VALID_SECONDS, {}, new Date(clock.now()));
    if (method === "GET") {
      kept.set(key, { url, until: clock.monotonic() + KEPT_MS });
      for (const oldest of kept.keys()) {
        if (kept.size <= KEPT_URLS) break;
        kept.delete(oldest);
      }
    }
    return url;
  };
}
