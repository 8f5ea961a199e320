/**
 * What must hold before a commit, in about a minute: formatting, lint, types, imports, fast tests. Everything is run, and all
 * that failed is shown, two at a time.
 */
import { spawn } from "node:child_process";
import path from "node:path";

interface Check {
  readonly name: string;
  readonly command: readonly string[];
}

const root = path.join(import.meta.dirname, "..");
const bin = (name: string): string => path.join(root, "node_modules", ".bin", name);
const checks: readonly Check[] = [
  { name: "lint", command: [bin("eslint"), ".", "--max-warnings=0"] },
  { name: "types", command: [bin("tsc"), "-p", "."] },
  { name: "types of src/model", command: [bin("tsc"), "-p", "src/model"] },
  { name: "formatting", command: [bin("prettier"), "--check", "--log-level=warn", "."] },
  { name: "fast tests", command: [process.execPath, "scripts/test.ts", "--fast"] },
];

const waiting = [...checks];
const failed: string[] = [];
await Promise.all([runSome(), runSome()]);
process.stdout.write(failed.length === 0 ? "All checks passed\n" : `Failed: ${failed.join(", ")}\n`);
process.exitCode = failed.length === 0 ? 0 : 1;

async function runSome(): Promise<void> {
  for (let check = waiting.shift(); check !== undefined; check = waiting.shift()) {
    const began = performance.now();
    const { ok, output } = await run(check);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    process.stdout.write(
      ok ? `ok ${check.name}: ${seconds} s\n` : `${output.trimEnd()}\n!! ${check.name}: ${seconds} s\n`,
    );
    if (!ok) failed.push(check.name);
  }
}

function run(check: Check): Promise<{ readonly ok: boolean; readonly output: string }> {
  return new Promise((resolve, reject) => {
    const [program, ...words] = check.command;
    if (program === undefined) throw new RangeError(`Check "${check.name}" has no command`);
    // Our own Node first: the tools start with `#!/usr/bin/env node`.
    const env = {
      ...process.env,
      PATH: `${path.dirname(process.execPath)}${path.delimiter}${process.env["PATH"] ?? ""}`,
    };
    const child = spawn(program, words, { cwd: root, env, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (output += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (output += text));
    child.on("error", reject);
    child.on("close", (code) => resolve({ ok: code === 0, output }));
  });
}
