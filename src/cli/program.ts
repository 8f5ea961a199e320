/** The program `leeward`: commands, global options, and how a failure becomes an exit code. */
import { existsSync } from "node:fs";
import { Command, CommanderError } from "commander";
import { Fault, FAULTS } from "#model/fault.ts";
import { addGroupCommands } from "./group-commands.ts";
import { addMoveCommands } from "./move-commands.ts";
import { addOperationCommands } from "./operation-commands.ts";
import { addDrillCommands } from "./drill-commands.ts";
import { addPlanCommands } from "./plan-commands.ts";
import { addStoreCommands } from "./store-commands.ts";
import { addSystemCommands, isRole } from "./system-commands.ts";
import type { CliDependencies } from "./context.ts";
import { printFault, reportFailure } from "./output.ts";

/** Runs one command line (without the program's name). Returns the exit code of docs/surface.md. */
export async function runCli(args: readonly string[], dependencies: CliDependencies): Promise<number> {
  const program = createProgram(dependencies);
  try {
    await program.parseAsync(args, { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return 0;
      // Commander has told the person already; a script reads the same as one value.
      if (args.includes("--json")) printFault(usageFault(error));
      return FAULTS.USAGE.exit;
    }
    return reportFailure(error, { json: args.includes("--json") });
  }
}

/** Every command of the program. */
export function createProgram(dependencies: CliDependencies): Command {
  const program = new Command("leeward")
    .description("Disaster recovery for whole machines")
    .version(dependencies.version, "--version", "print the version")
    .option("--json", "one JSON value on standard output, everything else on standard error")
    .option("--quiet", "no progress")
    .option("--state <dir>", "state folder of the embedded installation", ".leeward")
    .option("--config <file>", "configuration file", "leeward.yaml")
    .helpCommand(true)
    .showHelpAfterError("(see --help)")
    .exitOverride();
  addSystemCommands(program, dependencies);
  addGroupCommands(program, dependencies);
  addMoveCommands(program, dependencies);
  addOperationCommands(program, dependencies);
  addPlanCommands(program, dependencies);
  addDrillCommands(program, dependencies);
  addStoreCommands(program, dependencies);
  program.hook("preAction", (_, command) => assertConfigIsRead(program, command));
  for (const command of everyCommand(program)) command.exitOverride();
  return program;
}

function usageFault({ code, message }: CommanderError): Fault {
  const what = code === "commander.help" ? "No command was given" : message.replace(/^error: /, "");
  return new Fault("USAGE", what, { hint: "`leeward COMMAND --help` shows what is possible" });
}

/** Only roles read a configuration file. One that is named and not read would be a surprise. */
function assertConfigIsRead(program: Command, command: Command): void {
  const file = program.opts<{ readonly config: string }>().config;
  if (program.getOptionValueSource("config") !== "cli" || isRole(command.name())) return;
  if (!existsSync(file))
    throw new Fault("CONFIG_INVALID", `Configuration file "${file}" is not there`, { hint: "Check its path" });
  throw new Fault("USAGE", `"${command.name()}" reads no configuration file, got --config "${file}"`, {
    hint: "Leave it out; --state DIR says which installation is meant",
  });
}

function everyCommand(command: Command): Command[] {
  return [command, ...command.commands.flatMap(everyCommand)];
}
