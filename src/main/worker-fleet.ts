/**
 * The Temporal workers of one process: one for workflows and notifications, and per site one for movers and one for the target.
 *
 * Invariants:
 * - heartbeats go out every two seconds at least: cancellation and the replacement of a dead worker depend on it;
 * - one poller per mover queue: a frozen host must not swallow every retry with its open polls;
 * - workers stop gracefully, within a bound.
 *
 * Workflow code is not pinned by worker versioning: with it, a version that nobody set as current leaves every run at its second event,
 * silently. Changes go behind `patched()`, and recorded histories are replayed in the tests.
 */
import { NativeConnection, Worker, type WorkflowBundleOption } from "@temporalio/worker";
import type { Activities } from "../activities/contract.ts";
import type { PlanActivities } from "../activities/plan-contract.ts";
import { CONTROL_QUEUE, moverQueue, targetQueue } from "../workflows/messages.ts";

/** Each window of a group holds a slot of its mover queue for as long as it lasts. */
const MOVER_SLOTS = 1_000;
const TARGET_SLOTS = 100;
const CONTROL_SLOTS = 200;
const WORKFLOWS_CACHED = 500;

export interface FleetOptions {
  readonly connection: NativeConnection;
  readonly namespace: string;
  readonly sites: readonly string[];
  readonly workflowBundle: WorkflowBundleOption;
  readonly activities: Activities | (Activities & PlanActivities);
  readonly identity: string;
}

export interface Fleet {
  /** Settles when all have stopped; rejects when one failed (the others are then stopped too). */
  readonly ended: Promise<void>;
  stop(): void;
}

export async function startWorkers(options: FleetOptions): Promise<Fleet> {
  const { connection, namespace, sites, activities, identity } = options;
  const common = {
    connection,
    namespace,
    identity,
    // The interface has no index signature, which the SDK's type asks for.
    activities: { ...activities },
    maxHeartbeatThrottleInterval: "2s",
    defaultHeartbeatThrottleInterval: "2s",
    shutdownGraceTime: "3s",
    shutdownForceTime: "8s",
  } as const;
  const workers = await Promise.all([
    Worker.create({
      ...common,
      taskQueue: CONTROL_QUEUE,
      workflowBundle: options.workflowBundle,
      maxCachedWorkflows: WORKFLOWS_CACHED,
      maxConcurrentActivityTaskExecutions: CONTROL_SLOTS,
      // After a crash the server offers its workflows to others this soon.
      stickyQueueScheduleToStartTimeout: "3s",
      reuseV8Context: true,
    }),
    ...sites.flatMap((site) => [
      Worker.create({
        ...common,
        taskQueue: moverQueue(site),
        maxConcurrentActivityTaskExecutions: MOVER_SLOTS,
        maxConcurrentActivityTaskPolls: 1,
      }),
      Worker.create({
        ...common,
        taskQueue: targetQueue(site),
        maxConcurrentActivityTaskExecutions: TARGET_SLOTS,
        maxConcurrentActivityTaskPolls: 2,
      }),
    ]),
  ]);
  const stop = (): void => {
    for (const worker of workers) if (worker.getState() === "RUNNING") worker.shutdown();
  };
  const runs = workers.map(async (worker) => {
    try {
      await worker.run();
    } finally {
      stop();
    }
  });
  return { ended: Promise.all(runs).then(() => undefined), stop };
}
