import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { historyFromJSON } from "@temporalio/common/lib/proto-utils.js";
import { Worker } from "@temporalio/worker";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { cachedWorkflowBundle } from "../../src/main/workflow-bundle.ts";
import { bundleFolder, installQuietRuntime } from "../support/temporal.ts";

const folder = path.join(import.meta.dirname, "../histories");

interface Recorded {
  readonly workflowId: string;
  readonly history: unknown;
}

test("every recorded history replays with today's workflows: what runs now goes on after an upgrade", async () => {
  installQuietRuntime();
  const { codePath } = await cachedWorkflowBundle(bundleFolder(), silentLog);
  const files = readdirSync(folder).filter((name) => name.endsWith(".json"));
  assert.ok(files.length >= 10, `only ${files.length} histories`);
  const histories = files.map((name) => {
    const { workflowId, history } = JSON.parse(readFileSync(path.join(folder, name), "utf8")) as Recorded;
    return { workflowId, history: historyFromJSON(history) };
  });
  const failures: string[] = [];
  let replayed = 0;
  for await (const result of Worker.runReplayHistories({ workflowBundle: { codePath } }, histories)) {
    replayed += 1;
    if (result.error !== undefined) failures.push(`${result.workflowId}: ${result.error.message}`);
  }
  assert.deepEqual(failures, []);
  assert.equal(replayed, files.length);
});

test("a history that asks for another activity first is found out", async () => {
  installQuietRuntime();
  const { codePath } = await cachedWorkflowBundle(bundleFolder(), silentLog);
  const name = readdirSync(folder).find((one) => one.includes("lost-site-failover.json"))!;
  const text = readFileSync(path.join(folder, name), "utf8").replaceAll('"name":"choosePoint"', '"name":"openExport"');
  const { workflowId, history } = JSON.parse(text) as Recorded;
  for await (const result of Worker.runReplayHistories({ workflowBundle: { codePath } }, [
    { workflowId, history: historyFromJSON(history) },
  ])) {
    assert.match(result.error?.message ?? "", /TMPRL1100|[Nn]ondeterminism/);
  }
});
