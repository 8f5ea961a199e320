/**
 * minio's Client, which signs, lists and administers; its requests travel over our own connections.
 *
 * Why a transport of ours below it: its retries print to the console and lose the server's answer, its errors lose the status, and
 * it knows neither time limits nor AbortSignal. Here every answer that is not expected becomes our Fault before minio sees it.
 *
 * Source: docs/decisions/0007-minio-signs-undici-sends.md.
 */
import { EventEmitter } from "node:events";
import { Readable } from "node:stream";
import { Client } from "minio";
import { Fault } from "#model/fault.ts";
import type { S3Connection, S3Request, S3Response } from "./s3-connection.ts";
import { faultOfAnswer } from "./s3-errors.ts";
import type { S3Settings } from "./s3-object-store.ts";

/** What minio asks of node:http. */
interface MinioRequest {
  readonly method: S3Request["method"];
  readonly protocol: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
}

/** A client for one purpose, whose requests end with `signal`. It keeps no connections. Throws CONFIG_INVALID. */
export function minioClient(settings: S3Settings, connection: S3Connection, signal?: AbortSignal): Client {
  const url = parseEndpoint(settings.endpoint);
  if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(settings.bucket)) {
    throw new Fault(
      "CONFIG_INVALID",
      `The store's bucket is "${settings.bucket}", expected 3 to 63 of a-z, 0-9, "." and "-"`,
    );
  }

  const exchange = async ({ method, protocol, path, headers }: MinioRequest, body: string): Promise<S3Response> => {
    const call = { method, key: "", bucket: settings.bucket, endpoint: settings.endpoint };
    const answer = await connection.send({
      ...call,
      url: `${protocol}//${headers["host"]!}${path}`,
      headers,
      ...(body !== "" && { body: [Buffer.from(body)] }),
      signal,
    });
    // What a HEAD did not find has no body that says more: minio makes a "no" of it.
    if (answer.status < 300) return { ...answer, body: withEncodedKeys(answer.body) };
    if (method === "HEAD" && answer.status === 404) return answer;
    throw faultOfAnswer(answer, call);
  };

  const transport = {
    request(options: MinioRequest, onResponse: (response: Readable) => void) {
      const request = new EventEmitter();
      const end = (body?: Buffer | string | null): void => {
        exchange(options, (body ?? "").toString()).then(
          ({ status, headers, body: received }) =>
            onResponse(Object.assign(Readable.from([received]), { statusCode: status, headers })),
          (error: unknown) => request.emit("error", error),
        );
      };
      return Object.assign(request, { end });
    },
  };

  try {
    const client = new Client({
      endPoint: url.hostname.replace(/^\[|\]$/g, ""),
      ...(url.port !== "" && { port: Number(url.port) }),
      useSSL: url.protocol === "https:",
      accessKey: settings.accessKey,
      secretKey: settings.secretKey,
      region: settings.region, // Given here, minio never asks the server for it.
      transport: transport as never, // It is typed as the whole of node:http and uses only this much.
      retryOptions: { disableRetry: true },
    });
    return client;
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `The store's endpoint "${settings.endpoint}" is not one that minio takes`, {
      cause,
    });
  }
}

/**
 * minio asks for percent-encoded keys and decodes whatever comes. versitygw 1.8.0 ignores that wish and says so by leaving out
 * EncodingType: there, what minio's decoder would change (`%`, `+`) and what its parser leaves alone (`&#39;`) is encoded here.
 */
function withEncodedKeys(body: Buffer): Buffer {
  const xml = body.toString();
  if (!/<ListBucketResult[\s>]/.test(xml) || /<EncodingType>url</.test(xml)) return body;
  return Buffer.from(
    xml.replace(/<Key>[^<]*<\/Key>/g, (key) =>
      key.replace(/[%+]|&#(\d+);/g, (found, code?: string) =>
        encodeURIComponent(code === undefined ? found : String.fromCodePoint(Number(code))),
      ),
    ),
  );
}

function parseEndpoint(endpoint: string): URL {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : undefined;
  if (url === undefined || (url.protocol !== "http:" && url.protocol !== "https:") || url.pathname !== "/") {
    throw new Fault("CONFIG_INVALID", `The store's endpoint is "${endpoint}", expected http(s)://host:port`);
  }
  return url;
}
