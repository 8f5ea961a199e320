/** Memory and processor time of processes, read from /proc while they run. */
import { readFileSync } from "node:fs";

export interface Usage {
  /** Largest sum of resident memory over all processes at one moment, bytes. */
  readonly residentBytesMax: number;
  /** By process name, at that moment. */
  readonly residentByName: Readonly<Record<string, number>>;
  /** User and system time by process name, seconds, of all who were there at the end of a sample. */
  readonly processorByName: Readonly<Record<string, number>>;
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
  const processor = new Map<number, { readonly name: string; readonly first: number; last: number }>();
  const timer = setInterval(() => {
    const now: Record<string, number> = {};
    let sum = 0;
    for (const { name, pid } of pids()) {
      const spent = processorSeconds(pid);
      const known = processor.get(pid);
      if (known === undefined) processor.set(pid, { name, first: spent, last: spent });
      else known.last = Math.max(known.last, spent);
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
      const processorByName: Record<string, number> = {};
      for (const { name, first, last } of processor.values())
        processorByName[name] = (processorByName[name] ?? 0) + last - first;
      return { residentBytesMax, residentByName, processorByName };
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
