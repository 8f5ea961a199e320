/** The installation itself: up, down, doctor, demo, sites, agents, exports, and the single roles. */
import type { Command } from "commander";
import { setTimeout as sleep } from "node:timers/promises";
import { Fault, isFault } from "#model/fault.ts";
import type { ApiClient } from "../api/contract.ts";
import { confirm } from "./confirm.ts";
import { addControlCommands } from "./control-commands.ts";
import { globalOptions, outputOf, type CliDependencies, type EnrolRequest } from "./context.ts";
import { answeredFailure, size, table, type Output } from "./output.ts";
import { describeRestored, sayProgress } from "./store-commands.ts";

const CLOSE_MS = 3_000;
const ROLES = ["agent", "process-server", "master-target", "control", "worker"] as const;

export function isRole(name: string): boolean {
  return ROLES.some((one) => one === name);
}

export function addSystemCommands(
  program: Command,
  { client, embedded, control, enrol, copyExport, role, stop }: CliDependencies,
): void {
  program
    .command("up")
    .description("start everything on this machine: two sites, all roles and their servers")
    .option("--detach", "return when ready; it goes on in the background")
    .action(async (options: { readonly detach?: boolean }, command: Command) => {
      const output = outputOf(command);
      const result = await embedded.up(globalOptions(command).state, {
        detach: options.detach ?? false,
        say: output.say,
      });
      if (options.detach === true)
        output.answer(result, ({ urls }) =>
          Object.entries(urls)
            .map(([name, url]) => `${name.padEnd(16)} ${url}`)
            .join("\n"),
        );
    });
  program
    .command("down")
    .description("end everything that `up` started; state is kept")
    .action(async (_: unknown, command: Command) => {
      const ended = await embedded.down(globalOptions(command).state);
      outputOf(command).answer({ ended }, (value) => (value.ended ? "Stopped" : "Nothing was running"));
    });
  program
    .command("doctor")
    .description("what is there on this machine, what is missing, and how to get it")
    .action(async (_: unknown, command: Command) => {
      const result = await embedded.doctor();
      outputOf(command).answer(result.report, () => result.lines.join("\n"));
      if (!result.ok)
        throw answeredFailure(
          new Fault("TOOL_MISSING", "Something is missing on this machine", {
            hint: "See the lines above; `npm run setup` installs what it may",
          }),
        );
    });
  program
    .command("demo")
    .description("protect a running machine, lose its site, fail over, prove it")
    .option("--keep", "leave everything running at the end")
    .action(async (options: { readonly keep?: boolean }, command: Command) => {
      const output = outputOf(command);
      const result = await embedded.demo(globalOptions(command).state, {
        keep: options.keep ?? false,
        say: output.say,
      });
      output.answer(result.report, () => result.text);
      if (!result.ok)
        throw answeredFailure(
          new Fault("VERIFICATION_FAILED", "Not every check of the demo held", {
            hint: "See the checks marked FAILED above",
          }),
        );
    });

  const site = program.command("site").description("sites of the embedded installation");
  site
    .command("lose")
    .argument("<site>")
    .option("--yes", "do not ask")
    .description("kill -9 every process of a site at once; it stays dead until `site start`")
    .action(async (name: string, options: { readonly yes?: boolean }, command: Command) => {
      await confirm(`Losing "${name}" kills every process of that site`, name, { yes: options.yes ?? false });
      const ended = await embedded.loseSite(globalOptions(command).state, name);
      outputOf(command).answer({ site: name, ended }, (value) => `${value.site}: ${value.ended} processes killed`);
    });
  site
    .command("start")
    .argument("<site>")
    .description("switch a lost site on again")
    .action(async (name: string, _: unknown, command: Command) => {
      await embedded.startSite(globalOptions(command).state, name);
      outputOf(command).answer({ site: name }, (value) => `${value.site} is starting`);
    });

  const machine = program.command("machine").description("protected machines and their agents");
  machine
    .command("list")
    .description("agents and the disks they tap")
    .action(async (_: unknown, command: Command) => {
      outputOf(command).answer(await client(globalOptions(command).state).agents(), (agents) =>
        table([
          ["MACHINE", "SITE", "STATE", "DISKS"],
          ...agents.map((one) => [
            one.machine,
            one.site,
            one.connected ? "connected" : "not connected",
            one.disks.map((disk) => `${disk.source} ${size(disk.sizeBytes)}`).join(", "),
          ]),
        ]),
      );
    });
  machine
    .command("enroll")
    .argument("<name>")
    .option("--site <name>", "site of the machine", "primary")
    .option("--role <role>", "agent, process-server, master-target or worker", "agent")
    .description("a one-time token for the agent of a machine, or for another role")
    .action(async (name: string, options: { readonly site: string; readonly role: string }, command: Command) => {
      const token = await client(globalOptions(command).state).enrolmentToken({ ...options, name });
      outputOf(command).answer(
        token,
        (value) => `${value.token}\nvalid until ${value.expiresAt}, CA fingerprint ${value.caFingerprint}`,
      );
    });

  machine
    .command("redeem")
    .argument("<name>")
    .requiredOption("--api <url>", "where control's API answers")
    .requiredOption("--token <token>", "the one-time token, as `machine enroll` shows it")
    .requiredOption("--dir <dir>", "folder for the identity: that of certFile in the role's configuration")
    .option("--site <name>", "as in `machine enroll`", "primary")
    .option("--role <role>", "as in `machine enroll`", "agent")
    .option("--ca-fingerprint <hex>", "as `machine enroll` shows it; without it whoever answers is trusted this once")
    .description("take a one-time token where the role runs; one that runs goes on with its new certificate")
    .action(
      async (
        name: string,
        { api, caFingerprint, ...options }: Omit<EnrolRequest, "name" | "apiUrl"> & { readonly api: string },
        command: Command,
      ) => {
        const pinned = caFingerprint === undefined ? {} : { caFingerprint };
        const enrolled = await enrol({ ...options, ...pinned, apiUrl: api, name });
        outputOf(command).answer(
          enrolled,
          ({ site, role, dir }) => `${role} "${name}" of site "${site}" is enrolled; its identity is in ${dir}`,
        );
      },
    );

  program
    .command("export")
    .argument("<group>")
    .option("--point <selector>", "which point", "latest")
    .option("--writable", "on a throw-away overlay")
    .description("a point as NBD URLs, until interrupted")
    .action(
      async (name: string, options: { readonly point: string; readonly writable?: boolean }, command: Command) => {
        const api = client(globalOptions(command).state);
        const output = outputOf(command);
        const opened = await api.openExport(name, { point: options.point, writable: options.writable ?? false });
        output.answer(opened, (value) => value.disks.map((disk) => `${disk.diskId}  ${disk.url}`).join("\n"));
        output.say("Serving until interrupted (Ctrl-C)");
        await untilStopped(stop);
        await closeInTime(api, opened.operationId, output);
      },
    );

  program
    .command("restore")
    .argument("<group>")
    .option("--point <selector>", "which point", "latest")
    .requiredOption("--to <dir>", "folder for the images, one DISK.raw each")
    .option("--yes", "replace files that are there")
    .description("a point as raw images, every block verified")
    .action(
      async (
        name: string,
        options: { readonly point: string; readonly to: string; readonly yes?: boolean },
        command: Command,
      ) => {
        const api = client(globalOptions(command).state);
        const output = outputOf(command);
        const opened = await api.openExport(name, { point: options.point, writable: false });
        try {
          const { pointId, disks } = opened;
          const to = { to: options.to, yes: options.yes ?? false };
          const restored = await copyExport({ pointId, disks, ...to }, sayProgress(output));
          const point = { id: pointId, cutAt: new Date(Number(pointId.slice(0, 13))).toISOString() };
          output.answer({ point, disks: restored }, describeRestored);
        } finally {
          await closeInTime(api, opened.operationId, output);
        }
      },
    );

  for (const name of ROLES) {
    const one = program
      .command(name)
      .description(`the ${name} role, for a real deployment; configuration by --config FILE (JSON)`)
      .action(async (_: unknown, command: Command) => {
        // `--config` is a global option: it is taken by the program wherever it stands.
        await role(name, command.optsWithGlobals<{ readonly config: string }>().config);
      });
    if (name === "control") addControlCommands(one, control);
  }
}

/** Whoever interrupts is not kept waiting for an installation that is gone. */
async function closeInTime(api: ApiClient, operationId: string, output: Output): Promise<void> {
  const late = sleep(CLOSE_MS, new Fault("TIMED_OUT", "Control does not answer"), { ref: false });
  try {
    const first = await Promise.race([api.closeExport(operationId), late]);
    if (isFault(first)) throw first;
  } catch (error) {
    if (!isFault(error) || !(error.retryable || error.code === "NOT_FOUND")) throw error;
    output.say(
      `Export "${operationId}" could not be closed (${error.code}): its master target, if it runs, serves it on`,
    );
  }
}

/** A listener alone would not keep the program running. */
async function untilStopped(stop: AbortSignal): Promise<void> {
  const keepRunning = setInterval(() => undefined, 60_000);
  if (!stop.aborted)
    await new Promise<void>((resolve) => stop.addEventListener("abort", () => resolve(), { once: true }));
  clearInterval(keepRunning);
}
