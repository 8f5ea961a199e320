/**
 * The leader of one site: it keeps the site's processes alive, and it is the site's power supply. All of them share its process group, so
 * one signal to the group is the loss of the site.
 *
 * Invariants:
 * - it starts nothing while the site is marked lost;
 * - a leader that follows a killed one first ends what is left of the old group: two process servers on one spool would be worse than none.
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Log } from "#ports/log.ts";
import { readJsonFile, writeJsonFile } from "./json-file.ts";
import { manage, type ManagedProcess, type ProcessSpec, type ProcessState } from "./managed-process.ts";
import { identify, type ProcessIdentity } from "./process-identity.ts";
import { killSite } from "./site-processes.ts";

/** STATE/sites/SITE/site.json, written by `leeward up`. */
export interface SiteFile {
  readonly site: string;
  readonly processes: readonly ProcessSpec[];
}

/** STATE/sites/SITE/running.json, written by the leader. */
export interface SiteStatus {
  readonly site: string;
  readonly leader: ProcessIdentity;
  readonly processes: readonly {
    readonly name: string;
    readonly state: ProcessState;
    readonly pid?: number;
    readonly started?: string;
    readonly restarts: number;
    readonly logFile: string;
  }[];
}

const STOP_GRACE_MS = 8_000;

export const statusFile = (folder: string): string => join(folder, "running.json");

export function readSiteStatus(folder: string): SiteStatus | undefined {
  return readJsonFile(statusFile(folder)) as SiteStatus | undefined;
}

/** Runs until `stop` aborts. `folder` is STATE/sites/SITE. */
export async function leadSite(
  folder: string,
  { log, stop }: { readonly log: Log; readonly stop: AbortSignal },
): Promise<void> {
  await endFormerLeader(folder, log);
  const file = readJsonFile(join(folder, "site.json")) as SiteFile;
  const leader = identify(process.pid);
  if (leader === undefined) throw new RangeError("A running process has no identity");
  const processes: ManagedProcess[] = [];
  const report = (): void => {
    writeJsonFile(statusFile(folder), {
      site: file.site,
      leader,
      processes: processes.map((one) => ({ name: one.spec.name, logFile: one.spec.logFile, ...one.state() })),
    } satisfies SiteStatus);
  };
  for (const spec of file.processes) {
    mkdirSync(spec.folder, { recursive: true });
    processes.push(manage(spec, { log, onChange: report }));
  }
  report();
  await new Promise<void>((resolve) => {
    if (stop.aborted) resolve();
    else stop.addEventListener("abort", () => resolve(), { once: true });
  });
  // The other way round: who writes is ended before what it writes to.
  for (const one of processes.toReversed()) await one.stop(STOP_GRACE_MS);
  rmSync(statusFile(folder), { force: true });
  log.info("Site stopped", { site: file.site });
}

async function endFormerLeader(folder: string, log: Log): Promise<void> {
  const former = readSiteStatus(folder);
  if (former === undefined || former.leader.pid === process.pid) return;
  const ended = await killSite(folder, former.leader);
  if (ended > 0) log.warn("A former leader left processes, ended them", { site: former.site, ended });
}
