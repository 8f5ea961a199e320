/** The program against docs/surface.md, and how it answers a command line that is none. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Command } from "commander";
import { createProgram } from "../../src/cli/program.ts";
import type { CliDependencies } from "../../src/cli/context.ts";
import { runLeeward } from "../support/system.ts";

/** Making the program asks nothing of what it would run on. */
const program = createProgram({ version: "0.0.0" } as CliDependencies);

function commandsOf(command: Command, path: readonly string[] = []): readonly string[] {
  return command.commands.flatMap((one) => {
    if (one.name() === "help") return [];
    const here = [...path, one.name()];
    return one.commands.length === 0 || ROLES.includes(one.name())
      ? [here.join(" "), ...commandsOf(one, here)]
      : commandsOf(one, here);
  });
}

/** A role can be a command with commands below it: `control`. */
const ROLES = ["agent", "process-server", "master-target", "control", "worker"];

test("the table of commands says of each whether it is there, and the program agrees", () => {
  const text = readFileSync(new URL("../../docs/surface.md", import.meta.url), "utf8");
  const rows = text.split("\n").filter((line) => line.startsWith("| `leeward "));
  assert.ok(rows.length > 10);
  const named = (column: number): readonly string[] =>
    rows.flatMap((row) => {
      const cells = row.split(/(?<!\\)\|/).map((cell) => cell.trim());
      return [...(cells[column] ?? "").matchAll(/`([^`]+)`/g)].map(([, name = ""]) => name);
    });
  const there = named(3);
  const planned = named(4);
  assert.deepEqual([...there].sort(), [...commandsOf(program)].sort(), "there");
  assert.deepEqual(
    planned.filter((name) => there.includes(name)),
    [],
    "planned",
  );
  // The contract's own words name everything that either column names; `rescue …` stands for all of its commands.
  const contract = rows.map((row) => row.split(/(?<!\\)\|/)[1] ?? "").join(" ");
  for (const name of [...there, ...planned].filter((one) => !one.startsWith("rescue ")))
    assert.ok(contract.includes(name.split(" ").at(-1) ?? ""), name);
});

test("a command line that is none is one JSON value for a script, and exit code 2 for everybody", async () => {
  for (const args of [["group", "shw"], [], ["failover", "web", "--point"], ["group", "protect"]]) {
    const answer = await runLeeward(["--json", ...args]);
    assert.equal(answer.code, 2, args.join(" "));
    const { error } = JSON.parse(answer.stdout) as { error: { code: string; message: string } };
    assert.equal(error.code, "USAGE");
    assert.notEqual(error.message, "");
  }
});

test("a configuration file that is not there, or that nobody would read, is refused", async () => {
  const missing = await runLeeward(["--config", "/nonexistent/leeward.yaml", "status"]);
  assert.equal(missing.code, 2);
  assert.match(missing.stderr, /CONFIG_INVALID: Configuration file "\/nonexistent\/leeward.yaml" is not there/);
  const unread = await runLeeward(["--config", new URL(import.meta.url).pathname, "status"]);
  assert.equal(unread.code, 2);
  assert.match(unread.stderr, /USAGE: "status" reads no configuration file/);
});
