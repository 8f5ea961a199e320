/**
 * What an S3 server's answer means to us.
 *
 * The distinction that matters: after a failed create, is it certain that nothing was written? Only where the server says that it
 * did not even try (403, 404, throttling, a full disk). Everything else is STORE_AMBIGUOUS, and the caller looks.
 *
 * Source: ports/object-store.ts; docs.aws.amazon.com, "Error responses".
 */
import { Fault } from "#model/fault.ts";

export interface S3Answer {
  readonly status: number;
  readonly body: Buffer;
}

export interface S3Call {
  readonly method: string;
  /** Object key, or "" for the bucket. */
  readonly key: string;
  readonly bucket: string;
  readonly endpoint: string;
}

const DENIALS = new Set([
  "AccessDenied",
  "ExpiredToken",
  "InvalidAccessKeyId",
  "InvalidToken",
  "RequestTimeTooSkewed",
  "SignatureDoesNotMatch",
  "XAdminUserNotFound", // versitygw, for InvalidAccessKeyId.
]);

/** The fault behind an answer that is neither success nor one that the caller expects (412, 416). */
export function faultOfAnswer(answer: S3Answer, call: S3Call): Fault {
  const { status } = answer;
  const text = answer.body.toString("utf8", 0, 4096);
  const code = /<Code>([^<]*)<\/Code>/.exec(text)?.[1] ?? "";
  const said = /<Message>([^<]*)<\/Message>/.exec(text)?.[1] ?? "";
  const details = { endpoint: call.endpoint, bucket: call.bucket, key: call.key, status, ...(code !== "" && { code }) };
  const what = `${call.method} of "${call.bucket}/${call.key}" was answered with ${status}${code === "" ? "" : ` ${code}`}`;

  // versitygw answers 404 for an access key that it does not know: a status alone never means "missing".
  if (status === 401 || status === 403 || DENIALS.has(code))
    return new Fault("STORE_DENIED", what, { details, hint: deniedHint(code, said) });
  if (status === 404 && (code === "NoSuchBucket" || call.key === "")) {
    return new Fault("STORE_INVALID", `The store at "${call.endpoint}" has no bucket "${call.bucket}"`, {
      details,
      hint: "Create the bucket, or correct its name in the configuration.",
    });
  }
  if (status === 404 && code === "NoSuchKey") return objectMissing(call);
  if (status === 429 || code === "SlowDown" || code === "TooManyRequests") {
    return new Fault("STORE_THROTTLED", what, {
      details,
      hint: "The store asks to go slower; it is tried again by itself.",
    });
  }
  if (
    status === 507 ||
    /QuotaExceeded|StorageFull|DiskFull|InsufficientStorage/i.test(code) ||
    /no space left|quota exceeded/i.test(said)
  ) {
    return new Fault("DISK_FULL", `The store at "${call.endpoint}" has no room for "${call.key}"`, {
      details,
      hint: "Make room in the store; replication goes on by itself.",
    });
  }
  if (status === 501) {
    return new Fault("STORE_UNSAFE", `${what}: it does not implement what Leeward needs`, {
      details,
      hint: "Use a store with create-only PUT (If-None-Match: *); docs/stores.md names some.",
    });
  }
  if (status === 409 || status >= 500) {
    const ambiguous = call.method === "PUT" || call.method === "DELETE";
    return new Fault(ambiguous ? "STORE_AMBIGUOUS" : "STORE_UNAVAILABLE", what, {
      details,
      hint: "The store has trouble; look at its log.",
    });
  }
  return new Fault("STORE_INVALID", said === "" ? what : `${what}: ${said}`, { details });
}

/** The fault behind a request without an answer. */
export function faultOfSilence(cause: unknown, call: S3Call, timedOut: boolean): Fault {
  const reason = timedOut ? "took too long" : `failed with "${codeOf(cause)}"`;
  return new Fault(
    call.method === "PUT" ? "STORE_AMBIGUOUS" : "STORE_UNAVAILABLE",
    `${call.method} of "${call.bucket}/${call.key}" ${reason}`,
    {
      details: { endpoint: call.endpoint, bucket: call.bucket, key: call.key },
      hint: `Check that the store at "${call.endpoint}" is running and can be reached from here.`,
      cause,
    },
  );
}

export function objectMissing(call: S3Call): Fault {
  return new Fault("OBJECT_MISSING", `There is no object "${call.key}" in bucket "${call.bucket}"`, {
    details: { endpoint: call.endpoint, bucket: call.bucket, key: call.key },
  });
}

function deniedHint(code: string, said: string): string {
  // A signed URL that is too old, or from the future, is told apart from a lack of rights by its message only.
  if (code === "RequestTimeTooSkewed" || /expired|not yet valid/i.test(said))
    return "Set this machine's clock: the store refuses requests that are far from its own time.";
  if (code === "InvalidAccessKeyId" || code === "XAdminUserNotFound")
    return "The store does not know this access key: correct it in the site's configuration.";
  if (code === "SignatureDoesNotMatch")
    return "The secret key is not that of the access key, or the region is another: correct them.";
  return "Give the site's credentials the right to read, create, list and delete in this bucket.";
}

function codeOf(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause);
  const { code } = cause as { code?: unknown };
  return typeof code === "string" ? code : cause.message;
}
