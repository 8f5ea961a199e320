import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import path from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Handlers } from "#ports/link.ts";
import { serveHypervisor, serveMasterTarget, serveProcessServer } from "../../src/adapters/relay/serve.ts";
import { createFakeSites, SOURCE, TARGET, type FakeSites } from "../support/fake-sites.ts";
import { isOpen, openGroup } from "../support/group-harness.ts";
import { startTemporal, type TestTemporal } from "../support/temporal.ts";

/** Calls after which the worker is killed: one in each part of a failover. */
const KILL_AT = ["masterTarget.fence", "hypervisor.createMachine", "hypervisor.start"];

test("kill -9 of the worker in the middle of a failover, again and again: another one goes on, and nothing is done twice", async (context) => {
  const temporal = await startTemporal();
  context.after(async () => await temporal.stop());
  const groupId = "killed";
  const sites = createFakeSites({
    groupId,
    isOpen: async (workflowId, runId) => await isOpen(temporal, workflowId, runId),
  });
  const server = await serveWorld(sites, temporal);
  context.after(() => server.close());
  const workers: ChildProcess[] = [];
  let ended = false;
  const startWorker = async (): Promise<void> => {
    const child = spawnWorker(temporal, server.url);
    workers.push(child);
    if (ended) child.kill("SIGKILL");
    await Promise.race([once(child.stdout!, "data"), once(child, "exit")]);
  };
  context.after(() => {
    ended = true;
    for (const child of workers) child.kill("SIGKILL");
  });
  await startWorker();
  const group = openGroup(temporal, groupId, sites, ["web"]);
  await group.protected();
  sites.loseSource(true);

  let kills = 0;
  const due = new Set(KILL_AT);
  server.onCall((method) => {
    if (!due.delete(method)) return;
    kills += 1;
    for (const child of workers) child.kill("SIGKILL");
    void startWorker();
  });
  await group.update("failover", { operationId: "f1", mode: "unplanned", point: "latest", sourceLost: true });
  const operation = await group.ended("f1", 120_000);
  assert.equal(operation.state, "done");
  assert.equal(kills, KILL_AT.length);
  assert.deepEqual(sites.leftovers().toSorted(), ["export f1", "machine f1-web"]);
  assert.equal(sites.world.claims.epoch, 2);
  assert.equal(sites.world.claims.activeSite, TARGET);
  assert.equal(sites.world.machines["f1-web"]?.power, "running");
  assert.equal((await group.state()).phase, "failed-over");
});

function spawnWorker(temporal: TestTemporal, world: string): ChildProcess {
  const settings = JSON.stringify({
    address: temporal.address,
    bundlePath: temporal.bundlePath,
    sites: [TARGET],
    world,
  });
  return spawn(process.execPath, [path.join(import.meta.dirname, "../support/worker-process.ts"), settings], {
    stdio: ["ignore", "pipe", "inherit"],
  });
}

/** The fake sites, asked over HTTP by workers of other processes. */
async function serveWorld(
  sites: FakeSites,
  temporal: TestTemporal,
): Promise<{ readonly url: string; close(): void; onCall(listener: (method: string) => void): void }> {
  const { dependencies } = sites;
  const handlers = (site: string): Handlers => ({
    ...(site === TARGET ? serveMasterTarget(dependencies.masterTarget(TARGET)) : {}),
    ...(site === SOURCE || site === TARGET
      ? { ...serveProcessServer(dependencies.processServer(site)), ...serveHypervisor(dependencies.hypervisor(site)) }
      : {}),
    "orders.put": async (params) =>
      (await dependencies.orders.put("", params["order"] as never)) as unknown as JsonValue,
    "workflows.isOpen": async (params) =>
      await isOpen(temporal, params["workflowId"] as string, params["runId"] as string),
  });
  let heard: (method: string) => void = () => undefined;
  const server = createServer((request, response) => {
    const answer = async (): Promise<string> => {
      let text = "";
      for await (const piece of request) text += String(piece);
      const { site, method, params } = JSON.parse(text) as {
        readonly site: string;
        readonly method: string;
        readonly params: JsonObject;
      };
      try {
        const result = await handlers(site)[method]!(params, undefined as never);
        return JSON.stringify({ result: result ?? null });
      } catch (error) {
        if (!isFault(error)) throw error;
        return JSON.stringify({ fault: error });
      } finally {
        // After it acted and before its answer leaves: the worst moment.
        heard(method);
      }
    };
    answer().then(
      (text) => response.end(text),
      (error: unknown) => {
        console.error(error);
        response.destroy();
      },
    );
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { readonly port: number };
  return {
    url: `http://127.0.0.1:${port}/`,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
    onCall: (listener) => {
      heard = listener;
    },
  };
}
