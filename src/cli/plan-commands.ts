/** Recovery plans: keep one, look at them. */
import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { Fault } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import type { AppliedPlan, PlanSummary, PlanView } from "../api/contract.ts";
import { globalOptions, outputOf, type CliDependencies } from "./context.ts";
import { duration, table } from "./output.ts";

export function addPlanCommands(program: Command, { client }: CliDependencies): void {
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
        const version = options.version === undefined ? undefined : Number(options.version);
        if (version !== undefined && (!Number.isSafeInteger(version) || version < 1))
          throw new Fault("USAGE", `Expected the number of a version, got "${options.version}"`);
        const view = await client(globalOptions(command).state).plan(name, version === undefined ? {} : { version });
        outputOf(command).answer(view, options.source === true ? ({ source }) => source.trimEnd() : describePlan);
      },
    );
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
