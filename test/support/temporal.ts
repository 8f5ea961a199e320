/**
 * A real Temporal server for tests, with a database of its own, on free ports of the loopback interface; and workers of ours on it.
 *
 * `stop` ends the process and deletes the folder; it is safe to call twice.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeTelemetryFilterString, NativeConnection, Runtime } from "@temporalio/worker";
import { Client } from "@temporalio/client";
import { cacheFolder, findTool } from "../../src/embedded/tools.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { setUpTemporal } from "../../src/main/temporal-setup.ts";
import { startWorkers, type Fleet } from "../../src/main/worker-fleet.ts";
import { cachedWorkflowBundle } from "../../src/main/workflow-bundle.ts";
import type { Activities } from "../../src/activities/contract.ts";

export interface TestTemporal {
  readonly address: string;
  readonly program: string;
  readonly connection: NativeConnection;
  readonly client: Client;
  readonly bundlePath: string;
  /** Workers in this process. */
  work(activities: Activities, sites: readonly string[]): Promise<Fleet>;
  stop(): Promise<void>;
}

export const bundleFolder = (): string => join(cacheFolder(), "test-bundles");

export async function startTemporal(): Promise<TestTemporal> {
  installQuietRuntime();
  const program = await findTool("temporal");
  const folder = await mkdtemp(join(tmpdir(), "leeward-temporal-"));
  const port = await freePort();
  const address = `127.0.0.1:${port}`;
  const child: ChildProcess = spawn(
    program,
    [
      "server",
      "start-dev",
      "--headless",
      "--ip",
      "127.0.0.1",
      "--port",
      String(port),
      "--http-port",
      String(await freePort()),
      "--metrics-port",
      String(await freePort()),
      "--db-filename",
      join(folder, "temporal.db"),
      "--sqlite-pragma",
      "journal_mode=WAL",
      "--sqlite-pragma",
      "synchronous=NORMAL",
      "--log-level",
      "error",
    ],
    { stdio: ["ignore", "ignore", "ignore"] },
  );
  // Whatever happens to us, it does not outlive us.
  const end = (): void => void child.kill("SIGKILL");
  process.once("exit", end);
  let connection: NativeConnection | undefined;
  let stopped = false;
  const stop = async (): Promise<void> => {
    if (stopped) return;
    stopped = true;
    await connection?.close();
    process.removeListener("exit", end);
    if (child.exitCode === null && child.signalCode === null) {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
    await rm(folder, { recursive: true, force: true });
  };
  try {
    const [bundle, opened] = await Promise.all([
      cachedWorkflowBundle(bundleFolder(), silentLog),
      connectWhenReady(address),
    ]);
    connection = opened;
    const client = new Client({ connection: opened });
    return {
      address,
      program,
      connection: opened,
      client,
      bundlePath: bundle.codePath,
      work: async (activities, sites) =>
        await startWorkers({
          connection: opened,
          namespace: "default",
          sites,
          workflowBundle: { codePath: bundle.codePath },
          activities,
          identity: "test",
        }),
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

export async function connectWhenReady(address: string): Promise<NativeConnection> {
  for (let tries = 0; ; tries += 1) {
    try {
      const connection = await NativeConnection.connect({ address });
      await setUpTemporal(connection, "default");
      return connection;
    } catch (error) {
      // Not listening yet, or its system workflows are not up yet.
      if (tries > 300) throw new Error("The Temporal server does not answer", { cause: error });
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

let installed = false;
export function installQuietRuntime(): void {
  if (installed) return;
  installed = true;
  const say = (message: string, meta?: unknown): void => {
    if (process.env["LEEWARD_TEST_LOG"] !== undefined) console.error(message, meta);
  };
  Runtime.install({
    shutdownSignals: [],
    telemetryOptions: { logging: { filter: makeTelemetryFilterString({ core: "ERROR" }), forward: {} } },
    logger: {
      log: (_level, message, meta) => say(message, meta),
      trace: () => undefined,
      debug: () => undefined,
      info: () => undefined,
      warn: say,
      error: say,
    },
  });
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { readonly port: number };
  server.close();
  await once(server, "close");
  return port;
}
