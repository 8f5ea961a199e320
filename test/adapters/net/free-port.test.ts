import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { test } from "node:test";
import { freePort, isFree } from "../../../src/adapters/net/free-port.ts";

test("a picked port is free, none of those already taken, and no outgoing connection will get it", async () => {
  const [low, high] = readFileSync("/proc/sys/net/ipv4/ip_local_port_range", "utf8").split(/\s+/).map(Number);
  const taken = new Set<number>();
  for (let n = 0; n < 50; n += 1) {
    const port = await freePort(taken);
    assert.ok(!taken.has(port));
    if (low! > 21_000) assert.ok(port < low! || port > high!, `${port} is ephemeral`);
    taken.add(port);
  }
});

test("a port that somebody listens on is not free, and is again when he has gone", async () => {
  const port = await freePort();
  const server = createServer().listen(port, "127.0.0.1");
  await once(server, "listening");
  assert.equal(await isFree(port), false);
  server.close();
  await once(server, "close");
  assert.equal(await isFree(port), true);
});
