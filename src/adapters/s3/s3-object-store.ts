/**
 * ObjectStore on an S3-compatible server: minio signs, lists and administers, our own requests carry the bytes.
 *
 * Invariants:
 * - `create` sends exactly one request. It is never repeated here: its outcome decides who may write a disk;
 * - reads, listings and deletions are repeated a bounded number of times, with jitter;
 * - a listing that is not in ascending order is STORE_UNSAFE: the commit log finds its tail by LIST.
 *
 * A signed URL covers method, host and key. `If-None-Match` and `Range` are not signed and payloads are not hashed: the channel
 * protects them (TLS, or the loopback interface), and what is stored is authenticated by its own seals.
 *
 * Source: docs/decisions/0007-minio-signs-undici-sends.md.
 */
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { ObjectEntry, ObjectStore } from "#ports/object-store.ts";
import type { Random } from "#ports/random.ts";
import { minioClient } from "./minio-client.ts";
import { s3Connection, type S3Request, type S3Response } from "./s3-connection.ts";
import { faultOfAnswer, objectMissing, type S3Call } from "./s3-errors.ts";
import { listPage } from "./s3-listing.ts";
import { urlSigner } from "./url-signer.ts";

export interface S3Settings {
  /** http(s)://host:port */
  readonly endpoint: string;
  readonly region: string;
  readonly bucket: string;
  readonly accessKey: string;
  readonly secretKey: string;
  /** PEM of the authority that signed the server's certificate, when it is not a public one. */
  readonly ca?: string;
  /** Sockets at most. Default 16. */
  readonly connections?: number;
  /** Longest wait for a request without regard to its size. Default 30 s; a second is added for each MiB. */
  readonly timeoutMs?: number;
}

export interface S3ObjectStore extends ObjectStore, AsyncDisposable {
  readonly settings: S3Settings;
  /** Create the bucket when it is not there. Throws like `head`. */
  ensureBucket(): Promise<void>;
  close(): Promise<void>;
}

type ObjectRequest = Pick<S3Request, "method" | "key" | "headers" | "body" | "expect" | "signal">;

const READ_ATTEMPTS = 6;
const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 3_000;
const DELETES_AT_ONCE = 8;
const PAGE_KEYS = 1000;

export function s3ObjectStore(
  settings: S3Settings,
  deps: { readonly clock: Clock; readonly random: Random },
): S3ObjectStore {
  const { bucket, endpoint } = settings;
  const connection = s3Connection({
    connections: settings.connections ?? 16,
    timeoutMs: settings.timeoutMs ?? 30_000,
    ca: settings.ca,
  });
  const client = minioClient(settings, connection);
  const signedUrl = urlSigner(client, bucket, deps.clock);
  const callOf = ({ method, key }: Pick<S3Call, "method" | "key">): S3Call => ({ method, key, bucket, endpoint });

  /** One request, one answer. Throws a Fault when there is none, the signal's reason when it aborts. */
  async function send(request: ObjectRequest): Promise<S3Response> {
    request.signal?.throwIfAborted();
    const url = await signedUrl(request.method, checkedKey(request.key));
    return connection.send({ ...request, bucket, endpoint, url });
  }

  /** Repeat `work`, which changes nothing when it is done twice, while the store may do better next time. */
  async function repeat<Result>(work: () => Promise<Result>, signal?: AbortSignal): Promise<Result> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        signal?.throwIfAborted();
        if (!isPassing(error) || attempt >= READ_ATTEMPTS) throw error;
      }
      const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (attempt - 1));
      await deps.clock.sleep(wait * (0.5 + deps.random.bytes(1)[0]! / 510), signal);
    }
  }

  /** Statuses in `expected` are returned, others of 300 and above become faults. */
  function ask(request: ObjectRequest, expected: readonly number[] = []): Promise<S3Response> {
    return repeat(async () => {
      const answer = await send(request);
      if (answer.status < 300 || expected.includes(answer.status)) return answer;
      throw faultOfAnswer(answer, callOf(request));
    }, request.signal);
  }

  const store: S3ObjectStore = {
    settings,
    async create(key, body, options = {}) {
      const pieces = body instanceof Uint8Array ? [body] : body;
      const request: ObjectRequest = {
        method: "PUT",
        key,
        headers: { "if-none-match": "*" },
        body: pieces,
        signal: options.signal,
      };
      const answer = await send(request);
      if (answer.status >= 200 && answer.status < 300) return "created";
      if (answer.status === 412) return "exists";
      throw faultOfAnswer(answer, callOf(request));
    },

    async get(key, options = {}) {
      const { range } = options;
      if (range?.length === 0) {
        if ((await store.head(key, options)) === undefined) throw objectMissing(callOf({ method: "GET", key }));
        return new Uint8Array();
      }
      const request: ObjectRequest = {
        method: "GET",
        key,
        expect: range?.length ?? 0,
        ...(range && { headers: { range: `bytes=${range.offset}-${range.offset + range.length - 1}` } }),
        signal: options.signal,
      };
      const answer = await ask(request, [416]);
      if (answer.status === 416) return new Uint8Array(); // The range begins at or past the end.
      // A server may ignore a range; it then says 200 and sends everything.
      if (range && answer.status === 200) return answer.body.subarray(range.offset, range.offset + range.length);
      return answer.body;
    },

    async head(key, options = {}) {
      for (;;) {
        const answer = await ask({ method: "HEAD", key, signal: options.signal }, [404]);
        if (answer.status !== 404) return { size: Number(answer.headers["content-length"]) };
        // A HEAD has no body to say what is missing: the object, the bucket, or our rights. A GET has.
        try {
          await store.get(key, { ...options, range: { offset: 0, length: 1 } });
        } catch (error) {
          if (isFault(error, "OBJECT_MISSING")) return undefined;
          throw error;
        }
      }
    },

    async *list(prefix, options = {}): AsyncGenerator<ObjectEntry, void, void> {
      const { signal } = options;
      signal?.throwIfAborted();
      const lister = signal === undefined ? client : minioClient(settings, connection, signal);
      let left = options.limit ?? Infinity;
      let last = options.startAfter ?? "";
      while (left > 0) {
        const wanted = { prefix, after: last, limit: Math.min(PAGE_KEYS, left) };
        const page = await repeat(() => listPage(lister, settings, wanted), signal);
        for (const entry of page.entries) {
          if (!inOrder(last, entry.key)) throw outOfOrder(settings, last, entry.key);
          last = entry.key;
          yield entry;
          left--;
        }
        if (!page.more) return;
      }
    },

    async delete(keys, options = {}) {
      const queue = [...keys];
      const work = async (): Promise<void> => {
        for (let key = queue.pop(); key !== undefined; key = queue.pop()) {
          try {
            await ask({ method: "DELETE", key, signal: options.signal });
          } catch (error) {
            if (!isFault(error, "OBJECT_MISSING")) throw error;
          }
        }
      };
      await Promise.all(Array.from({ length: Math.min(DELETES_AT_ONCE, queue.length) }, work));
    },

    async ensureBucket() {
      const isThere = (): Promise<boolean> => repeat(() => client.bucketExists(bucket));
      if (await isThere()) return;
      try {
        await repeat(() => client.makeBucket(bucket, settings.region));
      } catch (error) {
        // Another process was faster, or the answer to our own request was lost.
        if (!isFault(error) || !(await isThere())) throw error;
      }
    },

    close: () => connection.close(),
    [Symbol.asyncDispose]: () => connection.close(),
  };
  return store;
}

function isPassing(error: unknown): boolean {
  return isFault(error, "STORE_UNAVAILABLE") || isFault(error, "STORE_THROTTLED") || isFault(error, "STORE_AMBIGUOUS");
}

function checkedKey(key: string): string {
  if (key === "" || key.startsWith("/") || key.endsWith("/")) throw new RangeError(`Object key "${key}"`);
  return key;
}

/** Whether `next` may follow `last` in a listing: strictly ascending in the order of UTF-8 bytes. */
function inOrder(last: string, next: string): boolean {
  return Buffer.compare(Buffer.from(last), Buffer.from(next)) < 0;
}

function outOfOrder(settings: S3Settings, last: string, key: string): Fault {
  return new Fault("STORE_UNSAFE", `The store lists "${key}" after "${last}", expected ascending order`, {
    details: { endpoint: settings.endpoint, bucket: settings.bucket },
    hint: "Use another store: a tail that is found by a wrong listing loses commits.",
  });
}
