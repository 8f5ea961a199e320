/**
 * One page of a listing, by minio's ListObjectsV2.
 *
 * Pages go on by the last key and not by the server's token: minio's XML parser makes a number of a token, or of a whole key, that
 * looks like one. (Our keys never do; what does not begin with the prefix is refused below.)
 */
import type { Client } from "minio";
import { Fault, isFault } from "#model/fault.ts";
import type { ObjectEntry } from "#ports/object-store.ts";

export interface ListingPage {
  readonly entries: readonly ObjectEntry[];
  /** More may follow behind the last entry. */
  readonly more: boolean;
}

/**
 * At most `limit` (≤ 1000) entries behind `after`.
 * Throws a Fault of the store; STORE_UNAVAILABLE for what is not a listing (something between us and the store answered).
 */
export async function listPage(
  client: Client,
  store: { readonly endpoint: string; readonly bucket: string },
  wanted: { readonly prefix: string; readonly after: string; readonly limit: number },
): Promise<ListingPage> {
  const invalid = (what: string, cause?: unknown): Fault =>
    new Fault("STORE_UNAVAILABLE", `The store's listing ${what}`, {
      details: { endpoint: store.endpoint, bucket: store.bucket },
      hint: "Check that the endpoint is an S3 server and not a proxy's error page.",
      cause,
    });
  const { prefix, after, limit } = wanted;
  const page = await client.listObjectsV2Query(store.bucket, prefix, "", "", limit, after).catch((cause: unknown) => {
    if (isFault(cause)) throw cause;
    throw invalid("is not a ListBucketResult", cause);
  });
  const entries = page.objects.map(({ name, size }) => {
    if (name === undefined || !name.startsWith(prefix) || !Number.isSafeInteger(size))
      throw invalid("has an entry without key or size");
    return { key: name, size };
  });
  if (page.isTruncated && entries.length === 0) throw invalid("breaks off without saying how to go on");
  return { entries, more: page.isTruncated };
}
