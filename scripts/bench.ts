/**
 * The figures, measured on this machine as ratios in one run.
 *
 *   bench.ts             all of them
 *   bench.ts NAME …      some, by the name of their file in bench/
 *
 * A benchmark that does not reach its figure ends with another exit code than 0, and so does this.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";

const BENCHMARKS: readonly string[] = ["initial-sync", "deltas", "store", "rto", "tap", "resync"];

const folder = path.join(import.meta.dirname, "..", "bench");
const named = process.argv.slice(2).filter((word) => !word.startsWith("-"));
const options = process.argv.slice(2).filter((word) => word.startsWith("-"));
for (const name of named.length === 0 ? BENCHMARKS : named) {
  const file = path.join(folder, `${name}.ts`);
  if (!existsSync(file)) {
    process.stderr.write(`No benchmark "${name}"; there are: ${BENCHMARKS.join(", ")}\n`);
    process.exit(2);
  }
  process.stdout.write(`\n${name}\n`);
  const { status, signal } = spawnSync(process.execPath, [file, ...options], { stdio: "inherit" });
  if (signal === "SIGINT") process.exit(130);
  if (status !== 0) process.exitCode = 1;
}
