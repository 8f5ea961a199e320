/** Recovery plans: keep one, look at them. */
import { readFileSync } from "node:fs";
import { Option, type Command } from "commander";
import { Fault } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import { PLAN_MODES, type PlanMode } from "#model/plan/recovery-plan.ts";
import { describeWork, type ResolvedPlan } from "#model/plan/resolved-plan.ts";
import type { AppliedPlan, PlanSummary, PlanView } from "../api/contract.ts";
import { confirm } from "./confirm.ts";
import { globalOptions, outputOf, type CliDependencies, type WaitOptions } from "./context.ts";
import { answeredFailure, duration, table } from "./output.ts";
import { startAndWatch } from "./watch-operation.ts";

interface RunOptions extends WaitOptions {
  readonly mode: PlanMode;
  readonly sourceLost?: boolean;
  readonly version?: string;
  readonly note?: string;
  readonly force?: boolean;
  readonly yes?: boolean;
  readonly dryRun?: boolean;
}

export function addPlanCommands(program: Command, { client, stop }: CliDependencies): void {
  const plan = program.command("plan").description("recovery plans: how several groups come back together");
  plan
    .command("apply")
    .argument("<file>", "the plan, YAML (docs/recovery-plan.md)")
    .description("keep a plan as its next version")
    .option("--note <text>", "kept with the version")
    .option("--dry-run", "say whether it would be taken, and what changes")
    .action(async (file: string, options: { readonly note?: string; readonly dryRun?: boolean }, command: Command) => {
      const source = readPlan(file);
      const { note, dryRun = false } = options;
      const body = { source, dryRun, ...(note === undefined ? {} : { note }) };
      outputOf(command).answer(await client(globalOptions(command).state).applyPlan(body), (applied) =>
        describeApplied(applied, dryRun),
      );
    });
  plan
    .command("list")
    .description("plans, and what keeps one from being run")
    .action(async (_: unknown, command: Command) => {
      outputOf(command).answer(await client(globalOptions(command).state).plans(), describeList);
    });
  plan
    .command("show")
    .argument("<name>")
    .description("one plan, and what changed since the version before")
    .option("--version <number>", "an older one")
    .option("--source", "only its YAML")
    .action(
      async (name: string, options: { readonly version?: string; readonly source?: boolean }, command: Command) => {
        const view = await client(globalOptions(command).state).plan(name, versionOf(options));
        outputOf(command).answer(view, options.source === true ? ({ source }) => source.trimEnd() : describePlan);
      },
    );
  plan
    .command("run")
    .argument("<name>")
    .description("bring the groups of a plan up, in its order")
    .addOption(
      new Option("--mode <mode>", "test: isolated, and thrown away at the end")
        .choices(PLAN_MODES)
        .makeOptionMandatory(),
    )
    .option("--source-lost", "mode unplanned: the source site is gone; you have made sure that it does not run")
    .option("--version <number>", "an older version of the plan")
    .option("--note <text>", "kept with the run")
    .option("--force", "although something blocks it")
    .option("--dry-run", "print the very steps, what they should take, and what blocks them; change nothing")
    .option("--yes", "do not ask")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (name: string, options: RunOptions, command: Command) => {
      const api = client(globalOptions(command).state);
      const output = outputOf(command);
      const { mode, note, sourceLost, force } = options;
      const body = {
        mode,
        ...versionOf(options),
        ...(sourceLost === undefined ? {} : { sourceLost }),
        ...(note === undefined ? {} : { note }),
        ...(force === undefined ? {} : { force }),
      };
      if (options.dryRun === true) {
        const resolved = await api.resolvePlan(name, body);
        output.answer(resolved, describeResolved);
        if (resolved.blockers.length > 0)
          throw answeredFailure(
            new Fault("REFUSED", `Plan "${name}" cannot be run in mode "${mode}" now`, {
              hint: resolved.blockers.map(({ step, message }) => `${step}: ${message}`).join("; "),
            }),
          );
        return;
      }
      if (mode !== "test" && options.yes !== true) {
        const resolved = await api.resolvePlan(name, body);
        output.say(describeResolved(resolved));
        await confirm(`Runs plan ${name} in mode ${mode}`, name, { yes: false });
      }
      await startAndWatch(async () => await api.runPlan(name, body), api, output, { ...options, stop });
    });
}

function versionOf({ version }: { readonly version?: string }): { readonly version?: number } {
  if (version === undefined) return {};
  const number = Number(version);
  if (Number.isSafeInteger(number) && number > 0) return { version: number };
  throw new Fault("USAGE", `Expected the number of a version, got "${version}"`);
}

function describeResolved(plan: ResolvedPlan): string {
  const { predicted, objectives } = plan;
  const blocked = (id: string): readonly string[] =>
    plan.blockers
      .filter(({ step }) => step === id)
      .map(({ message, hint }) => `      blocked: ${message}${hint === undefined ? "" : ` → ${hint}`}`);
  const lines = [
    `Plan ${plan.plan}, version ${plan.version}, mode ${plan.mode}, direction ${plan.direction}`,
    `Expected: RTO ${duration(predicted.rtoMs)} (promised ${duration(objectives.rtoMs)}), RPO ${duration(predicted.rpoMs)} (promised ${duration(objectives.rpoMs)}), from ${predicted.runs} earlier runs`,
    "",
    ...plan.steps.flatMap(({ id, work, after, expectedMs, budgetMs, undo }, at) => [
      `  ${at + 1}. ${id}: ${describeWork(work)}`,
      `      ${expectedMs === undefined ? "never timed" : `usually ${duration(expectedMs)}`}, budget ${duration(budgetMs)}${after.length === 0 ? "" : `, after ${after.join(", ")}`}${undo === undefined ? "" : `, undone by ${describeWork(undo)}`}`,
      ...blocked(id),
    ]),
    ...plan.leftOut.map(({ step, why }) => `  – ${step}: left out, ${why}`),
    "",
    plan.onCancel === "undo" ? "Cancelled, it goes back." : "Cancelled, what has been moved stays.",
  ];
  return lines.join("\n");
}

function readPlan(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new Fault("USAGE", `Cannot read "${file}"`, { cause, hint: "Give the path of a plan, such as plan.yaml" });
  }
}

function describeList(plans: readonly PlanSummary[]): string {
  if (plans.length === 0) return "No plans";
  return table([
    ["PLAN", "VERSION", "APPLIED", "BY", "GROUPS", "PROBLEM"],
    ...plans.map((one) => [
      one.name,
      `${one.version}`,
      one.appliedAt,
      one.by,
      one.groups.join(", "),
      one.problem ?? "",
    ]),
  ]);
}

function describeApplied(applied: AppliedPlan, dryRun: boolean): string {
  const what = dryRun
    ? `Would be version ${applied.version}`
    : applied.stored
      ? `Kept as version ${applied.version}`
      : `Nothing changed: it is version ${applied.version} already`;
  return [`${what} of plan ${applied.name}`, ...changesOf(applied)].join("\n");
}

function describePlan(view: PlanView): string {
  const { rtoMs, rpoMs } = view.objectives;
  const lines = [
    `${view.name}, version ${view.version} of ${view.versions.length}, applied ${view.appliedAt} by ${view.by}${view.note === undefined ? "" : `: ${view.note}`}`,
    `Promised: RTO ${duration(rtoMs)}, RPO ${duration(rpoMs)}`,
    "",
    ...view.boot.map((boot, at) => `${at + 1}. ${boot.name}: ${boot.groups.join(", ")}`),
  ];
  if (view.changes.length > 0) lines.push("", "Changed since the version before:", ...changesOf(view));
  return lines.join("\n");
}

function changesOf({ changes }: PlanView): readonly string[] {
  return changes.map(({ at, was, is }) => {
    if (was === undefined) return `  + ${at}: ${short(is)}`;
    return is === undefined ? `  - ${at}: ${short(was)}` : `  ~ ${at}: ${short(was)} → ${short(is)}`;
  });
}

function short(value: JsonValue | undefined): string {
  const text = JSON.stringify(value) ?? "";
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
