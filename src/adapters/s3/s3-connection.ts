/**
 * Requests to an S3 server over kept-alive connections: one request, one answer, or a Fault. Nothing is repeated here.
 *
 * Invariants:
 * - a request that ended, however, no longer reads the caller's bytes;
 * - a body is received into one buffer of its announced length, and one that ends too early is no answer;
 * - a signed URL never leaves this folder: no Fault and no log line carries it.
 */
import { Readable } from "node:stream";
import { Agent, type Dispatcher } from "undici";
import { faultOfSilence, type S3Call } from "./s3-errors.ts";

export interface S3Request extends S3Call {
  readonly method: "GET" | "HEAD" | "PUT" | "DELETE";
  /** Signed, absolute, percent-encoded. */
  readonly url: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: readonly Uint8Array[];
  /** Bytes that are expected back, for the time limit. */
  readonly expect?: number;
  readonly signal?: AbortSignal | undefined;
}

export interface S3Response {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Buffer;
}

export interface S3Connection {
  /** Throws a Fault when there is no answer, the signal's reason when it aborts. */
  send(request: S3Request): Promise<S3Response>;
  close(): Promise<void>;
}

const NO_BYTES = Buffer.alloc(0);

/** `timeoutMs`: longest wait for a request without regard to its size; a second is added for each MiB. */
export function s3Connection(options: {
  readonly connections: number;
  readonly timeoutMs: number;
  readonly ca?: string | undefined;
}): S3Connection {
  const agent = new Agent({
    connections: options.connections,
    pipelining: 1,
    // The time limit of each request is our own; these only must not be shorter.
    headersTimeout: 600_000,
    bodyTimeout: 600_000,
    ...(options.ca !== undefined && { connect: { ca: options.ca } }),
  });

  return {
    async send(request) {
      const { signal } = request;
      signal?.throwIfAborted();
      const body = request.body ?? [];
      const size = body.reduce((sum, piece) => sum + piece.length, 0);
      const answer = receiver(request.method);
      const onAbort = (): void => answer.abort();
      signal?.addEventListener("abort", onAbort, { once: true });
      let timedOut = false;
      const timer = setTimeout(
        () => {
          timedOut = true;
          answer.abort();
        },
        options.timeoutMs + Math.ceil((size + (request.expect ?? 0)) / 1049),
      );
      try {
        const pathAt = request.url.indexOf("/", request.url.indexOf("//") + 2);
        agent.dispatch(
          {
            origin: request.url.slice(0, pathAt),
            path: request.url.slice(pathAt),
            method: request.method,
            headers: { ...request.headers, ...(request.method === "PUT" && { "content-length": String(size) }) },
            body: body.length === 0 ? null : body.length === 1 ? body[0]! : Readable.from(body, { objectMode: false }),
          },
          answer.handler,
        );
        return await answer.done;
      } catch (cause) {
        signal?.throwIfAborted();
        throw faultOfSilence(cause, request, timedOut);
      } finally {
        clearTimeout(timer);
        signal?.removeEventListener("abort", onAbort);
      }
    },
    close: () => agent.close(),
  };
}

/** Collects one answer. `abort` may come before the request has a socket. */
function receiver(method: string): {
  readonly handler: Dispatcher.DispatchHandler;
  readonly done: Promise<S3Response>;
  abort(): void;
} {
  const { promise, resolve, reject } = Promise.withResolvers<S3Response>();
  let controller: Dispatcher.DispatchController | undefined;
  let aborted = false;
  let status = 0;
  let headers: S3Response["headers"] = {};
  let announced: number | undefined;
  let body = NO_BYTES;
  let have = 0;

  const handler: Dispatcher.DispatchHandler = {
    onRequestStart(started) {
      controller = started;
      if (aborted) controller.abort(new Error("aborted"));
    },
    onResponseStart(_, code, received) {
      status = code;
      headers = received;
      const length = received["content-length"];
      announced = typeof length === "string" ? Number(length) : undefined;
    },
    onResponseData(_, chunk) {
      if (body.length < have + chunk.length) {
        const wider = Buffer.allocUnsafeSlow(Math.max(announced ?? 0, 2 * body.length, have + chunk.length));
        body.copy(wider, 0, 0, have);
        body = wider;
      }
      chunk.copy(body, have);
      have += chunk.length;
    },
    onResponseEnd() {
      // A HEAD says the length of what it does not send.
      if (method !== "HEAD" && announced !== undefined && have !== announced)
        reject(new Error(`${have} bytes of ${announced}`));
      else resolve({ status, headers, body: body.subarray(0, have) });
    },
    onResponseError: (_, error) => reject(error),
  };
  return {
    handler,
    done: promise,
    abort() {
      aborted = true;
      controller?.abort(new Error("aborted"));
    },
  };
}
