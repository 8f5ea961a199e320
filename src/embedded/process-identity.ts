/**
 * Which process is meant: a pid alone is recycled by the kernel, a pid with its start time is not.
 *
 * Invariant: nothing in Leeward sends a signal to a pid read from a file without checking the start time first.
 * Source: proc(5), /proc/[pid]/stat field 22 (clock ticks since boot), /proc/sys/kernel/random/boot_id.
 */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

export interface ProcessIdentity {
  readonly pid: number;
  /** Boot id and start time in ticks; equal only for the very same process. */
  readonly started: string;
}

/** The identity of a living process, or undefined when there is none (a zombie counts as gone). */
export function identify(pid: number): ProcessIdentity | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined; // No such process: the answer, not an error.
  }
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  if (fields[0] === "Z" || fields[0] === "X") return undefined;
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return { pid, started: `${boot}/${fields[19]}` };
}

export function isAlive(identity: ProcessIdentity): boolean {
  return identify(identity.pid)?.started === identity.started;
}

/** Signal exactly this process; false when it is gone. */
export function signal(identity: ProcessIdentity, name: NodeJS.Signals): boolean {
  if (!isAlive(identity)) return false;
  return sendQuietly(identity.pid, name);
}

/** Signal a whole process group by its leader's pid; false when the group is empty. */
export function signalGroup(pgid: number, name: NodeJS.Signals): boolean {
  return sendQuietly(-pgid, name);
}

function sendQuietly(target: number, name: NodeJS.Signals): boolean {
  try {
    process.kill(target, name);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return false;
    throw error;
  }
}

/** True once the condition holds, false after `timeoutMs`. */
export async function eventually(condition: () => boolean, timeoutMs: number, everyMs = 50): Promise<boolean> {
  for (let waited = 0; waited < timeoutMs; waited += everyMs) {
    if (condition()) return true;
    await sleep(everyMs);
  }
  return condition();
}
