/** The answer to ListObjectsV2. Its XML is flat and machine-made, so it is read without an XML parser, and checked. */
import { Fault } from "#model/fault.ts";
import type { ObjectEntry } from "#ports/object-store.ts";

export interface Listing {
  readonly entries: readonly ObjectEntry[];
  /** Undefined: this was the last page. */
  readonly nextToken: string | undefined;
}

/** Throws STORE_UNAVAILABLE for what is not a listing: something between us and the store answered. */
export function parseListing(xml: string, store: { readonly endpoint: string; readonly bucket: string }): Listing {
  const invalid = (what: string): Fault =>
    new Fault("STORE_UNAVAILABLE", `The store's listing ${what}`, {
      details: { endpoint: store.endpoint, bucket: store.bucket },
      hint: "Check that the endpoint is an S3 server and not a proxy's error page.",
    });
  if (!/<ListBucketResult[\s>]/.test(xml)) throw invalid("is not a ListBucketResult");
  const encoded = element(xml, "EncodingType") === "url";
  const entries = Array.from(xml.matchAll(/<Contents>(.*?)<\/Contents>/gs), ([, content]) => {
    const key = element(content!, "Key");
    const size = Number(element(content!, "Size"));
    if (key === undefined || !Number.isSafeInteger(size)) throw invalid("has an entry without key or size");
    return { key: encoded ? decodeURIComponent(unescapeXml(key).replaceAll("+", " ")) : unescapeXml(key), size };
  });
  const truncated = element(xml, "IsTruncated") === "true";
  const token = element(xml, "NextContinuationToken");
  if (truncated && token === undefined) throw invalid("breaks off without saying how to go on");
  return { entries, nextToken: truncated ? unescapeXml(token!) : undefined };
}

function element(xml: string, name: string): string | undefined {
  return new RegExp(`<${name}>(.*?)</${name}>`, "s").exec(xml)?.[1];
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

function unescapeXml(text: string): string {
  return text.replace(
    /&(?:#x([0-9a-fA-F]+)|#([0-9]+)|([a-z]+));/g,
    (whole, hex?: string, decimal?: string, name?: string) => {
      if (hex !== undefined) return String.fromCodePoint(Number.parseInt(hex, 16));
      if (decimal !== undefined) return String.fromCodePoint(Number.parseInt(decimal, 10));
      return ENTITIES[name ?? ""] ?? whole;
    },
  );
}
