/**
 * The end of the tour: a plan for the group, and a drill of it that nobody started but its schedule. Its report stays when everything else is taken away.
 */
import { createHash } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Fault, faultFromJson, isFault } from "#model/fault.ts";
import { reportFiles } from "#model/plan/report-files.ts";
import { verifyChain } from "#model/plan/run-chain.ts";
import type { ApiClient, OperationState } from "../api/contract.ts";
import { eventually } from "./eventually.ts";
import type { DrillOutcome, Recorder } from "./report.ts";

const PLAN = "demo";

/** Ledger's own word, read again whole, is the readiness check: `"ok":true` is what it must say of both disks. */
const planOf = (group: string, port: number): string => `
plan: ${PLAN}
description: The demo's machine, tried without touching it
objectives: { rto: 5m, rpo: 1m }
boot:
  - name: ledger
    groups:
      - group: ${group}
        checks: [{ http: { port: ${port}, path: /verify }, within: 2m }]
`;

/** At three in the night, unless somebody triggers it: it is the same schedule, and the same drill. */
const NIGHTLY = "0 3 * * *";
const DRILL_MS = 180_000;
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** Protects the group towards the site that came back: only what is protected can be drilled. */
export async function protectAgain(client: ApiClient, recorder: Recorder, group: string): Promise<void> {
  await recorder.step("The failover is committed", () => client.commit(group));
  await recorder.step("Reprotect: the primary becomes the recovery site", async () => {
    const operationId = await eventually("the old disks to be reported", 60_000, () => startReprotect(client, group));
    const ended = await eventually("the end of the reprotect", 180_000, () => endOf(client, operationId));
    if (ended.state !== "done") throw failureOf(ended);
  });
  const view = await client.group(group);
  recorder.check(
    "what runs at the secondary site is replicated to the primary",
    view.phase === "protected" && view.reversed,
    `${view.sourceSite} → ${view.targetSite}`,
  );
}

export async function drillBySchedule(
  client: ApiClient,
  recorder: Recorder,
  { group, port, folder }: { readonly group: string; readonly port: number; readonly folder: string },
): Promise<DrillOutcome> {
  await client.applyPlan({ source: planOf(group, port) });
  await client.scheduleDrill(PLAN, { cron: NIGHTLY, jitterMs: 0, now: true });
  const files = await eventually("the record of the drill", DRILL_MS, async () =>
    reportFiles(await client.planRuns(PLAN), ({ drill }) => drill, sha256),
  );
  const { report } = files;
  await mkdir(folder, { recursive: true });
  const [html, json] = [join(folder, files.html.name), join(folder, files.json.name)];
  await Promise.all([writeFile(html, files.html.text), writeFile(json, files.json.text)]);
  const probe = report.steps.find(({ id }) => id.endsWith("/check-1"));
  recorder.check(
    "a drill from a schedule boots the machine in isolation, and its ledger is whole",
    report.state === "done" && probe?.evidence?.includes('"ok":true') === true,
    report.fault === undefined ? `${report.operationId} ${report.state}` : report.fault.message,
  );
  const left = (await Promise.all(["primary", "secondary"].map((site) => client.machines(site)))).flat();
  const ofTests = left.filter(({ operationId }) => report.groups.some((moved) => moved.operationId === operationId));
  recorder.check(
    "the drill is cleaned up",
    report.left.length === 0 && ofTests.length === 0,
    `${report.left.length} steps not undone, ${ofTests.length} machines left`,
  );
  const { whole, digest } = verifyChain(files.chain, sha256);
  recorder.check("the drill's report is the newest of a whole chain", whole, `SHA-256 ${digest.slice(0, 16)}…`);
  if (report.rtoMs !== undefined)
    recorder.figure("Drill, RTO: begun by the schedule to ledger checked", (report.rtoMs / 1000).toFixed(1), "s");
  if (report.rpoMs !== undefined) recorder.figure("Drill, RPO", (report.rpoMs / 1000).toFixed(1), "s");
  return { operationId: report.operationId, verdict: report.state, html, json };
}

/** Undefined as long as the agent that has the old disks is still starting. */
async function startReprotect(client: ApiClient, group: string): Promise<string | undefined> {
  let operationId: string;
  try {
    ({ operationId } = await client.reprotect(group));
  } catch (error) {
    if (isFault(error, "REFUSED")) return undefined;
    throw error;
  }
  const first = await eventually("the reprotect to begin", 60_000, async () => {
    const state = await client.operation(operationId, { waitMs: 500 });
    const begun = state.steps.some(({ name, state: step }) => name === "prepare target" && step !== "waiting");
    return begun || state.state !== "running" ? state : undefined;
  });
  return first.fault?.code === "REFUSED" ? undefined : operationId;
}

async function endOf(client: ApiClient, operationId: string): Promise<OperationState | undefined> {
  const state = await client.operation(operationId, { waitMs: 1_000 });
  return state.state === "running" ? undefined : state;
}

export function failureOf(operation: OperationState): Fault {
  return operation.fault === undefined
    ? new Fault("OPERATION_FAILED", `"${operation.operationId}" ended as ${operation.state}`)
    : faultFromJson({ details: {}, ...operation.fault });
}
