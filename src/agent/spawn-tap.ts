/**
 * Starts the tap of this agent, unless it runs already.
 *
 * An agent that is started again right after it started a tap finds nobody listening yet; a second tap beside the first would take its socket and
 * find its images locked. So the pid is kept beside the configuration, and a process that carries this configuration's path in its command line
 * is the tap: it is waited for, not doubled.
 *
 * The tap stays in our process group, so that it is lost with the site; it does not end when we end.
 */
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { TapConfig } from "../capture/tap/tap-protocol.ts";
import type { TapProcess } from "./tap-host.ts";

const LOOK_MS = 100;

/** `program`: the module to run with this Node. Configuration, pid and output go to `folder`. */
export function spawnTap(
  config: TapConfig,
  options: { readonly program: string; readonly folder: string },
): TapProcess {
  const { program, folder } = options;
  const configFile = join(folder, "tap.json");
  const pidFile = join(folder, "tap.pid");
  const former = runningTap(pidFile, configFile);
  if (former !== undefined) return { pid: former, ended: goneAway(former, configFile) };

  writeFileSync(configFile, JSON.stringify(config), { mode: 0o600 });
  const output = openSync(join(folder, "tap.log"), "a", 0o600);
  const child = spawn(process.execPath, [program, "--config", configFile], { stdio: ["ignore", output, output] });
  closeSync(output);
  if (child.pid !== undefined) writeFileSync(pidFile, `${child.pid}\n`, { mode: 0o600 });
  child.unref();
  const ended = new Promise<string>((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("exit", (code, signal) => resolve(signal ?? `exit code ${code}`));
  });
  return { pid: child.pid, ended };
}

/** Pid of the tap that was started with this configuration and lives. */
function runningTap(pidFile: string, configFile: string): number | undefined {
  let pid: number;
  try {
    pid = Number.parseInt(readFileSync(pidFile, "utf8"), 10);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  return isTap(pid, configFile) ? pid : undefined;
}

function isTap(pid: number, configFile: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").includes(configFile);
  } catch {
    return false; // No such process, or it has just ended.
  }
}

async function goneAway(pid: number, configFile: string): Promise<string> {
  while (isTap(pid, configFile)) await sleep(LOOK_MS, undefined, { ref: false });
  return "it was of a former agent";
}
