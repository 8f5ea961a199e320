/** DR drills: a plan in test mode, by hand or by a schedule, and what came of it. */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import { Fault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import { CHAIN_FORMAT, reportFiles } from "#model/plan/report-files.ts";
import { verifyChain, type ChainLink, type ChainVerdict } from "#model/plan/run-chain.ts";
import { planOfRun } from "#model/plan/run-id.ts";
import { runRecordOf, type RunReport } from "#model/plan/run-report.ts";
import type { ApiClient, DrillSchedule, RunEntry } from "../api/contract.ts";
import { globalOptions, outputOf, parseDuration, type CliDependencies, type WaitOptions } from "./context.ts";
import { duration, table } from "./output.ts";
import { startAndWatch } from "./watch-operation.ts";

interface ScheduleOptions {
  readonly cron?: string;
  readonly off?: boolean;
  readonly now?: boolean;
  readonly jitter?: string;
  readonly catchUp?: string;
  readonly timeZone?: string;
  readonly pauseOnFailure?: boolean;
}

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

export function addDrillCommands(program: Command, { client, stop }: CliDependencies): void {
  const drill = program.command("drill").description("DR drills: a plan in test mode, always cleaned up");
  const reach = (command: Command): ApiClient => client(globalOptions(command).state);
  drill
    .command("schedule")
    .argument("<plan>")
    .description("run drills of a plan by themselves")
    .option("--cron <expression>", 'when, such as "0 3 * * *"')
    .option("--off", "no more")
    .option("--now", "let it begin one now, too")
    .option("--jitter <duration>", "begin so much later, by chance", "1m")
    .option("--catch-up <duration>", "make up for a drill that was missed at most so long ago", "1h")
    .option("--time-zone <name>", "such as Europe/Berlin; left out: UTC")
    .option("--pause-on-failure", "the first drill that fails stops the schedule")
    .action(async (plan: string, options: ScheduleOptions, command: Command) => {
      const { cron, off, now = false, jitter = "1m", catchUp = "1h", timeZone, pauseOnFailure = false } = options;
      if ((cron === undefined) === (off !== true) || (off === true && now))
        throw new Fault("USAGE", "Expected either --cron EXPRESSION or --off", {
          hint: '--cron "0 3 * * *" is every night at three',
        });
      if (cron === undefined) await reach(command).unscheduleDrill(plan);
      else
        await reach(command).scheduleDrill(plan, {
          cron,
          jitterMs: parseDuration(jitter),
          catchUpMs: parseDuration(catchUp),
          pauseOnFailure,
          ...(now ? { now } : {}),
          ...(timeZone === undefined ? {} : { timeZone }),
        });
      outputOf(command).answer(await reach(command).drillSchedules(), describeSchedules);
    });
  drill
    .command("run")
    .argument("<plan>")
    .description("a drill now")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (plan: string, options: WaitOptions, command: Command) => {
      const api = reach(command);
      await startAndWatch(async () => await api.runDrill(plan, {}), api, outputOf(command), { ...options, stop });
    });
  drill
    .command("list")
    .argument("[plan]", "left out: all plans")
    .description("drills that were, newest first, and when the next ones are")
    .action(async (plan: string | undefined, _: unknown, command: Command) => {
      const api = reach(command);
      const names = plan === undefined ? (await api.plans()).map(({ name }) => name) : [plan];
      const runs = (await Promise.all(names.map(async (name) => await api.planRuns(name)))).flat();
      const drills = runs.flatMap((entry) => (reportOf(entry)?.drill === true ? [entry] : []));
      const schedules = (await api.drillSchedules()).filter((one) => names.includes(one.plan));
      outputOf(command).answer(
        { schedules, drills: drills.map((entry) => ({ number: entry.number, ...reportOf(entry)! })) },
        (value) => [describeSchedules(value.schedules), "", describeDrills(value.drills)].join("\n"),
      );
    });
  drill
    .command("report")
    .argument("<run>", "a run, or a plan: its newest drill")
    .description("the report of a run: HTML for people, and JSON with the chain of records for `drill verify`")
    .option("--out <folder>", "where to write them", ".")
    .action(async (run: string, options: { readonly out: string }, command: Command) => {
      const plan = planOfRun(run) ?? run;
      const known = planOfRun(run) !== undefined;
      const kept = reportFiles(
        await reach(command).planRuns(plan),
        ({ drill, operationId }) => (known ? operationId === run : drill),
        sha256,
      );
      if (kept === undefined)
        throw new Fault("NOT_FOUND", `No record of ${known ? `run "${run}"` : `a drill of plan "${run}"`}`, {
          hint: "A run leaves its record at its end; see `leeward drill list`",
        });
      const { number, report } = kept;
      mkdirSync(options.out, { recursive: true });
      const files = { html: join(options.out, kept.html.name), json: join(options.out, kept.json.name) };
      writeFileSync(files.html, kept.html.text);
      writeFileSync(files.json, kept.json.text);
      outputOf(command).answer({ ...files, number, report }, (value) => `${value.html}\n${value.json}`);
    });
  drill
    .command("verify")
    .argument("<file>", "the JSON of `drill report`")
    .description("check the chain of records, with nothing but the file")
    .action((file: string, _: unknown, command: Command) => {
      const verdict = verifyChain(readChain(file), sha256);
      outputOf(command).answer(verdict, (value) => describeVerdict(file, value));
      if (!verdict.whole)
        throw new Fault("VERIFICATION_FAILED", `"${file}" is not what was kept: ${verdict.findings[0]}`, {
          hint: "Get the report from the store again, and compare its digest with one that was noted elsewhere",
        });
    });
}

function reportOf({ record }: RunEntry): RunReport | undefined {
  return runRecordOf(record)?.report;
}

function readChain(file: string): readonly ChainLink[] {
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, "utf8"));
  } catch (cause) {
    throw new Fault("USAGE", `Cannot read "${file}" as JSON`, {
      cause,
      hint: "Give the JSON that `leeward drill report` wrote",
    });
  }
  const { format, records } = (json ?? {}) as { readonly format?: unknown; readonly records?: unknown };
  if (format !== CHAIN_FORMAT || !Array.isArray(records) || !records.every(isLink))
    throw new Fault("USAGE", `"${file}" is no report of a run`, {
      hint: "Give the JSON that `leeward drill report` wrote",
    });
  return records;
}

function isLink(value: unknown): value is ChainLink {
  const { number, record } = (value ?? {}) as { readonly number?: unknown; readonly record?: JsonObject };
  return Number.isSafeInteger(number) && typeof record === "object" && record !== null && !Array.isArray(record);
}

function describeVerdict(file: string, { whole, findings, from, digest }: ChainVerdict): string {
  const head = whole ? `${file}: whole, from record ${from} on` : `${file}: NOT whole`;
  return [head, ...findings.map((one) => `  ${one}`), `Digest of the newest record: ${digest}`].join("\n");
}

function describeSchedules(schedules: readonly DrillSchedule[]): string {
  if (schedules.length === 0) return "No drills are scheduled";
  return table([
    ["PLAN", "CRON", "NEXT"],
    ...schedules.map(({ plan, cron, nextAt, paused }) => [plan, cron, paused ? "paused" : (nextAt ?? "–")]),
  ]);
}

function describeDrills(drills: readonly (RunReport & { readonly number: number })[]): string {
  if (drills.length === 0) return "No drill has been run";
  return table([
    ["DRILL", "STARTED", "STATE", "RTO", "PROMISED", "RPO", "PROMISED"],
    ...drills.map((one) => [
      one.operationId,
      new Date(one.startedAtMs).toISOString(),
      one.state,
      duration(one.rtoMs),
      duration(one.objectives.rtoMs),
      duration(one.rpoMs),
      duration(one.objectives.rpoMs),
    ]),
  ]);
}
