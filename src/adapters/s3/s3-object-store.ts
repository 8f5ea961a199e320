/**
 * ObjectStore on an S3-compatible server.
 *
 * Invariants:
 * - `create` sends exactly one request. It is never repeated here: its outcome decides who may write a disk;
 * - reads, listings and deletions are repeated a bounded number of times, with jitter;
 * - a request that ended, however, no longer reads the caller's bytes;
 * - a listing that is not in ascending order is STORE_UNSAFE: the commit log finds its tail by LIST.
 *
 * Payloads travel unsigned over TLS and on the loopback interface (both protect them already); elsewhere they are hashed.
 */
import { hash } from "node:crypto";
import { Readable } from "node:stream";
import { Agent, type Dispatcher } from "undici";
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { ObjectEntry, ObjectStore } from "#ports/object-store.ts";
import type { Random } from "#ports/random.ts";
import { faultOfAnswer, faultOfSilence, objectMissing, type S3Call } from "./s3-errors.ts";
import { parseListing } from "./s3-listing.ts";
import { type Credentials, encodeRfc3986, signer, UNSIGNED_PAYLOAD } from "./signature.ts";

export interface S3Settings extends Credentials {
  /** http(s)://host:port */
  readonly endpoint: string;
  readonly region: string;
  readonly bucket: string;
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

interface Request {
  readonly method: "GET" | "HEAD" | "PUT" | "DELETE";
  readonly key: string;
  readonly query?: Readonly<Record<string, string>>;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: readonly Uint8Array[];
  /** Bytes that are expected back, for the time limit. */
  readonly expect?: number;
  readonly signal?: AbortSignal | undefined;
}

interface Response {
  readonly status: number;
  readonly headers: Dispatcher.ResponseData["headers"];
  readonly body: Uint8Array;
}

const READ_ATTEMPTS = 6;
const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 3_000;
const DELETES_AT_ONCE = 8;
const PAGE_KEYS = 1000;

export function s3ObjectStore(
  settings: S3Settings,
  deps: { readonly clock: Clock; readonly random: Random },
): S3ObjectStore {
  const url = parseEndpoint(settings.endpoint);
  const sign = signer(settings, settings.region);
  const trusted = url.protocol === "https:" || isLoopback(url.hostname);
  const timeoutMs = settings.timeoutMs ?? 30_000;
  const agent = new Agent({
    connections: settings.connections ?? 16,
    pipelining: 1,
    // The time limit of each request is our own; these only must not be shorter.
    headersTimeout: 600_000,
    bodyTimeout: 600_000,
    ...(settings.ca !== undefined && { connect: { ca: settings.ca } }),
  });

  const callOf = (request: Request): S3Call => ({
    method: request.method,
    key: request.key,
    bucket: settings.bucket,
    endpoint: settings.endpoint,
  });

  /** One request, one answer. Throws a Fault when there is none, the signal's reason when it aborts. */
  async function send(request: Request): Promise<Response> {
    request.signal?.throwIfAborted();
    const body = request.body ?? [];
    const size = body.reduce((sum, piece) => sum + piece.length, 0);
    const signed = sign(
      {
        method: request.method,
        host: url.host,
        path: `/${encodeRfc3986(settings.bucket)}${request.key === "" ? "" : `/${request.key.split("/").map(encodeRfc3986).join("/")}`}`,
        query: request.query ?? {},
        headers: request.headers ?? {},
        payloadSha256: trusted ? UNSIGNED_PAYLOAD : hash("sha256", Buffer.concat(body)),
      },
      deps.clock.now(),
    );
    const ending = new AbortController();
    const onAbort = (): void => ending.abort(request.signal?.reason);
    request.signal?.addEventListener("abort", onAbort, { once: true });
    let timedOut = false;
    const timer = setTimeout(
      () => {
        timedOut = true;
        ending.abort();
      },
      timeoutMs + Math.ceil((size + (request.expect ?? 0)) / 1049),
    );
    try {
      const answer = await agent.request({
        origin: url.origin,
        path: signed.path,
        method: request.method,
        headers: { ...signed.headers, ...(request.method === "PUT" && { "content-length": String(size) }) },
        body: body.length === 0 ? null : body.length === 1 ? body[0]! : Readable.from(body, { objectMode: false }),
        signal: ending.signal,
      });
      return { status: answer.statusCode, headers: answer.headers, body: await collect(answer) };
    } catch (cause) {
      request.signal?.throwIfAborted();
      throw faultOfSilence(cause, callOf(request), timedOut);
    } finally {
      clearTimeout(timer);
      request.signal?.removeEventListener("abort", onAbort);
    }
  }

  /** A request that may be repeated. Statuses in `expected` are returned, others of 300 and above become faults. */
  async function repeat(request: Request, expected: readonly number[] = []): Promise<Response> {
    for (let attempt = 1; ; attempt++) {
      let fault: unknown;
      try {
        const answer = await send(request);
        if (answer.status < 300 || expected.includes(answer.status)) return answer;
        fault = faultOf(answer, request);
      } catch (error) {
        fault = error;
      }
      if (!isPassing(fault) || attempt >= READ_ATTEMPTS) throw fault;
      const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (attempt - 1));
      await deps.clock.sleep(wait * (0.5 + deps.random.bytes(1)[0]! / 510), request.signal);
    }
  }

  function faultOf(answer: Response, request: Request): Fault {
    return faultOfAnswer({ status: answer.status, text: textOf(answer.body.subarray(0, 4096)) }, callOf(request));
  }

  const store: S3ObjectStore = {
    settings,
    async create(key, body, options = {}) {
      const pieces = body instanceof Uint8Array ? [body] : body;
      const request: Request = {
        method: "PUT",
        key: checkedKey(key),
        headers: { "if-none-match": "*" },
        body: pieces,
        signal: options.signal,
      };
      const answer = await send(request);
      if (answer.status >= 200 && answer.status < 300) return "created";
      if (answer.status === 412) return "exists";
      throw faultOf(answer, request);
    },

    async get(key, options = {}) {
      const { range } = options;
      if (range?.length === 0) {
        if ((await store.head(key, options)) === undefined) throw missing(key);
        return new Uint8Array();
      }
      const request: Request = {
        method: "GET",
        key: checkedKey(key),
        expect: range?.length ?? 0,
        ...(range && { headers: { range: `bytes=${range.offset}-${range.offset + range.length - 1}` } }),
        signal: options.signal,
      };
      const answer = await repeat(request, [416]);
      if (answer.status === 416) return new Uint8Array(); // The range begins at or past the end.
      // A server may ignore a range; it then says 200 and sends everything.
      if (range && answer.status === 200) return answer.body.subarray(range.offset, range.offset + range.length);
      return answer.body;
    },

    async head(key, options = {}) {
      for (;;) {
        const answer = await repeat({ method: "HEAD", key: checkedKey(key), signal: options.signal }, [404]);
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
      let left = options.limit ?? Infinity;
      let last = options.startAfter ?? "";
      let token: string | undefined;
      while (left > 0) {
        const answer = await repeat({
          method: "GET",
          key: "",
          query: {
            "list-type": "2",
            "encoding-type": "url",
            "max-keys": String(Math.min(PAGE_KEYS, left)),
            prefix,
            ...(token !== undefined ? { "continuation-token": token } : last !== "" && { "start-after": last }),
          },
          signal: options.signal,
        });
        const page = parseListing(textOf(answer.body), settings);
        for (const entry of page.entries) {
          if (entry.key <= last) throw outOfOrder(settings, last, entry.key);
          last = entry.key;
          yield entry;
          left--;
        }
        if (page.nextToken === undefined) return;
        token = page.nextToken;
      }
    },

    async delete(keys, options = {}) {
      const queue = [...keys];
      const work = async (): Promise<void> => {
        for (let key = queue.pop(); key !== undefined; key = queue.pop()) {
          try {
            await repeat({ method: "DELETE", key: checkedKey(key), signal: options.signal });
          } catch (error) {
            if (!isFault(error, "OBJECT_MISSING")) throw error;
          }
        }
      };
      await Promise.all(Array.from({ length: Math.min(DELETES_AT_ONCE, queue.length) }, work));
    },

    async ensureBucket() {
      const there = await repeat({ method: "HEAD", key: "" }, [404]);
      if (there.status !== 404) return;
      // 409: another process was faster.
      await repeat({ method: "PUT", key: "" }, [409]);
    },

    close: () => agent.close(),
    [Symbol.asyncDispose]: () => agent.close(),
  };
  const missing = (key: string): Fault =>
    objectMissing({ method: "GET", key, bucket: settings.bucket, endpoint: settings.endpoint });
  return store;
}

function isPassing(error: unknown): boolean {
  return isFault(error, "STORE_UNAVAILABLE") || isFault(error, "STORE_THROTTLED") || isFault(error, "STORE_AMBIGUOUS");
}

function parseEndpoint(endpoint: string): URL {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : undefined;
  if (url === undefined || (url.protocol !== "http:" && url.protocol !== "https:") || url.pathname !== "/") {
    throw new Fault("CONFIG_INVALID", `The store's endpoint is "${endpoint}", expected http(s)://host:port`);
  }
  return url;
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "[::1]" || /^127\./.test(host);
}

function checkedKey(key: string): string {
  if (key === "" || key.startsWith("/") || key.endsWith("/")) throw new RangeError(`Object key "${key}"`);
  return key;
}

/** The whole body. */
async function collect(answer: Dispatcher.ResponseData): Promise<Uint8Array> {
  const length = Number(answer.headers["content-length"]);
  const chunks: Buffer[] = [];
  let have = 0;
  for await (const chunk of answer.body as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    have += chunk.length;
  }
  // A HEAD says the length of what it does not send; undici refuses a GET that ends too early.
  if (chunks.length === 1 && have === length) return chunks[0]!;
  return Buffer.concat(chunks, have);
}

function textOf(data: Uint8Array): string {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("utf8");
}

function outOfOrder(settings: S3Settings, last: string, key: string): Fault {
  return new Fault("STORE_UNSAFE", `The store lists "${key}" after "${last}", expected ascending order`, {
    details: { endpoint: settings.endpoint, bucket: settings.bucket },
    hint: "Use another store: a tail that is found by a wrong listing loses commits.",
  });
}
