/** Schedules of drills, as Temporal keeps them: one for each plan, `drill/PLAN`. */
import { ScheduleAlreadyRunning, ScheduleNotFoundError, type Client } from "@temporalio/client";
import { messageOfFailure } from "#model/failure.ts";
import { Fault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import { CONTROL_QUEUE } from "../../workflows/messages.ts";
import { PLAN_WORKFLOWS, type DrillStart } from "../../workflows/plan-messages.ts";
import type { DrillSchedule, ScheduleDrillBody } from "../contract.ts";
import { grpcCode, temporalCalls } from "../temporal-calls.ts";

const CALL_MS = 15_000;
const INVALID_ARGUMENT = 3;
const JITTER_MS = 60_000;
/** A drill that was missed while everything was off is made up for within this time, and not later. */
const CATCH_UP_MS = 3_600_000;

export interface DrillSchedules {
  /** Makes it, or changes it; with `now` it begins a drill at once, too. Throws USAGE for what is no cron expression. */
  put(plan: string, body: ScheduleDrillBody, start: DrillStart): Promise<void>;
  /** False: there was none. */
  remove(plan: string): Promise<boolean>;
  list(): Promise<readonly DrillSchedule[]>;
}

const PREFIX = "drill/";

export function createDrillSchedules(deps: {
  readonly client: Client;
  readonly clock: Clock;
  readonly address: string;
}): DrillSchedules {
  const { client } = deps;
  const { list } = temporalCalls(deps);

  async function make(plan: string, body: ScheduleDrillBody, start: DrillStart): Promise<void> {
    const { cron, jitterMs = JITTER_MS, catchUpMs = CATCH_UP_MS, timeZone, pauseOnFailure = false } = body;
    const settings = {
      spec: { cronExpressions: [cron], jitter: jitterMs, ...(timeZone === undefined ? {} : { timezone: timeZone }) },
      action: {
        type: "startWorkflow" as const,
        workflowType: PLAN_WORKFLOWS.drDrill,
        taskQueue: CONTROL_QUEUE,
        workflowId: `${PREFIX}${plan}`,
        args: [start],
      },
      policies: { overlap: "SKIP" as const, catchupWindow: catchUpMs, pauseOnFailure },
    };
    // Temporal keeps a cron expression as a calendar; the note has it as it was written.
    const state = { paused: false, note: cron };
    try {
      await client.schedule.getHandle(`${PREFIX}${plan}`).update((before) => ({ ...before, ...settings, state }));
    } catch (error) {
      if (!(error instanceof ScheduleNotFoundError)) throw error;
      await client.schedule.create({ scheduleId: `${PREFIX}${plan}`, ...settings, state, memo: { plan } });
    }
    if (body.now === true) await client.schedule.getHandle(`${PREFIX}${plan}`).trigger("SKIP");
  }

  return {
    put: async (plan, body, start) =>
      await list(CALL_MS, async () => {
        try {
          await make(plan, body, start);
        } catch (error) {
          if (error instanceof ScheduleAlreadyRunning)
            throw new Fault("REFUSED", `Somebody else is scheduling drills of "${plan}" right now`, {
              hint: "Look with `leeward drill list`",
            });
          if (grpcCode(error) !== INVALID_ARGUMENT) throw error;
          throw new Fault(
            "USAGE",
            `Expected a cron expression such as "0 3 * * *", got "${body.cron}": ${messageOfFailure(error)}`,
            { cause: error },
          );
        }
      }),

    remove: async (plan) =>
      await list(CALL_MS, async () => {
        try {
          await client.schedule.getHandle(`${PREFIX}${plan}`).delete();
          return true;
        } catch (error) {
          if (error instanceof ScheduleNotFoundError) return false;
          throw error;
        }
      }),

    list: async () =>
      await list(CALL_MS, async () => {
        const found: DrillSchedule[] = [];
        for await (const { scheduleId, info, state } of client.schedule.list()) {
          if (!scheduleId.startsWith(PREFIX)) continue;
          const next = info.nextActionTimes[0];
          found.push({
            plan: scheduleId.slice(PREFIX.length),
            cron: state.note ?? "",
            paused: state.paused,
            ...(next === undefined ? {} : { nextAt: next.toISOString() }),
          });
        }
        return found;
      }),
  };
}
