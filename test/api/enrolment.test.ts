import assert from "node:assert/strict";
import { createPublicKey } from "node:crypto";
import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Redis } from "ioredis";
import type { PeerIdentity } from "#ports/link.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { createLink } from "../../src/adapters/link/tls-link.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { fileCredentials } from "../../src/adapters/pki/identity-files.ts";
import { enrol } from "../../src/adapters/pki/enrol.ts";
import { createApiClient } from "../../src/api/client.ts";
import { startControl } from "../../src/main/control.ts";
import { rejection } from "../contract/link.contract.ts";
import { startRedis } from "../support/redis.ts";

const LOOPBACK = { host: "127.0.0.1", port: 0 };

test("control from nothing: a token buys a certificate, the certificate opens the link, status and Redis show who is there", async () => {
  const folder = await mkdtemp(join(tmpdir(), "leeward-control-"));
  const redis = await startRedis();
  const reader = new Redis(redis.url.slice("unix://".length), { lazyConnect: true });
  reader.on("error", () => undefined); // Redis is stopped on the way.
  const config = {
    site: "secondary",
    stateDir: join(folder, "control"),
    api: LOOPBACK,
    link: LOOPBACK,
    temporal: { address: "127.0.0.1:1", namespace: "default" },
    redisUrl: redis.url,
    sites: [{ name: "primary" }, { name: "secondary" }],
  };
  let control = await startControl(config, silentLog);
  try {
    const token = (await readFile(join(folder, "control", "api-token"), "utf8")).trim();
    const api = createApiClient({ url: control.apiUrl, token });
    await rejection(api.enrolmentToken({ site: "moon", role: "worker", name: "w" }), "USAGE");
    await rejection(api.enrolmentToken({ site: "primary", role: "control", name: "w" }), "USAGE");
    await rejection(api.enrolmentToken({ site: "primary", role: "agent", name: "../x" }), "USAGE");

    const identity: PeerIdentity = { site: "primary", role: "process-server", name: "ps-1" };
    const dir = join(folder, "identity");
    const issued = await api.enrolmentToken({ site: "primary", role: "process-server", name: "ps-1" });
    const options = { apiUrl: control.apiUrl, token: issued.token, ...identity, dir };
    await rejection(enrol({ ...options, caFingerprint: "00" }), "ENROLMENT_REFUSED");
    await rejection(enrol(options), "ENROLMENT_REFUSED"); // A token is good once, also when its asker backs out.

    const second = await api.enrolmentToken({ site: "primary", role: "process-server", name: "ps-1" });
    await rejection(enrol({ ...options, token: second.token, name: "ps-2" }), "ENROLMENT_REFUSED");
    const third = await api.enrolmentToken({ site: "primary", role: "process-server", name: "ps-1" });
    assert.deepEqual(await enrol({ ...options, token: third.token, caFingerprint: third.caFingerprint }), identity);
    for (const file of ["cert.pem", "key.pem", "ca.pem", "order-key.pem"]) {
      assert.equal((await stat(join(dir, file))).mode & 0o777, 0o600);
    }
    const read = (file: string): Promise<string> => readFile(join(dir, file), "utf8");
    assert.equal(createPublicKey(await read("order-key.pem")).asymmetricKeyType, "ed25519");

    const files = { certFile: join(dir, "cert.pem"), keyFile: join(dir, "key.pem"), caFile: join(dir, "ca.pem") };
    const link = createLink({
      identity,
      credentials: fileCredentials(files, silentLog),
      clock: systemClock,
      log: silentLog,
    });
    const handlers = {
      "processServer.listAgents": async () => [{ machine: "web-1", connected: true, bootId: "b", disks: [] }],
    };
    const peer = await link.dial({ host: "127.0.0.1", port: control.linkPort }, { expect: "control", handlers });
    const connected = await api.status();
    assert.deepEqual(
      connected.roles.map(({ site, role, name, connected: on }) => `${site}/${role}/${name} ${on}`),
      ["primary/agent/web-1 true", "primary/process-server/ps-1 true"],
    );
    assert.deepEqual([connected.temporal.reachable, connected.redis.reachable], [false, true]);
    assert.deepEqual(
      JSON.parse((await reader.get("leeward:role:primary/process-server/ps-1")) ?? "null").connected,
      true,
    );

    await redis.stop();
    assert.equal((await api.status()).redis.reachable, false);
    peer.close();

    // A restart keeps CA, token and the book of who was enrolled; the old certificate still opens the link.
    await control.close();
    control = await startControl(config, silentLog);
    const later = createApiClient({ url: control.apiUrl, token });
    assert.deepEqual(
      (await later.status()).roles.map(({ name, connected: on }) => `${name} ${on}`),
      ["ps-1 false"],
    );
    const again = await link.dial({ host: "127.0.0.1", port: control.linkPort }, { expect: "control", handlers });
    assert.deepEqual(
      (await later.agents()).map(({ machine, site }) => `${machine} ${site}`),
      ["web-1 primary"],
    );
    again.close();

    // Temporal is not there: says so, and what to do.
    const down = await rejection(later.groups(), "PEER_UNREACHABLE");
    assert.match(down.message, /Temporal/);
    assert.ok(down.hint);
    const wrong = createApiClient({ url: control.apiUrl, token: "wrong" });
    await rejection(wrong.status(), "CREDENTIALS_REJECTED");
    await rejection(
      createApiClient({ url: "http://127.0.0.1:9", token, patienceMs: 300 }).status(),
      "PEER_UNREACHABLE",
    );
  } finally {
    reader.disconnect();
    await control.close();
    await redis.stop();
    await rm(folder, { recursive: true, force: true });
  }
});
