/**
 * How workflows call activities: one function, one table of times.
 *
 * Invariants:
 * - every call has a summary (it stands in the timeline), a bound for one attempt, and a heartbeat time-out, so that a killed worker
 *   is replaced in about 10 s;
 * - a call with a budget ends with it; a call without one goes on until it works (only clean-up and watching may);
 * - cancellation is TRY_CANCEL: nobody waits for a mover to agree.
 */
import { ActivityCancellationType, type ActivityOptions, proxyActivities } from "@temporalio/workflow";
import type { FaultCode } from "#model/fault.ts";
import type { Activities as SiteActivities } from "../activities/contract.ts";
import type { PlanActivities } from "../activities/plan-contract.ts";
import { CONTROL_QUEUE, moverQueue, targetQueue } from "./messages.ts";

type Activities = SiteActivities & PlanActivities;

const SECOND = 1_000;
const MINUTE = 60 * SECOND;

type Queue = "control" | "mover" | "target";

interface Times {
  readonly queue: Queue;
  /** Bound of one attempt. */
  readonly eachMs: number;
  /** Bound of all attempts together; undefined: until it works. */
  readonly budgetMs: number | undefined;
}

const TIMES: Readonly<Record<keyof Activities, Times>> = {
  inspectDisks: { queue: "target", eachMs: 20 * SECOND, budgetMs: MINUTE },
  probeStore: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 3 * MINUTE },
  prepareGroup: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 5 * MINUTE },
  recordGroup: { queue: "target", eachMs: 30 * SECOND, budgetMs: 2 * MINUTE },
  putOrder: { queue: "control", eachMs: 20 * SECOND, budgetMs: MINUTE },
  awaitTaps: { queue: "target", eachMs: 5 * MINUTE, budgetMs: 6 * MINUTE },
  sourceState: { queue: "target", eachMs: 30 * SECOND, budgetMs: MINUTE },
  sourceDisks: { queue: "target", eachMs: 30 * SECOND, budgetMs: MINUTE },
  connectedAgents: { queue: "target", eachMs: 30 * SECOND, budgetMs: MINUTE },
  turn: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 10 * MINUTE },
  releaseGroup: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 5 * MINUTE },
  watchGroup: { queue: "mover", eachMs: 7 * MINUTE, budgetMs: undefined },
  watchReplica: { queue: "mover", eachMs: 7 * MINUTE, budgetMs: undefined },
  cutNow: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 3 * MINUTE },
  bookmark: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 3 * MINUTE },
  choosePoint: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 3 * MINUTE },
  expirePoints: { queue: "target", eachMs: 25 * MINUTE, budgetMs: 40 * MINUTE },
  fence: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 10 * MINUTE },
  openExport: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 5 * MINUTE },
  takePoint: { queue: "target", eachMs: 5 * MINUTE, budgetMs: 10 * MINUTE },
  closeExport: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 5 * MINUTE },
  createMachine: { queue: "target", eachMs: MINUTE, budgetMs: 2 * MINUTE },
  startMachine: { queue: "target", eachMs: MINUTE, budgetMs: 2 * MINUTE },
  destroyMachine: { queue: "target", eachMs: MINUTE, budgetMs: 2 * MINUTE },
  awaitReady: { queue: "target", eachMs: 10 * MINUTE, budgetMs: 11 * MINUTE },
  findMachines: { queue: "target", eachMs: 20 * SECOND, budgetMs: MINUTE },
  shutdownMachines: { queue: "target", eachMs: 3 * MINUTE, budgetMs: 3 * MINUTE },
  stopMachines: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 5 * MINUTE },
  startMachines: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 5 * MINUTE },
  moveDisks: { queue: "mover", eachMs: 7 * MINUTE, budgetMs: 10 * MINUTE },
  giveUpMoves: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 5 * MINUTE },
  removeOperation: { queue: "target", eachMs: 2 * MINUTE, budgetMs: 2 * MINUTE },
  beginMove: { queue: "control", eachMs: MINUTE, budgetMs: 5 * MINUTE },
  followMove: { queue: "mover", eachMs: 3 * MINUTE, budgetMs: undefined },
  cancelMove: { queue: "control", eachMs: MINUTE, budgetMs: 5 * MINUTE },
  endTest: { queue: "control", eachMs: 5 * MINUTE, budgetMs: undefined },
  runAction: { queue: "control", eachMs: 25 * 60 * MINUTE, budgetMs: undefined },
  checkReadiness: { queue: "control", eachMs: 25 * 60 * MINUTE, budgetMs: undefined },
  resolveDrill: { queue: "control", eachMs: MINUTE, budgetMs: 30 * MINUTE },
  recordRun: { queue: "control", eachMs: MINUTE, budgetMs: 10 * MINUTE },
  awaitWorkflowEnd: { queue: "control", eachMs: 65 * MINUTE, budgetMs: undefined },
};

/** Priority of work, 1 first: failover before test before watching before initial sync. */
export const PRIORITY = { failover: 1, test: 2, watch: 3, sync: 5 } as const;

export interface CallOptions {
  /** The recovery site whose workers do it. */
  readonly at: string;
  readonly summary: string;
  /** Replaces the table's; "until it works" for clean-up that must not give up. */
  readonly budgetMs?: number | "until-it-works";
  readonly attempts?: number;
  /** Codes of faults that are an answer here, however often one might ask again. */
  readonly answers?: readonly FaultCode[];
  readonly priority?: number;
  /** Cancelled, it ends when the activity has: what it did is stopped then. */
  readonly awaitsCancel?: boolean;
}

/** Throws an ActivityFailure; `faultOfFailure` finds the fault in it. */
export function act<Name extends keyof Activities>(
  name: Name,
  input: Parameters<Activities[Name]>[0],
  options: CallOptions,
): ReturnType<Activities[Name]> {
  const times = TIMES[name];
  const budgetMs = options.budgetMs === "until-it-works" ? undefined : (options.budgetMs ?? times.budgetMs);
  const settings: ActivityOptions = {
    taskQueue:
      times.queue === "control"
        ? CONTROL_QUEUE
        : times.queue === "mover"
          ? moverQueue(options.at)
          : targetQueue(options.at),
    summary: options.summary.slice(0, 200),
    startToCloseTimeout: budgetMs === undefined ? times.eachMs : Math.min(times.eachMs, budgetMs),
    ...(budgetMs === undefined ? {} : { scheduleToCloseTimeout: budgetMs }),
    heartbeatTimeout: 10 * SECOND,
    cancellationType:
      options.awaitsCancel === true
        ? ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
        : ActivityCancellationType.TRY_CANCEL,
    retry: {
      initialInterval: 200,
      backoffCoefficient: 2,
      maximumInterval: budgetMs === undefined ? 30 * SECOND : 5 * SECOND,
      ...(options.attempts === undefined ? {} : { maximumAttempts: options.attempts }),
      ...(options.answers === undefined ? {} : { nonRetryableErrorTypes: [...options.answers] }),
    },
    priority: { priorityKey: options.priority ?? PRIORITY.watch },
  };
  // The proxy's methods have the types of the interface, which an index over a generic name cannot say.
  const activities = proxyActivities<Record<string, (input: unknown) => Promise<unknown>>>(settings);
  return activities[name]!(input) as ReturnType<Activities[Name]>;
}
