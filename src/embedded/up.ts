/**
 * `leeward up`: the whole system on one machine, two sites, one process tree.
 *
 * ```
 *  leeward up ─┬─ leader of primary ──┬─ redis, s3, process-server, master-target, agent      (one process group)
 *              └─ leader of secondary ┴─ the same, temporal, control, worker                  (another one)
 * ```
 *
 * This process only starts the leaders, enrols the roles, and starts a leader again that died. The sites go on when it is killed;
 * the next `up` takes them over.
 */
import { spawn } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Fault } from "#model/fault.ts";
import type { Log } from "#ports/log.ts";
import { assertControlSite, isUp, readInstallation, writeInstallation, type Installation } from "./installation.ts";
import { readJsonFile, writeJsonFile, writeTextFile } from "./json-file.ts";
import {
  CONTROL_SITE,
  controlConfig,
  controlFolder,
  enrolledRoles,
  lostMarker,
  PORT_NAMES,
  siteFolder,
  siteProcesses,
  SITES,
  urls,
  type EmbeddedTools,
  type EnrolledRole,
  type Layout,
  type SiteName,
} from "./layout.ts";
import { reservePorts } from "./ports.ts";
import { identify, isAlive, signal } from "./process-identity.ts";
import { readSiteStatus } from "./site-leader.ts";
import { killSite, SITE_MARK, siteProcessesAlive } from "./site-processes.ts";

/** What `up` needs of `control`, given by the composition root. */
export interface EnrolmentDesk {
  /** A one-time token for a role. */
  token(role: EnrolledRole): Promise<string>;
  /** Make a key in `role.identityFolder`, have it certified, write cert.pem, key.pem, ca.pem and order-key.pem there. */
  enrol(role: EnrolledRole, token: string): Promise<void>;
  /** Names of roles that are connected now, as "SITE/ROLE". */
  connected(): Promise<readonly string[]>;
}

export interface UpDependencies {
  readonly version: string;
  readonly tools: EmbeddedTools;
  readonly leeward: readonly string[];
  readonly log: Log;
  /** One line for a person, such as "temporal ready 2.1 s". */
  readonly say: (line: string) => void;
  readonly desk: (access: { readonly url: string; readonly token: string }) => EnrolmentDesk;
  readonly stop: AbortSignal;
}

/** For what outlives its role: a tap closes its disks within 2 s. */
const LAST_GRACE_MS = 5_000;
const READY_TIMEOUT_MS = 120_000;

/** Returns when `stop` aborted and everything has ended. `onReady` is called once all roles are connected. */
export async function up(
  state: string,
  dependencies: UpDependencies,
  onReady: (installation: Installation) => void,
): Promise<void> {
  const { log, say, stop } = dependencies;
  mkdirSync(state, { recursive: true, mode: 0o700 });
  const former = readInstallation(state);
  if (isUp(former))
    throw new Fault("REFUSED", `Already running in "${state}"`, {
      hint: `See ${former.urls["api"]}, or end it with \`leeward down --state ${state}\``,
    });
  assertControlSite(state);
  const running = SITES.filter((site) => leaderAlive(state, site));
  const ports = await reservePorts(
    join(state, "ports.json"),
    PORT_NAMES,
    running.length === 0 ? new Set() : allPorts(state),
  );
  const layout: Layout = { state, ports, tools: dependencies.tools, leeward: dependencies.leeward };
  const me = identify(process.pid);
  if (me === undefined) throw new RangeError("A running process has no identity");
  const installation: Installation = {
    state,
    version: dependencies.version,
    up: me,
    ready: false,
    urls: urls(layout),
    logs: SITES.map((site) => join(siteFolder(state, site), "logs")),
  };
  writeInstallation(installation);
  try {
    writeJsonFile(join(controlFolder(state), "config.json"), controlConfig(layout));
    for (const role of enrolledRoles(layout)) writeJsonFile(role.configFile, role.config);
    for (const site of SITES) {
      writeJsonFile(join(siteFolder(state, site), "site.json"), { site, processes: siteProcesses(layout, site) });
      if (existsSync(lostMarker(state, site))) say(lostSiteText(state, site));
      else startLeader(layout, site);
    }
    await enrolAll(layout, dependencies);
    await allReady(layout, dependencies);
    const ready = { ...installation, ready: true };
    writeInstallation(ready);
    onReady(ready);
    while (!stop.aborted) {
      for (const site of SITES) {
        if (existsSync(lostMarker(state, site)) || leaderAlive(state, site)) continue;
        log.warn("The leader of a site is gone, starting it again", { site });
        startLeader(layout, site);
      }
      await sleep(250, undefined, { signal: stop }).catch(() => undefined); // Woken by `stop`: the loop looks.
    }
  } finally {
    await endSites(state);
    rmSync(join(state, "embedded.json"), { force: true });
  }
}

export function lostSiteText(state: string, site: SiteName): string {
  return `${site}: lost, not started; switch it on with: leeward site start ${site} --state ${state}`;
}

function allPorts(state: string): Set<number> {
  return new Set(Object.values((readJsonFile(join(state, "ports.json")) ?? {}) as Record<string, number>));
}

const starting = new Map<string, number>();

function leaderAlive(state: string, site: SiteName): boolean {
  const folder = siteFolder(state, site);
  const pid = starting.get(folder);
  if (pid !== undefined && identify(pid) !== undefined) return true;
  const status = readSiteStatus(folder);
  return status !== undefined && isAlive(status.leader);
}

function startLeader(layout: Layout, site: SiteName): void {
  if (leaderAlive(layout.state, site)) return;
  const folder = siteFolder(layout.state, site);
  mkdirSync(join(folder, "logs"), { recursive: true });
  const output = openSync(join(folder, "logs", "leader.log"), "a", 0o600);
  const [program, ...before] = layout.leeward;
  if (program === undefined) throw new RangeError("No command to run a role with");
  // Detached: a process group of its own, which is the site.
  const leader = spawn(program, [...before, "site-leader", "--folder", folder], {
    cwd: folder,
    detached: true,
    stdio: ["ignore", output, output],
    env: { ...process.env, [SITE_MARK]: folder },
  });
  closeSync(output);
  leader.unref();
  if (leader.pid !== undefined) starting.set(folder, leader.pid);
}

async function enrolAll(layout: Layout, { desk, say, stop }: UpDependencies): Promise<void> {
  const tokenFile = join(controlFolder(layout.state), "api-token");
  const url = urls(layout)["api"] ?? "";
  await until(`control answers at ${url}`, layout, stop, async () => {
    if (!existsSync(tokenFile)) return false;
    return fetch(`${url}/v1/status`, { headers: authorization(tokenFile), signal: AbortSignal.timeout(5_000) }).then(
      (response) => response.ok,
      () => false,
    );
  });
  const { strangers, adopted } = certified(layout);
  if (strangers.length > 0 && !adopted) {
    // To enrol anybody now would make this control's keys those of an installation that does not exist.
    say(
      `Control has lost its state and knows nobody. What was replicated is safe, and goes on being replicated; to go on:`,
    );
    say(`  leeward control adopt ${masterTargetConfig(layout)} --state ${layout.state}`);
    return;
  }
  const missing = enrolledRoles(layout).filter((role) => !hasCertificate(role) && !strangers.includes(role));
  const wanted = [...missing, ...strangers];
  if (wanted.length === 0) return;
  const control = desk({ url, token: readToken(tokenFile) });
  for (const role of wanted) {
    await control.enrol(role, await control.token(role));
    if (strangers.includes(role)) restartRole(layout, role);
  }
  say(`enrolled ${wanted.map((role) => `${role.site}/${role.role}`).join(", ")}`);
}

/** One that is good: an installation that was not started for a year finds expired ones, which nobody renews. */
function hasCertificate({ identityFolder }: EnrolledRole): boolean {
  const cert = readTextIfThere(join(identityFolder, "cert.pem"));
  return cert !== undefined && new X509Certificate(cert).validToDate.getTime() > Date.now();
}

/** Roles whose certificate is another CA's than control's: it lost its state, or was adopted without its old keys. */
function certified(layout: Layout): { readonly strangers: readonly EnrolledRole[]; readonly adopted: boolean } {
  const folder = controlFolder(layout.state);
  const ca = readTextIfThere(join(folder, "ca", "cert.pem"));
  const strangers = enrolledRoles(layout).filter((role) => {
    const known = readTextIfThere(join(role.identityFolder, "ca.pem"));
    return known !== undefined && (ca === undefined || !known.includes(ca.trim()));
  });
  const control = readJsonFile(join(folder, "control.json")) as { readonly adoption?: unknown } | undefined;
  return { strangers, adopted: control?.adoption !== undefined };
}

/** It read its certificate when it started; its leader starts it again. */
function restartRole(layout: Layout, { site, role }: EnrolledRole): void {
  const running = readSiteStatus(siteFolder(layout.state, site))?.processes.find(({ name }) => name === role);
  if (running?.pid !== undefined && running.started !== undefined)
    signal({ pid: running.pid, started: running.started }, "SIGTERM");
}

function masterTargetConfig(layout: Layout): string {
  const role = enrolledRoles(layout).find((one) => one.site === CONTROL_SITE && one.role === "master-target");
  if (role === undefined) throw new RangeError("The recovery site has no master target");
  return role.configFile;
}

async function allReady(layout: Layout, { desk, say, stop }: UpDependencies): Promise<void> {
  const told = new Set<string>();
  const bornAt = performance.now();
  const seconds = (): string => `${((performance.now() - bornAt) / 1000).toFixed(1)} s`;
  const sites = SITES.filter((site) => !existsSync(lostMarker(layout.state, site)));
  const { strangers, adopted } = certified(layout);
  // They go on with what they were ordered last, and are not waited for: nobody but `control adopt` can bring them here.
  const expected = enrolledRoles(layout)
    .filter((role) => sites.includes(role.site) && (adopted || strangers.length === 0))
    .map((role) => `${role.site}/${role.role}`);
  const control = desk({
    url: urls(layout)["api"] ?? "",
    token: readToken(join(controlFolder(layout.state), "api-token")),
  });
  await until("every role is connected", layout, stop, async () => {
    let running = true;
    for (const site of sites) {
      for (const one of readSiteStatus(siteFolder(layout.state, site))?.processes ?? []) {
        const name = `${site}/${one.name}`;
        if (one.state !== "running") running = running && expected.length === 0;
        else if (!told.has(name)) {
          told.add(name);
          say(`${name.padEnd(28)} running ${seconds()}`);
        }
      }
    }
    if (!running) return false;
    const connected = new Set(await control.connected());
    return expected.every((name) => connected.has(name));
  });
}

async function until(
  what: string,
  layout: Layout,
  stop: AbortSignal,
  condition: () => Promise<boolean>,
): Promise<void> {
  const deadline = performance.now() + READY_TIMEOUT_MS;
  while (!(await condition())) {
    if (stop.aborted) throw new Fault("INTERRUPTED", "Stopped while starting");
    if (performance.now() > deadline) {
      const late = SITES.flatMap((site) =>
        (readSiteStatus(siteFolder(layout.state, site))?.processes ?? [])
          .filter((one) => one.state !== "running")
          .map((one) => `${site}/${one.name}`),
      );
      throw new Fault("TIMED_OUT", `Not ready after ${READY_TIMEOUT_MS / 1000} s: ${what}`, {
        hint: `Look into the logs in "${join(layout.state, "sites")}/*/logs"${late.length === 0 ? "" : `; not running: ${late.join(", ")}`}`,
      });
    }
    await sleep(100);
  }
}

/**
 * Stop both sites in order, then whatever still carries their mark: taps, machines, exports. They are asked first. A tap that may close its disk
 * finds out at its next start whether anybody else has written to the image meanwhile; one that was killed cannot.
 */
export async function endSites(state: string): Promise<number> {
  let ended = 0;
  for (const site of SITES) {
    const folder = siteFolder(state, site);
    const status = readSiteStatus(folder);
    const leader = status?.leader ?? leaderStarting(folder);
    if (leader !== undefined && signal(leader, "SIGTERM")) {
      ended += 1;
      for (let waited = 0; waited < 30_000 && isAlive(leader); waited += 100) await sleep(100);
      const left = siteProcessesAlive(folder);
      for (const one of left) signal(one, "SIGTERM");
      for (let waited = 0; waited < LAST_GRACE_MS && left.some(isAlive); waited += 50) await sleep(50);
    }
    ended += await killSite(folder, leader);
    rmSync(join(folder, "running.json"), { force: true });
  }
  return ended;
}

function leaderStarting(folder: string): ReturnType<typeof identify> {
  const pid = starting.get(folder);
  return pid === undefined ? undefined : identify(pid);
}

/** `leeward down`. Returns false when nothing was running. */
export async function down(state: string): Promise<boolean> {
  const installation = readInstallation(state);
  const wasUp = isUp(installation);
  if (installation !== undefined && wasUp) {
    signal(installation.up, "SIGTERM");
    for (let waited = 0; waited < 75_000 && isAlive(installation.up); waited += 100) await sleep(100);
    if (signal(installation.up, "SIGKILL")) await sleep(200);
  }
  const ended = await endSites(state);
  rmSync(join(state, "embedded.json"), { force: true });
  return wasUp || ended > 0;
}

/** Burn a site down: every process of it, at once; it stays down until `startSite`. Returns how many processes ended. */
export async function loseSite(state: string, site: SiteName): Promise<number> {
  const folder = siteFolder(state, site);
  if (!existsSync(folder)) throw new Fault("NOT_FOUND", `No site "${site}" in "${state}"`);
  writeTextFile(lostMarker(state, site), "lost\n");
  const leader = readSiteStatus(folder)?.leader;
  const ended = await killSite(folder, leader);
  // A leader that was just being started by `up` did not see the mark.
  for (let round = 0; round < 10 && siteProcessesAlive(folder).length > 0; round += 1) await killSite(folder, leader);
  return ended;
}

/** Switch a lost site on again; `up` starts its leader. */
export function startSite(state: string, site: SiteName): void {
  rmSync(lostMarker(state, site), { force: true });
}

function readTextIfThere(file: string): string | undefined {
  return existsSync(file) ? readFileSync(file, "utf8") : undefined;
}

function readToken(file: string): string {
  return readFileSync(file, "utf8").trim();
}

function authorization(file: string): Record<string, string> {
  return { authorization: `Bearer ${readToken(file)}` };
}
