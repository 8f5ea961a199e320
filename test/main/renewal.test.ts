import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { freePort } from "../../src/adapters/net/free-port.ts";
import { enrol } from "../../src/adapters/pki/enrol.ts";
import { createApiClient } from "../../src/api/client.ts";
import { run as runAgent } from "../../src/main/agent.ts";
import { startControl } from "../../src/main/control.ts";
import { run as runProcessServer } from "../../src/main/process-server.ts";
import { startRedis } from "../support/redis.ts";

const HOST = "127.0.0.1";
const LIFE_SECONDS = 9;

test(
  "roles renew through control, agents through their process server; a role that slept too long is named, and enrolled again while it runs",
  { timeout: 180_000 },
  async () => {
    const folder = await mkdtemp(join(tmpdir(), "leeward-renewal-"));
    const redis = await startRedis();
    const processServer = { host: HOST, port: await freePort() };
    const control = await startControl(
      {
        site: "secondary",
        stateDir: join(folder, "control"),
        api: { host: HOST, port: 0 },
        link: { host: HOST, port: 0 },
        temporal: { address: `${HOST}:1`, namespace: "default" },
        redisUrl: redis.url,
        sites: [{ name: "primary" }, { name: "secondary" }],
        certificateDays: LIFE_SECONDS / 86_400,
      },
      silentLog,
    );
    const api = createApiClient({
      url: control.apiUrl,
      token: (await readFile(join(folder, "control", "api-token"), "utf8")).trim(),
    });
    const stops: AbortController[] = [];
    const running: Promise<void>[] = [];

    const dirOf = (role: string): string => join(folder, role, "identity");
    const enrolled = async (role: "agent" | "process-server", name: string): Promise<void> => {
      const { token, caFingerprint } = await api.enrolmentToken({ site: "primary", role, name });
      await enrol({ apiUrl: control.apiUrl, token, caFingerprint, site: "primary", role, name, dir: dirOf(role) });
    };
    const start = async (
      role: "agent" | "process-server",
      name: string,
      more: object,
    ): Promise<{ end(): Promise<void> }> => {
      const file = join(folder, role, "config.json");
      const dir = dirOf(role);
      const identity = { certFile: join(dir, "cert.pem"), keyFile: join(dir, "key.pem"), caFile: join(dir, "ca.pem") };
      await writeFile(file, JSON.stringify({ site: "primary", name, stateDir: join(folder, role), identity, ...more }));
      const stop = new AbortController();
      const ended = (role === "agent" ? runAgent : runProcessServer)(file, stop.signal);
      stops.push(stop);
      running.push(ended);
      return {
        async end() {
          stop.abort();
          await ended;
        },
      };
    };
    const startProcessServer = () =>
      start("process-server", "ps-1", {
        control: { host: HOST, port: control.linkPort },
        listen: processServer,
        spoolBytesMax: 1 << 20,
        orderKeyFile: join(dirOf("process-server"), "order-key.pem"),
      });
    const numberOf = async (role: string): Promise<string> =>
      new X509Certificate(await readFile(join(dirOf(role), "cert.pem"))).serialNumber;
    const roleOf = async (role: string) => (await api.status()).roles.find((one) => one.role === role);
    const expiring = async () =>
      (await api.status()).problems.filter(({ code }) => code === "CERTIFICATE_EXPIRING").map(({ message }) => message);
    const until = async (what: string, holds: () => Promise<boolean>): Promise<void> => {
      const giveUpAt = performance.now() + 60_000;
      while (!(await holds())) {
        assert.ok(performance.now() < giveUpAt, what);
        await sleep(100);
      }
    };

    try {
      await enrolled("process-server", "ps-1");
      await enrolled("agent", "web-1");
      const first = await startProcessServer();
      await start("agent", "web-1", { processServers: [processServer] });
      await until("both are connected", async () => (await roleOf("agent"))?.connected === true);
      const before = await roleOf("process-server");

      const seen = { agent: new Set<string>(), "process-server": new Set<string>() };
      await until("both have their third certificate", async () => {
        for (const role of ["agent", "process-server"] as const) seen[role].add(await numberOf(role));
        return seen.agent.size >= 3 && seen["process-server"].size >= 3;
      });
      const after = await roleOf("process-server");
      assert.equal(after?.connectedAt, before?.connectedAt, "no link was lost for it");
      assert.ok(Date.parse(after?.certificateUntil ?? "") > Date.parse(before?.certificateUntil ?? ""));
      assert.equal((await roleOf("agent"))?.connected, true);
      assert.deepEqual(await expiring(), []);

      // The site's process server is switched off for longer than its certificate lives, and the agent has no way to control.
      await first.end();
      await until("both are named", async () => (await expiring()).length === 2);
      await until("both have expired", async () => (await expiring()).every((message) => /expired at/.test(message)));
      assert.match((await expiring()).join("\n"), /process-server "ps-1" of site "primary"/);
      await startProcessServer();
      await sleep(2_000);
      assert.equal((await roleOf("process-server"))?.connected, false, "an expired certificate opens nothing");

      // A person takes new tokens there: what runs goes on with them.
      await enrolled("process-server", "ps-1");
      await enrolled("agent", "web-1");
      await until("both are back", async () => (await roleOf("agent"))?.connected === true);
      assert.deepEqual(await expiring(), []);
    } finally {
      for (const stop of stops) stop.abort();
      await Promise.allSettled(running);
      await control.close();
      await redis.stop();
      await rm(folder, { recursive: true, force: true });
    }
  },
);
