/**
 * All processes of one site on this machine, whoever started them (QEMU is a grandchild and outlives its parent on purpose).
 *
 * They are known by a mark in their environment, which every child inherits: LEEWARD_SITE_FOLDER. A pid that was recycled does not carry it. A
 * program that writes its title over its environment (Redis) loses the mark, so what the leader noted in `running.json` counts as well.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { readJsonFile } from "./json-file.ts";
import { eventually, identify, isAlive, signal, signalGroup, type ProcessIdentity } from "./process-identity.ts";

export const SITE_MARK = "LEEWARD_SITE_FOLDER";

export function siteProcessesAlive(folder: string): ProcessIdentity[] {
  const mark = `${SITE_MARK}=${folder}`;
  const marked = readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name) && Number(name) !== process.pid)
    .flatMap((name) => (environmentOf(name).includes(mark) ? (identify(Number(name)) ?? []) : []));
  const noted = notedProcesses(folder).filter((one) => isAlive(one) && !marked.some(({ pid }) => pid === one.pid));
  return [...marked, ...noted];
}

function notedProcesses(folder: string): ProcessIdentity[] {
  const status = readJsonFile(join(folder, "running.json")) as
    { readonly processes: readonly Partial<ProcessIdentity>[] } | undefined; // The leader's; see SiteStatus.
  return (status?.processes ?? []).flatMap(({ pid, started }) =>
    pid === undefined || started === undefined || pid === process.pid ? [] : [{ pid, started }],
  );
}

function environmentOf(pid: string): string[] {
  try {
    return readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
  } catch {
    return []; // Ended meanwhile, or another user's.
  }
}

/**
 * End every process of the site at once: the group first (one signal, no order), then whoever is left.
 * Returns how many were ended.
 */
export async function killSite(folder: string, leader: ProcessIdentity | undefined): Promise<number> {
  const before = siteProcessesAlive(folder);
  if (leader !== undefined && before.some((one) => one.pid === leader.pid && one.started === leader.started))
    signalGroup(leader.pid, "SIGKILL");
  for (const one of siteProcessesAlive(folder)) signal(one, "SIGKILL");
  await eventually(() => !before.some(isAlive), 10_000);
  return before.length;
}
