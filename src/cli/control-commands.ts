/** `leeward control adopt`, and how a store's answer reads. */
import type { Command } from "commander";
import { Fault } from "#model/fault.ts";
import { confirm } from "./confirm.ts";
import {
  globalOptions,
  outputOf,
  parseDuration,
  type AdoptAnswer,
  type ControlCommands,
  type StoreAnswer,
  type SurveyedGroup,
} from "./context.ts";
import { duration, table } from "./output.ts";

interface AdoptFlags {
  readonly recoveryKey?: string;
  readonly newCa?: boolean;
  readonly dryRun?: boolean;
  readonly yes?: boolean;
  readonly wait: boolean;
  readonly timeout?: string;
}

export function addControlCommands(parent: Command, control: ControlCommands): void {
  parent
    .command("adopt")
    .argument("<store>", "description of the store (YAML or JSON), or a master target's configuration")
    .description("go on with the groups of a store after its control, Temporal or both are lost")
    .option("--recovery-key <file>", "opens the sealed copy of control's keys")
    .option("--new-ca", "go on without the old keys: every role must be enrolled again")
    .option("--dry-run", "say what would come back; change nothing")
    .option("--yes", "do not ask")
    .option("--no-wait", "do not wait until the groups are back")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (store: string, flags: AdoptFlags, command: Command) => {
      const output = outputOf(command);
      const dryRun = flags.dryRun ?? false;
      if (!dryRun)
        await confirm("A control that still runs with these groups gives no more orders from then on", "adopt", {
          yes: flags.yes ?? false,
        });
      const { state } = globalOptions(command);
      const isGiven = command.optsWithGlobals<{ config: string }>().config !== "leeward.yaml";
      const answer = await control.adopt({
        store: { store },
        state,
        ...(isGiven ? { configFile: command.optsWithGlobals<{ config: string }>().config } : {}),
        ...(flags.recoveryKey === undefined ? {} : { recoveryKeyFile: flags.recoveryKey }),
        newCa: flags.newCa ?? false,
        dryRun,
        wait: flags.wait,
        ...(flags.timeout === undefined ? {} : { timeoutMs: parseDuration(flags.timeout) }),
        say: output.say,
      });
      output.answer(answer, describeAdoption);
      const failed = answer.adoption?.groups.filter(({ outcome }) => outcome === "failed") ?? [];
      if (failed.length > 0)
        throw new Fault("OPERATION_FAILED", `${failed.length} of ${answer.groups.length} groups did not come back`, {
          hint: failed.map(({ group, detail }) => `${group}: ${detail}`).join("; "),
        });
    });
}

function describeAdoption(answer: AdoptAnswer): string {
  const { dryRun, already, controlEpoch, former, adoption } = answer;
  const keys = {
    kept: "This control has its keys.",
    unsealed: "The keys of the former control were unsealed: nobody has to be enrolled again.",
    new: "New keys: enrol every role again (`leeward down` and `up`; elsewhere `leeward machine enroll`).",
  }[answer.keys];
  const head = already
    ? `This control holds epoch ${controlEpoch} of the store already`
    : `${dryRun ? "Would take" : "Took"} over the control plane of store ${answer.storeId} with epoch ${controlEpoch}${former === undefined ? "" : `, after control ${former.controlId} (epoch ${former.controlEpoch})`}`;
  const lines = [head, keys, "", describeSurvey(answer.groups)];
  if (adoption !== undefined)
    lines.push(
      "",
      table([["GROUP", "OUTCOME", "STANDS"], ...adoption.groups.map((one) => [one.group, one.outcome, one.detail])]),
    );
  else if (!dryRun) lines.push("", "The groups come back when control runs: start it, and look with `leeward status`");
  return lines.join("\n");
}

export function describeStore({ storeId, control, groups }: StoreAnswer): string {
  const by =
    control === undefined
      ? "no control has claimed it"
      : `control ${control.controlId}${control.site === "" ? "" : ` at ${control.site}`}, epoch ${control.controlEpoch}`;
  return [`Store ${storeId}: ${by}`, "", describeSurvey(groups)].join("\n");
}

function describeSurvey(groups: readonly SurveyedGroup[]): string {
  if (groups.length === 0) return "No groups";
  return table([
    ["GROUP", "PHASE", "ACTIVE", "NEWEST POINT", "AGE", "STANDS"],
    ...groups.map(({ group, phase, activeSite = "–", newestPoint, standing, problem }) => [
      group,
      phase,
      activeSite,
      newestPoint?.cutAt ?? "–",
      duration(newestPoint?.ageMs),
      problem ?? standing,
    ]),
  ]);
}
