import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import { test } from "node:test";
import type { Clock } from "#ports/clock.ts";
import { systemRandom } from "../../../src/adapters/random/system-random.ts";
import { s3ObjectStore, type S3ObjectStore, type S3Settings } from "../../../src/adapters/s3/s3-object-store.ts";
import { signer } from "../../../src/adapters/s3/signature.ts";
import { startVersitygw } from "../../support/versitygw.ts";

const clock: Clock = { now: () => Date.now(), monotonic: () => performance.now(), sleep: () => Promise.resolve() };
const BODY = Buffer.from("not zeroes");

/** A store in front of a server that answers as told; `requests` counts what it was asked. */
async function against(
  answer: RequestListener,
  use: (store: S3ObjectStore, requests: () => number) => Promise<void>,
  more: Partial<S3Settings> = {},
): Promise<void> {
  let count = 0;
  const server = createServer((request, response) => {
    count++;
    request.resume();
    answer(request, response);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  const endpoint = `http://127.0.0.1:${address.port}`;
  const settings = { endpoint, region: "us-east-1", bucket: "b", accessKey: "a", secretKey: "s", ...more };
  await using store = s3ObjectStore(settings, { clock, random: systemRandom });
  try {
    await use(store, () => count);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

function answering(status: number, code = "", message = ""): RequestListener {
  return (_request, response) => {
    response
      .writeHead(status)
      .end(code === "" ? "" : `<?xml version="1.0"?><Error><Code>${code}</Code><Message>${message}</Message></Error>`);
  };
}

const creates: readonly [number, string, string, string][] = [
  [409, "ConditionalRequestConflict", "", "STORE_AMBIGUOUS"],
  [500, "InternalError", "", "STORE_AMBIGUOUS"],
  [502, "", "", "STORE_AMBIGUOUS"],
  [503, "ServiceUnavailable", "", "STORE_AMBIGUOUS"],
  [503, "SlowDown", "", "STORE_THROTTLED"],
  [429, "", "", "STORE_THROTTLED"],
  [403, "AccessDenied", "", "STORE_DENIED"],
  [403, "RequestTimeTooSkewed", "", "STORE_DENIED"],
  [404, "NoSuchBucket", "", "STORE_INVALID"],
  [507, "", "", "DISK_FULL"],
  [500, "InternalError", "write: no space left on device", "DISK_FULL"],
  [501, "NotImplemented", "", "STORE_UNSAFE"],
  [400, "InvalidRequest", "", "STORE_INVALID"],
];

for (const [status, code, message, fault] of creates) {
  test(`A create answered with ${status} ${code} ${message} is ${fault}, and was sent once`, () =>
    against(answering(status, code, message), async (store, requests) => {
      await assert.rejects(store.create("k", BODY), (error: { code?: string; hint?: string }) => {
        assert.equal(error.code, fault);
        assert.ok(fault === "STORE_INVALID" || error.hint);
        return true;
      });
      assert.equal(requests(), 1);
    }));
}

test("A create whose connection is cut is ambiguous, and was sent once", () =>
  against(
    (request) => request.socket.destroy(),
    async (store, requests) => {
      await assert.rejects(store.create("k", BODY), { code: "STORE_AMBIGUOUS" });
      assert.equal(requests(), 1);
    },
  ));

test("A create that takes too long is ambiguous", () =>
  against(
    () => undefined,
    async (store) => {
      await assert.rejects(store.create("k", BODY), { code: "STORE_AMBIGUOUS" });
    },
    { timeoutMs: 50 },
  ));

test("A read is tried again a bounded number of times, then the store is unavailable", () =>
  against(answering(500, "InternalError"), async (store, requests) => {
    await assert.rejects(store.get("k"), { code: "STORE_UNAVAILABLE" });
    assert.ok(requests() > 2 && requests() < 12);
  }));

test("A read succeeds once the store has recovered", () => {
  let calls = 0;
  return against(
    (_request, response) => void (++calls < 3 ? response.writeHead(503).end() : response.end(BODY)),
    async (store) => {
      assert.deepEqual(Buffer.from(await store.get("k")), BODY);
    },
  );
});

test("A body that ends too early is not taken for the object", () =>
  against(
    (_request, response) => {
      response.writeHead(200, { "content-length": "1000" });
      response.write("only this");
      setTimeout(() => response.destroy(), 10);
    },
    async (store) => {
      await assert.rejects(store.get("k"), { code: "STORE_UNAVAILABLE" });
    },
  ));

test("A server that ignores ranges is read nevertheless", () =>
  against(
    (_request, response) => void response.end("0123456789"),
    async (store) => {
      const part = await store.get("k", { range: { offset: 3, length: 4 } });
      assert.equal(Buffer.from(part).toString(), "3456");
    },
  ));

test("A listing out of order is STORE_UNSAFE, one that is no listing STORE_UNAVAILABLE", async () => {
  const contents = ["b", "a"].map((key) => `<Contents><Key>${key}</Key><Size>1</Size></Contents>`).join("");
  const listing = `<ListBucketResult xmlns="x"><IsTruncated>false</IsTruncated>${contents}</ListBucketResult>`;
  const drain = async (store: S3ObjectStore): Promise<void> => {
    for await (const entry of store.list("")) assert.ok(entry.key);
  };
  await against(
    (_request, response) => void response.end(listing),
    (store) => assert.rejects(drain(store), { code: "STORE_UNSAFE" }),
  );
  await against(
    (_request, response) => void response.end("<html>Welcome</html>"),
    (store) => assert.rejects(drain(store), { code: "STORE_UNAVAILABLE" }),
  );
});

test("Nobody listening: create is ambiguous, get is unavailable, both say where", async () => {
  const settings = { endpoint: "http://127.0.0.1:9", region: "r", bucket: "b", accessKey: "a", secretKey: "s" };
  await using store = s3ObjectStore(settings, { clock, random: systemRandom });
  await assert.rejects(store.create("k", BODY), { code: "STORE_AMBIGUOUS" });
  await assert.rejects(store.get("k"), { code: "STORE_UNAVAILABLE" });
});

test("A real server refuses wrong credentials and a missing bucket, each with its remedy", async () => {
  const server = await startVersitygw();
  try {
    for (const wrong of [{ secretKey: "wrong" }, { accessKey: "nobody" }]) {
      await using store = s3ObjectStore({ ...server, bucket: "wrong-keys", ...wrong }, { clock, random: systemRandom });
      await assert.rejects(store.create("k", BODY), { code: "STORE_DENIED" });
      await assert.rejects(
        store.get("k"),
        (error: { code?: string; hint?: string }) => error.code === "STORE_DENIED" && !!error.hint,
      );
    }
    await using store = s3ObjectStore({ ...server, bucket: "not-there" }, { clock, random: systemRandom });
    await assert.rejects(store.create("k", BODY), { code: "STORE_INVALID" });
    await assert.rejects(store.head("k"), { code: "STORE_INVALID" });
    await store.ensureBucket();
    await store.ensureBucket();
    assert.equal(await store.create("k", BODY), "created");
    await server.kill();
    await assert.rejects(store.create("k2", BODY), { code: "STORE_AMBIGUOUS" });
    await server.restart();
    assert.deepEqual(Buffer.from(await store.get("k")), BODY);
    assert.equal(await store.create("k2", BODY), "created");
  } finally {
    await server.stop();
  }
});

test("An endpoint that is no address is CONFIG_INVALID", () => {
  const settings = { endpoint: "store:9000", region: "r", bucket: "b", accessKey: "a", secretKey: "s" };
  assert.throws(() => s3ObjectStore(settings, { clock, random: systemRandom }), { code: "CONFIG_INVALID" });
});

test("Signatures are those of Amazon's published example", () => {
  const sign = signer(
    { accessKey: "AKIAIOSFODNN7EXAMPLE", secretKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" },
    "us-east-1",
  );
  const signed = sign(
    {
      method: "GET",
      host: "examplebucket.s3.amazonaws.com",
      path: "/test.txt",
      query: {},
      headers: { range: "bytes=0-9" },
      payloadSha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    },
    Date.UTC(2013, 4, 24),
  );
  assert.match(
    signed.headers["authorization"]!,
    /Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41$/,
  );
});
