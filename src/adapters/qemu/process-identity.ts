/**
 * Which QEMU is meant: the one that holds the lock on the machine's pid file and runs in the machine's folder. A pid read from a
 * file may by now belong to anybody; a process that runs in that very folder under that start time does not.
 *
 * Source: proc(5): /proc/[pid]/stat field 22 (start, in ticks since boot), /proc/[pid]/cwd.
 */
import { existsSync, readFileSync, readlinkSync, realpathSync } from "node:fs";
import path from "node:path";
import { QEMU_LOG_FILE } from "./command-line.ts";
import { readTail } from "./machine-file.ts";

export interface ProcessIdentity {
  readonly pid: number;
  /** Ticks since boot at which it started. */
  readonly startedTicks: string;
}

export const PID_FILE = "qemu.pid";

/** The living QEMU of the machine whose folder this is, or undefined. A zombie counts as gone. */
export function findProcess(folder: string): ProcessIdentity | undefined {
  const pid = Number.parseInt(readOrEmpty(path.join(folder, PID_FILE)), 10);
  if (!Number.isSafeInteger(pid) || pid < 2) return undefined;
  const stat = readOrEmpty(`/proc/${pid}/stat`);
  // The second field is the program's name in parentheses and may hold anything; the rest is split at spaces.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const startedTicks = fields[19];
  if (startedTicks === undefined || fields[0] === "Z" || fields[0] === "X") return undefined;
  return runsIn(pid, folder) ? { pid, startedTicks } : undefined;
}

/** Send a signal to the machine's QEMU if `identity` is still it. */
export function signalProcess(folder: string, identity: ProcessIdentity, signal: NodeJS.Signals): void {
  const now = findProcess(folder);
  if (now === undefined || now.pid !== identity.pid || now.startedTicks !== identity.startedTicks) return;
  try {
    process.kill(identity.pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // It ended meanwhile: what was wanted.
  }
}

/**
 * How the QEMU of this folder, which is gone, came to its end. One that is told to end, by its guest or over its control socket, takes its
 * pid file with it; so does one that gets a signal to end, but that one says so in its log: then its host went down under it.
 */
export async function howItEnded(folder: string): Promise<"told" | "died"> {
  if (existsSync(path.join(folder, PID_FILE))) return "died";
  return (await readTail(path.join(folder, QEMU_LOG_FILE), 5)).includes("terminating on signal") ? "died" : "told";
}

function runsIn(pid: number, folder: string): boolean {
  try {
    return readlinkSync(`/proc/${pid}/cwd`) === realpathSync(folder);
  } catch {
    return false; // Gone, or another user's: not ours.
  }
}

function readOrEmpty(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return ""; // Not there: there is no such process.
  }
}
