/** The Schedules that let points expire: one for each site that groups recover to. Made at every start of a worker; one that is there, perhaps paused or changed by a person, stays as it is. */
import { type Client, ScheduleAlreadyRunning, ScheduleOverlapPolicy } from "@temporalio/client";
import type { Log } from "#ports/log.ts";
import { CONTROL_QUEUE, retentionId, type RetentionInput, WORKFLOWS } from "../workflows/messages.ts";

const EVERY = "1 hour";
const JITTER = "5 minutes";
/** A round that was missed while Temporal was away is not made up for: the next does all that it would have done. */
const CATCH_UP = "10 minutes";

/** A server that refuses keeps no worker from its other work: then nothing expires, and the log says so. */
export async function ensureRetentionSchedules(client: Client, sites: readonly string[], log: Log): Promise<void> {
  for (const site of sites) {
    const input: RetentionInput = { site };
    try {
      await client.schedule.create({
        scheduleId: retentionId(site),
        spec: { intervals: [{ every: EVERY }], jitter: JITTER },
        policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: CATCH_UP, pauseOnFailure: false },
        action: {
          type: "startWorkflow",
          workflowType: WORKFLOWS.retention,
          workflowId: retentionId(site),
          taskQueue: CONTROL_QUEUE,
          args: [input],
        },
        memo: { summary: `expiry of points at ${site}` },
      });
    } catch (error) {
      if (error instanceof ScheduleAlreadyRunning) continue;
      log.error("The schedule of expiry cannot be made: nothing expires", {
        site,
        error: error instanceof Error ? error : String(error),
      });
    }
  }
}
