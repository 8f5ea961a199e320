/**
 * Workers in a process of their own, so that a test can kill them: argv is one JSON with `address`, `bundlePath`, `sites` and `world`, the
 * URL of the test's HTTP server that answers for the fake sites. Prints "ready" when it polls.
 */
import { NativeConnection } from "@temporalio/worker";
import { faultFromJson } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import { createActivities } from "../../src/activities/create-activities.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import {
  hypervisorProxy,
  masterTargetProxy,
  processServerProxy,
  type RemoteCall,
} from "../../src/adapters/relay/proxy.ts";
import { startWorkers } from "../../src/main/worker-fleet.ts";
import { installQuietRuntime } from "./temporal.ts";

const { address, bundlePath, sites, world } = JSON.parse(process.argv[2] ?? "{}") as {
  readonly address: string;
  readonly bundlePath: string;
  readonly sites: readonly string[];
  readonly world: string;
};

const call =
  (site: string): RemoteCall =>
  async (method, params) => {
    const response = await fetch(world, { method: "POST", body: JSON.stringify({ site, method, params }) });
    const answer = (await response.json()) as { readonly result?: JsonValue; readonly fault?: unknown };
    if (answer.fault !== undefined) throw faultFromJson(answer.fault);
    return answer.result ?? null;
  };

installQuietRuntime();
const connection = await NativeConnection.connect({ address });
const activities = createActivities({
  masterTarget: (site) => masterTargetProxy(call(site)),
  processServer: (site) => processServerProxy(call(site)),
  hypervisor: (site) => hypervisorProxy(call(site)),
  orders: { put: async (_groupId, order) => (await call("")("orders.put", { order: order as never }, 0)) as never },
  workflows: {
    isOpen: async (workflowId, runId) => (await call("")("workflows.isOpen", { workflowId, runId }, 0)) as boolean,
  },
  answers: async () => true,
  clock: systemClock,
});
const fleet = await startWorkers({
  connection,
  namespace: "default",
  sites,
  workflowBundle: { codePath: bundlePath },
  activities,
  identity: `test/${process.pid}`,
});
process.stdout.write("ready\n");
await fleet.ended;
