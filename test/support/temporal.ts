/**
 * A real Temporal server for tests, with a database of its own, on free ports of the loopback interface; and workers of ours on it.
 *
 * `stop` ends the process and deletes the folder; it is safe to call twice.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeTelemetryFilterString, NativeConnection, Runtime } from "@temporalio/worker";
import { Client } from "@temporalio/client";
import { freePort } from "../../src/adapters/net/free-port.ts";
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
  let server: Server | undefined;
  let connection: NativeConnection | undefined;
  let stopped = false;
  const stop = async (): Promise<void> => {
    if (stopped) return;
    stopped = true;
    await connection?.close();
    await server?.kill();
    await rm(folder, { recursive: true, force: true });
  };
  try {
    const bundling = cachedWorkflowBundle(bundleFolder(), silentLog);
    // A free port may be taken by somebody else before the server has it: then it ends at once, and gets others.
    for (let tries = 1; connection === undefined; tries += 1) {
      server = await spawnServer(program, join(folder, `temporal-${tries}.db`));
      try {
        connection = await connectWhenReady(server);
      } catch (error) {
        await server.kill();
        if (tries === 3) throw error;
      }
    }
    const { codePath } = await bundling;
    const opened = connection;
    return {
      address: server!.address,
      program,
      connection: opened,
      client: new Client({ connection: opened }),
      bundlePath: codePath,
      work: async (activities, sites) =>
        await startWorkers({
          connection: opened,
          namespace: "default",
          sites,
          workflowBundle: { codePath },
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

interface Server {
  readonly address: string;
  readonly ended: () => boolean;
  kill(): Promise<void>;
}

async function spawnServer(program: string, database: string): Promise<Server> {
  const [port, httpPort, metricsPort] = [await freePort(), await freePort(), await freePort()];
  const ports = ["--port", `${port}`, "--http-port", `${httpPort}`, "--metrics-port", `${metricsPort}`];
  const pragmas = ["--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"];
  const child: ChildProcess = spawn(
    program,
    [
      "server",
      "start-dev",
      "--headless",
      "--ip",
      "127.0.0.1",
      ...ports,
      "--db-filename",
      database,
      ...pragmas,
      "--log-level",
      "error",
    ],
    { stdio: "ignore" },
  );
  const ended = (): boolean => child.exitCode !== null || child.signalCode !== null;
  // Whatever happens to us, it does not outlive us.
  const end = (): void => void child.kill("SIGKILL");
  process.once("exit", end);
  return {
    address: `127.0.0.1:${port}`,
    ended,
    kill: async () => {
      process.removeListener("exit", end);
      if (ended()) return;
      child.kill("SIGKILL");
      await once(child, "exit");
    },
  };
}

async function connectWhenReady(server: Server): Promise<NativeConnection> {
  for (let tries = 0; ; tries += 1) {
    try {
      const connection = await NativeConnection.connect({ address: server.address });
      await setUpTemporal(connection, "default");
      return connection;
    } catch (error) {
      // Not listening yet, or its system workflows are not up yet.
      if (tries > 600 || server.ended()) throw new Error("The Temporal server does not answer", { cause: error });
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
