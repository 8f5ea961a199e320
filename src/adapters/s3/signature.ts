/**
 * AWS Signature Version 4 in the Authorization header.
 *
 * We sign ourselves instead of presigning: headers such as those of Object Lock must be signed, a presigned URL cannot carry them,
 * and one HMAC per request (the day's key is kept) is cheaper than a presigned URL.
 *
 * Source: docs.aws.amazon.com, "Create a signed AWS API request".
 */
import { createHmac, hash } from "node:crypto";

export interface Credentials {
  readonly accessKey: string;
  readonly secretKey: string;
}

export const UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD";

export interface UnsignedRequest {
  readonly method: string;
  readonly host: string;
  /** Path as it is sent, already encoded. */
  readonly path: string;
  readonly query: Readonly<Record<string, string>>;
  /** Headers to sign and to send, names in lower case; `host`, `x-amz-date` and `x-amz-content-sha256` are added. */
  readonly headers: Readonly<Record<string, string>>;
  /** SHA-256 of the body in hex, or UNSIGNED_PAYLOAD where the channel is trusted (TLS, loopback). */
  readonly payloadSha256: string;
}

export interface SignedRequest {
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
}

/** `now` in ms since 1970; stores refuse requests that are more than 15 minutes off. */
export function signer(
  credentials: Credentials,
  region: string,
): (request: UnsignedRequest, now: number) => SignedRequest {
  let keyDay = "";
  let key: Buffer = Buffer.alloc(0);
  const keyOf = (day: string): Buffer => {
    if (day !== keyDay) {
      const parts = [day, region, "s3", "aws4_request"];
      key = parts.reduce<Buffer>((before, part) => hmac(before, part), Buffer.from(`AWS4${credentials.secretKey}`));
      keyDay = day;
    }
    return key;
  };
  return (request, now) => {
    const time = new Date(now).toISOString().replace(/[-:]|\.\d{3}/g, "");
    const scope = `${time.slice(0, 8)}/${region}/s3/aws4_request`;
    const headers: Record<string, string> = {
      ...request.headers,
      host: request.host,
      "x-amz-content-sha256": request.payloadSha256,
      "x-amz-date": time,
    };
    const names = Object.keys(headers).sort();
    const signedHeaders = names.join(";");
    const query = canonicalQuery(request.query);
    const canonical = [
      request.method,
      request.path,
      query,
      ...names.map((name) => `${name}:${headers[name]!.trim().replace(/ +/g, " ")}`),
      "",
      signedHeaders,
      request.payloadSha256,
    ].join("\n");
    const toSign = ["AWS4-HMAC-SHA256", time, scope, hash("sha256", canonical)].join("\n");
    const signature = createHmac("sha256", keyOf(time.slice(0, 8)))
      .update(toSign)
      .digest("hex");
    const authorization = `AWS4-HMAC-SHA256 Credential=${credentials.accessKey}/${scope}, SignedHeaders=${signedHeaders}, Signature=${signature}`;
    return { path: query === "" ? request.path : `${request.path}?${query}`, headers: { ...headers, authorization } };
  };
}

/** Percent-encoding as the signature wants it: everything but letters, digits and `-._~`. */
export function encodeRfc3986(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);
}

function canonicalQuery(query: Readonly<Record<string, string>>): string {
  const pairs = Object.entries(query).map(([name, value]) => `${encodeRfc3986(name)}=${encodeRfc3986(value)}`);
  return pairs.sort().join("&");
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac("sha256", key).update(text).digest();
}
