import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { Fault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Handlers } from "#ports/link.ts";
import { serveHypervisor, serveMasterTarget, serveProcessServer } from "../../src/adapters/relay/serve.ts";
import { parseWorkerConfig } from "../../src/main/worker.ts";
import { createTestAuthority } from "../support/credentials.ts";
import { createFakeSites, SOURCE, TARGET, type FakeSites } from "../support/fake-sites.ts";
import { openGroup } from "../support/group-harness.ts";
import { startTemporal } from "../support/temporal.ts";

test("the worker's own process protects and fails over through control's link, and stops when told", async (context) => {
  const temporal = await startTemporal();
  context.after(async () => await temporal.stop());
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-worker-"));
  context.after(async () => await rm(folder, { recursive: true, force: true }));
  const authority = await createTestAuthority();
  const sites = createFakeSites({ groupId: "web" });
  const control = await authority.link("secondary", "control", "control");
  const listener = await control.listen({ host: "127.0.0.1", port: 0 }, () => controlHandlers(sites));
  context.after(async () => await listener.close());

  const { cert, key, ca } = await authority.credentials({ site: TARGET, role: "worker", name: "worker" });
  const identity = {
    certFile: path.join(folder, "cert.pem"),
    keyFile: path.join(folder, "key.pem"),
    caFile: path.join(folder, "ca.pem"),
  };
  await Promise.all([
    writeFile(identity.certFile, cert),
    writeFile(identity.keyFile, key),
    writeFile(identity.caFile, ca),
  ]);
  const config = path.join(folder, "worker.json");
  const { host, port } = listener.address;
  await writeFile(
    config,
    JSON.stringify({
      site: TARGET,
      name: "worker",
      stateDir: folder,
      identity,
      control: { host, port },
      temporal: { address: temporal.address, namespace: "default" },
    }),
  );

  const first = startWorker(config);
  context.after(() => void first.child.kill("SIGKILL"));
  context.diagnostic(`first start, with bundling: ${Math.round(await first.working)} ms`);
  const group = openGroup(temporal, "web", sites, ["web"]);
  await group.protected();
  first.child.kill("SIGTERM");
  const asked = performance.now();
  const [code] = (await once(first.child, "exit")) as [number | null];
  context.diagnostic(`stopped after ${Math.round(performance.now() - asked)} ms`);
  assert.equal(code, 130, first.log());

  const second = startWorker(config);
  context.after(() => void second.child.kill("SIGKILL"));
  context.diagnostic(`second start: ${Math.round(await second.working)} ms`);
  sites.loseSource(true);
  await group.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  // Nothing answers behind the fake machine's port: it runs, and that is said.
  const operation = await group.ended("f1");
  assert.equal(operation.state, "done", JSON.stringify(operation));
  assert.deepEqual((await group.state()).conditions, ["NotAnswering"]);
  const steps = operation.steps.map((step) => `${step.name} ${(step.endedAtMs ?? 0) - (step.startedAtMs ?? 0)} ms`);
  context.diagnostic(steps.join(", "));
});

test("a configuration that is none is a coded fault", async (context) => {
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-worker-"));
  context.after(async () => await rm(folder, { recursive: true, force: true }));
  assert.throws(() => parseWorkerConfig(path.join(folder, "missing.json")), { code: "CONFIG_INVALID" });
  await writeFile(path.join(folder, "bad.json"), JSON.stringify({ site: "x" }));
  assert.throws(() => parseWorkerConfig(path.join(folder, "bad.json")), /temporal/);
});

function startWorker(config: string): {
  readonly child: ChildProcess;
  readonly working: Promise<number>;
  log(): string;
} {
  const begun = performance.now();
  const program = path.join(import.meta.dirname, "../../src/main/leeward.ts");
  const child = spawn(process.execPath, [program, "worker", "--config", config], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let log = "";
  const working = new Promise<number>((resolve, reject) => {
    child.stderr!.on("data", (data: Buffer) => {
      log += data.toString();
      if (log.includes('"msg":"Working"')) resolve(performance.now() - begun);
    });
    child.once("exit", () => reject(new Error(`The worker ended: ${log}`)));
  });
  return { child, working, log: () => log };
}

/** What control does for a worker, with the fake sites as its peers. */
function controlHandlers(sites: FakeSites): Handlers {
  const { dependencies } = sites;
  const served = (site: string): Handlers => ({
    ...(site === TARGET ? serveMasterTarget(dependencies.masterTarget(TARGET)) : {}),
    ...serveProcessServer(dependencies.processServer(site === TARGET ? TARGET : SOURCE)),
    ...serveHypervisor(dependencies.hypervisor(site)),
  });
  return {
    relay: async (params, context) => {
      const { site, method } = params as { readonly site: string; readonly method: string };
      const handler = served(site)[method];
      if (handler === undefined) throw new Fault("PEER_UNREACHABLE", `Nobody serves "${method}" at "${site}"`);
      return await handler(params["params"] as JsonObject, context);
    },
    "orders.put": async (params) =>
      (await dependencies.orders.put("web", params["order"] as never)) as unknown as JsonValue,
  };
}
