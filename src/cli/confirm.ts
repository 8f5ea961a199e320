/** What cannot be taken back is asked for: a person types the name of what will be hit, a script says --yes. */
import { createInterface } from "node:readline/promises";
import { Fault } from "#model/fault.ts";

/** Throws USAGE when nobody can be asked, INTERRUPTED when the answer is another one. */
export async function confirm(what: string, name: string, { yes }: { readonly yes: boolean }): Promise<void> {
  if (yes) return;
  if (!process.stdin.isTTY) {
    throw new Fault("USAGE", `${what}; nobody is here to ask`, {
      hint: "Look first, then repeat the command with --yes",
    });
  }
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await terminal.question(`${what}. Type "${name}" to go on: `);
    if (answer.trim() !== name) throw new Fault("INTERRUPTED", "Not confirmed, nothing was changed");
  } finally {
    terminal.close();
  }
}
