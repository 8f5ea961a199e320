// One set-up at a time in a clone: two `npm ci` in one folder destroy each other's work.
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { root } from "./places.mjs";

const file = path.join(root, ".tmp", "setup.lock");

/** Run `work` alone. A lock whose process is gone (killed, or before a reboot) is taken over. */
export async function withSetupLock(work) {
  mkdirSync(path.dirname(file), { recursive: true });
  for (let told = false; !take(); told = true) {
    if (!told) process.stderr.write(`Waiting for another set-up of this clone (process ${holder()})\n`);
    await sleep(500);
  }
  const release = () => rmSync(file, { force: true });
  process.once("exit", release);
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));
  try {
    await work();
  } finally {
    release();
    process.off("exit", release);
    process.removeAllListeners("SIGINT").removeAllListeners("SIGTERM");
  }
}

function take() {
  try {
    writeFileSync(file, `${process.pid}\n`, { flag: "wx" });
    return true;
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
    const pid = holder();
    if (pid !== undefined && isRunning(pid)) return false;
    rmSync(file, { force: true });
    return false; // Next round tries to create it; only one of several waiting can.
  }
}

function holder() {
  try {
    return Number.parseInt(readFileSync(file, "utf8"), 10) || undefined;
  } catch {
    return undefined; // Released in between.
  }
}

function isRunning(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}
