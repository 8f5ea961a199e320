/** Composition root of the worker: runs workflows and activities at the recovery site, and reaches the sites through control. */
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { makeTelemetryFilterString, NativeConnection, Runtime } from "@temporalio/worker";
import { Client, WorkflowNotFoundError } from "@temporalio/client";
import { z } from "zod";
import { Fault, isFault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { ResolvedPlan } from "#model/plan/resolved-plan.ts";
import type { Peer } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import { createActivities } from "../activities/create-activities.ts";
import { createPlanActivities } from "../activities/plan-activities.ts";
import { createActionRunner } from "../adapters/actions/action-runner.ts";
import { probeReadiness } from "../adapters/actions/http-caller.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createDurableFiles } from "../adapters/file/durable-files.ts";
import { keepDialled, type KeptLink } from "../adapters/link/keep-dialled.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import { systemRandom } from "../adapters/random/system-random.ts";
import {
  controlUnreachable,
  hypervisorProxy,
  masterTargetProxy,
  processServerProxy,
  relayCall,
} from "../adapters/relay/proxy.ts";
import { createGroupWorkflows } from "../api/group-workflows.ts";
import { groupCommands } from "../api/plan/group-commands.ts";
import { ensureRetentionSchedules } from "./retention-schedule.ts";
import { keepRoleRenewed, openRoleLink, RENEW, type RoleIdentity } from "./role-link.ts";
import { setUpTemporal } from "./temporal-setup.ts";
import { startWorkers } from "./worker-fleet.ts";
import { cachedWorkflowBundle } from "./workflow-bundle.ts";

const RETRY_MS = 500;
const ORDER_MS = 15_000;
/** A service that speaks first does so within this time; one that answers, within the next. */
const GREETING_MS = 100;
const ANSWER_MS = 800;

const workerConfig = z.object({
  site: z.string().min(1),
  name: z.string().min(1).default("worker"),
  /** Sites whose queues it serves: those that groups recover to. Default: its own. */
  sites: z.array(z.string().min(1)).min(1).optional(),
  stateDir: z.string().min(1),
  identity: z.object({ certFile: z.string(), keyFile: z.string(), caFile: z.string() }),
  control: z.object({ host: z.string().min(1), port: z.int().min(1).max(65535) }),
  temporal: z.object({ address: z.string().min(1), namespace: z.string().min(1).default("default") }),
  deployment: z.object({ name: z.string(), buildId: z.string() }).optional(),
});
export type WorkerConfig = z.infer<typeof workerConfig>;

export async function run(configFile: string, stop: AbortSignal): Promise<void> {
  const config = parseWorkerConfig(configFile);
  const log = createLog({ fields: { role: "worker", site: config.site, name: config.name } });
  // The core warns of each activity that ends after its workflow did: with windows that is every day's work.
  const logging = { filter: makeTelemetryFilterString({ core: "ERROR" }), forward: {} };
  Runtime.install({ shutdownSignals: [], logger: temporalLogger(log), telemetryOptions: { logging } });
  // Beside each other: bundling may take seconds, and so may Temporal's own start.
  const [bundle, connection] = await Promise.all([
    cachedWorkflowBundle(join(config.stateDir, "bundles"), log),
    connectTemporal(config, stop, log),
  ]);
  if (connection === undefined) return;
  const control = dialControl(config, log);
  const renewal = await keepRoleRenewed(roleOf(config), {
    ask: async (request) => connected(control).call(RENEW, request),
    files: createDurableFiles({ fullHint: "Free space where the worker's identity is" }),
    log,
  });
  try {
    const client = new Client({ connection, namespace: config.temporal.namespace });
    const activities = createActivities({
      masterTarget: (site) => masterTargetProxy(relayCall(async () => connected(control), site, "master-target")),
      processServer: (site) => processServerProxy(relayCall(async () => connected(control), site, "process-server")),
      hypervisor: (site) => hypervisorProxy(relayCall(async () => connected(control), site, "master-target")),
      orders: {
        put: async (groupId, order) => {
          const params = { groupId, order: order as unknown as JsonObject }; // An order is plain JSON.
          return (await connected(control).call("orders.put", params, { timeoutMs: ORDER_MS })) as unknown as {
            readonly version: number;
            readonly delivered: boolean;
          };
        },
      },
      workflows: { isOpen: async (workflowId, runId) => await isOpen(client, workflowId, runId) },
      answers: portAnswers,
      clock: systemClock,
    });
    const planActivities = createPlanActivities({
      groups: groupCommands(createGroupWorkflows({ client, clock: systemClock, address: config.temporal.address })),
      actions: createActionRunner(join(config.stateDir, "actions")),
      probe: probeReadiness,
      resolve: async (plan) =>
        (await connected(control).call("plans.resolve", { plan }, { timeoutMs: ORDER_MS })) as unknown as ResolvedPlan,
      masterTarget: (site) => masterTargetProxy(relayCall(async () => connected(control), site, "master-target")),
      clock: systemClock,
    });
    const fleet = await startWorkers({
      connection,
      namespace: config.temporal.namespace,
      sites: config.sites ?? [config.site],
      workflowBundle: { codePath: bundle.codePath },
      activities: { ...activities, ...planActivities },
      identity: `${config.name}@${config.site}/${process.pid}`,
    });
    await ensureRetentionSchedules(client, config.sites ?? [config.site], log);
    log.info("Working", {
      sites: config.sites ?? [config.site],
      temporal: config.temporal.address,
      bundleFromCache: bundle.fromCache,
    });
    stop.addEventListener("abort", () => fleet.stop(), { once: true });
    if (stop.aborted) fleet.stop();
    await fleet.ended;
  } finally {
    await renewal.close();
    await control.close();
    await connection.close();
  }
}

/** Throws CONFIG_INVALID. */
export function parseWorkerConfig(configFile: string): WorkerConfig {
  let text: string;
  try {
    text = readFileSync(configFile, "utf8");
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot read "${configFile}"`, {
      cause,
      hint: "Give the worker's configuration with --config FILE",
    });
  }
  try {
    return workerConfig.parse(JSON.parse(text));
  } catch (cause) {
    const why = cause instanceof z.ZodError ? z.prettifyError(cause) : String(cause);
    throw new Fault("CONFIG_INVALID", `"${configFile}" is no configuration of a worker: ${why}`, {
      cause,
      hint: "See config/samples/worker.json",
    });
  }
}

/** Temporal may start after us, or come back later: tried until it answers. Undefined when we are told to stop first. */
async function connectTemporal(
  config: WorkerConfig,
  stop: AbortSignal,
  log: Log,
): Promise<NativeConnection | undefined> {
  for (let reported = false; !stop.aborted;) {
    try {
      const connection = await NativeConnection.connect({ address: config.temporal.address });
      await setUpTemporal(connection, config.temporal.namespace);
      return connection;
    } catch (error) {
      if (isFault(error)) throw error;
      if (!reported)
        log.warn("Temporal does not answer; trying again", {
          address: config.temporal.address,
          error: error instanceof Error ? error : String(error),
        });
      reported = true;
    }
    await systemClock.sleep(RETRY_MS, stop).catch((error: unknown) => {
      if (!stop.aborted) throw error;
    });
  }
  return undefined;
}

function dialControl(config: WorkerConfig, log: Log): KeptLink {
  return keepDialled(openRoleLink(roleOf(config), log), config.control, {
    expect: "control",
    handlers: {},
    clock: systemClock,
    random: systemRandom,
    log,
  });
}

function roleOf({ site, name, identity }: WorkerConfig): RoleIdentity {
  return { site, role: "worker", name, files: identity };
}

/** The link as it is now: an activity that finds none says so and is tried again, instead of waiting unseen. */
function connected(control: KeptLink): Peer {
  if (control.peer === undefined) throw controlUnreachable();
  return control.peer;
}

async function isOpen(client: Client, workflowId: string, runId: string): Promise<boolean> {
  try {
    const { status } = await client.workflow.getHandle(workflowId, runId).describe();
    return status.name === "RUNNING" || status.name === "PAUSED";
  } catch (error) {
    // Its retention has passed: it is closed for long.
    if (error instanceof WorkflowNotFoundError) return false;
    throw error;
  }
}

/**
 * Does a service say anything behind that port? A connection alone proves nothing: QEMU's user network accepts on the host's side before
 * the guest does. A service that waits for its client is asked as HTTP; whatever it answers, it answers.
 */
async function portAnswers(hostPort: number): Promise<boolean> {
  return await new Promise((resolve) => {
    const socket = connect({ host: "127.0.0.1", port: hostPort });
    const ask = setTimeout(() => socket.write("GET / HTTP/1.0\r\n\r\n"), GREETING_MS);
    const late = setTimeout(() => settle(false), ANSWER_MS);
    const settle = (answer: boolean): void => {
      clearTimeout(ask);
      clearTimeout(late);
      socket.destroy();
      resolve(answer);
    };
    socket.once("data", () => settle(true));
    socket.once("error", () => settle(false));
    socket.once("close", () => settle(false));
  });
}

function temporalLogger(log: Log) {
  return {
    log: (level: string, message: string, fields?: Record<string, unknown>) =>
      (level === "ERROR" ? log.error : level === "WARN" ? log.warn : log.debug)(message, fields),
    trace: () => undefined,
    debug: () => undefined,
    info: () => undefined,
    warn: (message: string, fields?: Record<string, unknown>) => log.warn(message, fields),
    error: (message: string, fields?: Record<string, unknown>) => log.error(message, fields),
  };
}
