import assert from "node:assert/strict";
import { subscribe } from "node:diagnostics_channel";
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import { test } from "node:test";
import { inspect } from "node:util";
import type { Clock } from "#ports/clock.ts";
import { systemRandom } from "../../../src/adapters/random/system-random.ts";
import { s3ObjectStore, type S3ObjectStore, type S3Settings } from "../../../src/adapters/s3/s3-object-store.ts";
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
  const settings = { endpoint, region: "us-east-1", bucket: "bucket", accessKey: "a", secretKey: "s", ...more };
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
  const settings = { endpoint: "http://127.0.0.1:9", region: "r", bucket: "bucket", accessKey: "a", secretKey: "s" };
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
  const settings = { endpoint: "store:9000", region: "r", bucket: "bucket", accessKey: "a", secretKey: "s" };
  assert.throws(() => s3ObjectStore(settings, { clock, random: systemRandom }), { code: "CONFIG_INVALID" });
});

test("A clock that is far behind is told apart from a lack of rights", async () => {
  const server = await startVersitygw();
  const late: Clock = { ...clock, now: () => Date.now() - 2 * 3_600_000 };
  await using store = s3ObjectStore({ ...server, bucket: "clocks" }, { clock: late, random: systemRandom });
  try {
    await store.ensureBucket();
    await assert.rejects(store.create("k", BODY), (error: { code?: string; hint?: string }) => {
      assert.equal(error.code, "STORE_DENIED", String(error));
      assert.match(error.hint!, /clock/);
      return true;
    });
  } finally {
    await server.stop();
  }
});

test("Two that create the bucket at once both have it", async () => {
  const server = await startVersitygw();
  try {
    const stores = Array.from({ length: 4 }, () =>
      s3ObjectStore({ ...server, bucket: "raced" }, { clock, random: systemRandom }),
    );
    await Promise.all(stores.map((store) => store.ensureBucket()));
    assert.equal(await stores[0]!.create("k", BODY), "created");
    await Promise.all(stores.map((store) => store.close()));
  } finally {
    await server.stop();
  }
});

test("A bucket's name that S3 does not allow is CONFIG_INVALID", () => {
  const settings = { endpoint: "http://127.0.0.1:9", region: "r", bucket: "b", accessKey: "a", secretKey: "s" };
  assert.throws(() => s3ObjectStore(settings, { clock, random: systemRandom }), { code: "CONFIG_INVALID" });
});

test("No fault and none of its causes carries a signature or the secret", () =>
  against(
    (request) => request.socket.destroy(),
    async (store) => {
      for (const call of [
        () => store.create("k", BODY),
        () => store.get("k"),
        () => store.list("")[Symbol.asyncIterator]().next(),
      ]) {
        const error = await call().then(
          () => assert.fail("answered"),
          (caught: unknown) => caught,
        );
        assert.doesNotMatch(inspect(error, { depth: 20, showHidden: true }), /X-Amz-Signature|Signature=|the-secret/);
      }
    },
    { secretKey: "the-secret" },
  ));

test("One connection serves request after request", async () => {
  const server = await startVersitygw();
  await using store = s3ObjectStore({ ...server, bucket: "kept", connections: 1 }, { clock, random: systemRandom });
  try {
    await store.ensureBucket();
    await store.create("k", Buffer.alloc(1 << 20, "kept alive "));
    const opened = new Set<unknown>();
    subscribe("undici:client:connected", (message) => void opened.add(message));
    for (let round = 0; round < 50; round++)
      assert.equal((await store.get("k", { range: { offset: round * 4096, length: 4096 } })).length, 4096);
    assert.equal(opened.size, 0);
  } finally {
    await server.stop();
  }
});
