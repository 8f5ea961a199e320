/** The program `leeward`: commands, global options, and how a failure becomes an exit code. */
import { Command, CommanderError } from "commander";
import { addGroupCommands } from "./group-commands.ts";
import { addMoveCommands } from "./move-commands.ts";
import { addStoreCommands } from "./store-commands.ts";
import { addSystemCommands } from "./system-commands.ts";
import type { CliDependencies } from "./context.ts";
import { reportFailure } from "./output.ts";

/** Runs one command line (without the program's name). Returns the exit code of docs/surface.md. */
export async function runCli(args: readonly string[], dependencies: CliDependencies): Promise<number> {
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
  addStoreCommands(program, dependencies);
  for (const command of everyCommand(program)) command.exitOverride();
  try {
    await program.parseAsync(args, { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    return reportFailure(error, { json: args.includes("--json") });
  }
}

function everyCommand(command: Command): Command[] {
  return [command, ...command.commands.flatMap(everyCommand)];
}
