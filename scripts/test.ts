/**
 * Runs tests by Node's own runner.
 *
 *   test.ts             every test
 *   test.ts --fast      those that need no server and no machine, in seconds: `npm run check`
 *   test.ts PATTERN …   files or patterns
 *
 * The exit code is the runner's; no test at all is a failure.
 */
import { spawn } from "node:child_process";
import { globSync } from "node:fs";
import { availableParallelism } from "node:os";
import path from "node:path";
import { FAST_TESTS } from "./fast-tests.ts";

/** The slowest single file (the whole tour) takes a few minutes; one that hangs must not eat the evening. */
const FILE_TIMEOUT_MS = 20 * 60_000;

/** Half of the time a file waits: for a machine to boot, a window to end, a killed process to come back. More than four would make each other late. */
const FILES_AT_ONCE = Math.min(availableParallelism() + 1, 4);

const root = path.join(import.meta.dirname, "..");
process.chdir(root);
const words = process.argv.slice(2);
const patterns = words.length === 0 ? ["test/**/*.test.ts"] : words[0] === "--fast" ? FAST_TESTS : words;
const files = globSync([...patterns]).sort();
if (files.length === 0) {
  process.stderr.write(`No test file matches ${patterns.join(" ")}\n`);
  process.exit(1);
}

const runner = spawn(
  process.execPath,
  ["--test", `--test-concurrency=${FILES_AT_ONCE}`, `--test-timeout=${FILE_TIMEOUT_MS}`, ...files],
  {
    stdio: "inherit",
  },
);
// Ctrl-C reaches the runner itself, which is in our process group; it stops its files and reports.
process.on("SIGINT", () => undefined);
process.on("SIGTERM", () => runner.kill("SIGTERM"));
runner.on("exit", (code, signal) => process.exit(code ?? (signal === "SIGINT" ? 130 : 1)));
