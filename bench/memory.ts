/** Memory and processor time of processes, read from /proc while they run. */
import { readFileSync } from "node:fs";

export interface Usage {
  /** Largest sum of resident memory over all processes at one moment, bytes. */
  readonly residentBytesMax: number;
  /** By process name, at that moment. */
  readonly residentByName: Readonly<Record<string, number>>;
}

export interface Sampler {
  stop(): Usage;
}

/** `pids` is asked again at each sample: children come and go. */
export function sampleMemory(
  pids: () => readonly { readonly name: string; readonly pid: number }[],
  everyMs = 250,
): Sampler {
  let residentBytesMax = 0;
  let residentByName: Record<string, number> = {};
  const timer = setInterval(() => {
    const now: Record<string, number> = {};
    let sum = 0;
    for (const { name, pid } of pids()) {
      const bytes = resident(pid);
      sum += bytes;
      now[name] = (now[name] ?? 0) + bytes;
    }
    if (sum > residentBytesMax) {
      residentBytesMax = sum;
      residentByName = now;
    }
  }, everyMs);
  return {
    stop: () => {
      clearInterval(timer);
      return { residentBytesMax, residentByName };
    },
  };
}

/** Proportional resident memory: pages that several processes share (Node's own binary) are counted once in the sum. */
function resident(pid: number): number {
  try {
    const match = /^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"));
    return Number(match?.[1] ?? 0) * 1024;
  } catch {
    return 0; // It ended.
  }
}

/** User and system time of a process so far, in seconds. */
export function processorSeconds(pid: number): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  } catch {
    return 0;
  }
}
