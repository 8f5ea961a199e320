import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders } from "node:http";
import { createServer as createTcp } from "node:net";
import type { AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";
import { isFault } from "#model/fault.ts";
import type { HttpCall } from "#model/plan/recovery-plan.ts";
import { callHttp, probeReadiness } from "../../../src/adapters/actions/http-caller.ts";

const quiet = new AbortController().signal;

async function serve(t: TestContext) {
  const heard: { method: string; url: string; headers: IncomingHttpHeaders; body: string }[] = [];
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (piece) => (body += String(piece)));
    request.on("end", () => {
      heard.push({ method: request.method ?? "", url: request.url ?? "", headers: request.headers, body });
      const status = Number(request.url?.slice(1)) || 200;
      if (request.url === "/never") return;
      response
        .writeHead(status, status === 302 ? { location: "/204" } : {})
        .end(request.url === "/long" ? "x".repeat(1 << 20) : `said ${status}`);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => (server.closeAllConnections(), server.close()));
  return { heard, port: (server.address() as AddressInfo).port };
}

test("a call carries the context and the id of its attempt; another status, a redirect, silence and nobody are faults", async (t) => {
  const { heard, port } = await serve(t);
  const call = (path: string, more: Partial<HttpCall> = {}): HttpCall => ({
    do: "http",
    method: "POST",
    url: `http://127.0.0.1:${port}${path}`,
    headers: { "x-team": "ops" },
    expect: [],
    timeoutMs: 2_000,
    ...more,
  });
  const ask = (asked: HttpCall) => callHttp({ id: "r/s#1", call: asked, context: { plan: "shop" } }, quiet);
  assert.deepEqual(await ask(call("/201")), { outcome: "status 201", output: "said 201" });
  assert.deepEqual(
    [heard[0]?.headers["idempotency-key"], heard[0]?.headers["x-team"], heard[0]?.body],
    ["r/s#1", "ops", '{"plan":"shop"}'],
  );
  await ask(call("/200", { method: "GET" }));
  assert.equal(heard[1]?.body, "");
  assert.equal((await ask(call("/404", { expect: [404] }))).outcome, "status 404");
  assert.equal((await ask(call("/long"))).output.length, 4_096);
  const fails = async (asked: HttpCall, words: RegExp) =>
    await assert.rejects(
      ask(asked),
      (error) => isFault(error, "ACTION_FAILED") && words.test(`${error.message} ${error.hint ?? ""}`),
    );
  await fails(call("/500"), /answered 500, expected 200 to 299 It said: said 500/);
  await fails(call("/302"), /answered 302/);
  await fails(call("/200", { expect: [201, 202] }), /expected 201 or 202/);
  await fails(call("/never", { timeoutMs: 300 }), /was not answered/);
  await fails(call("/", { url: "http://127.0.0.1:1/" }), /was not answered/);
});

test("a port is ready when it answers as it should; one that hangs up at once, as a forward without a guest does, is not", async (t) => {
  const { port } = await serve(t);
  assert.equal((await probeReadiness({ check: "http", hostPort: port, path: "/200", status: 200 })).holds, true);
  const wrong = await probeReadiness({ check: "http", hostPort: port, path: "/503", status: 200 });
  assert.deepEqual([wrong.holds, wrong.detail], [false, "status 503: said 503"]);
  assert.equal((await probeReadiness({ check: "tcp", hostPort: port })).holds, true);
  const closing = createTcp((socket) => socket.destroy());
  closing.listen(0, "127.0.0.1");
  await once(closing, "listening");
  t.after(() => closing.close());
  const { holds } = await probeReadiness({ check: "tcp", hostPort: (closing.address() as AddressInfo).port });
  assert.equal(holds, false);
  assert.equal((await probeReadiness({ check: "tcp", hostPort: 1 })).holds, false);
});
