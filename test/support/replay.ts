/**
 * The replay gate on what really happened: every history that a test's Temporal server holds must replay with the workflows that made it.
 *
 * A workflow that decides by anything but its history goes on until its worker is restarted, and then stops for good. Tests with real kills make
 * the orders of events that no scene thinks of, so each of them ends here.
 */
import { Client, Connection } from "@temporalio/client";
import { Worker } from "@temporalio/worker";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { cachedWorkflowBundle } from "../../src/main/workflow-bundle.ts";
import { bundleFolder, installQuietRuntime } from "./temporal.ts";

/** "WORKFLOW/RUN: why" of each run, open or closed, whose history does not replay; and how many were looked at. */
export async function replayEverything(
  address: string,
): Promise<{ readonly replayed: number; readonly failures: readonly string[] }> {
  installQuietRuntime();
  const { codePath } = await cachedWorkflowBundle(bundleFolder(), silentLog);
  const connection = await Connection.connect({ address });
  try {
    const { workflow } = new Client({ connection });
    const histories = [];
    for await (const { workflowId, runId } of workflow.list())
      histories.push({ workflowId, history: await workflow.getHandle(workflowId, runId).fetchHistory() });
    const failures: string[] = [];
    let replayed = 0;
    for await (const result of Worker.runReplayHistories({ workflowBundle: { codePath } }, histories)) {
      replayed += 1;
      if (result.error !== undefined) failures.push(`${result.workflowId}/${result.runId}: ${result.error.message}`);
    }
    return { replayed, failures };
  } finally {
    await connection.close();
  }
}
