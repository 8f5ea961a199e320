// Runs the parts of a set-up beside each other, with one line per part when it begins and when it ends.
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import path from "node:path";
import { logFolder, root } from "./places.mjs";

const SIGN_OF_LIFE_MS = 30_000;

/** What is running; a set-up that is stopped takes it along. */
const running = new Set();
process.on("exit", () => {
  for (const child of running) child.kill("SIGTERM");
});

/**
 * Run all parts; one with `after` waits for those (if they are to be run at all). Returns whether all succeeded.
 * A part that fails lets the others finish: they are then there for the next run.
 */
export async function runParts(parts) {
  const runs = new Map();
  for (const part of parts) runs.set(part.id, runAfter(part, runs));
  const results = await Promise.all(runs.values());
  return results.every(Boolean);
}

async function runAfter(part, runs) {
  for (const earlier of part.after ?? []) {
    if (runs.has(earlier) && !(await runs.get(earlier))) return false;
  }
  const file = path.join(logFolder, `${part.id}.log`);
  const log = openSync(file, "w");
  const began = Date.now();
  const elapsed = () => duration(Date.now() - began);
  const expected = `expected about ${duration(part.expectedSeconds * 1000)}`;
  const shown = path.relative(process.cwd(), file) || file;
  say(`  …  ${part.name}${part.what === undefined ? "" : ` (${part.what})`}: ${expected}, log ${shown}`);
  const life = setInterval(() => say(`  …  ${part.name}: ${elapsed()}, ${expected}`), SIGN_OF_LIFE_MS);
  try {
    await part.run(log);
    say(`  ok ${part.name}: ${elapsed()}`);
    return true;
  } catch (error) {
    const tail = readFileSync(file, "utf8").trimEnd().split("\n").slice(-15).join("\n    ");
    say(`  !! ${part.name}: failed after ${elapsed()}: ${error.message}\n    ${tail}\n    Whole log: ${shown}`);
    return false;
  } finally {
    clearInterval(life);
    closeSync(log);
  }
}

/** Run a program with its output in the log; rejects when it does not end with 0. */
export function runLogged(command, commandArguments, { log, env = {}, cwd = root }) {
  writeSync(log, `$ ${command} ${commandArguments.join(" ")}\n`);
  return new Promise((resolve, reject) => {
    const child = spawn(command, commandArguments, {
      cwd,
      env: { ...process.env, ...env },
      stdio: ["ignore", log, log],
    });
    running.add(child);
    child.on("error", reject);
    child.on("exit", (code, signal) => {
      running.delete(child);
      if (code === 0) resolve();
      else reject(new Error(`${path.basename(command)} ended with ${signal ?? `exit code ${code}`}`));
    });
  });
}

/** "4 min 30 s" */
export function duration(ms) {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  return seconds % 60 === 0 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

function say(line) {
  process.stderr.write(`${line}\n`);
}
