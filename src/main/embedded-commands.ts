/** Composition root of what runs on this machine only: `up`, `down`, `demo`, `doctor`, and the loss of a site. */
import { spawn } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Fault } from "#model/fault.ts";
import { enrol } from "../adapters/pki/enrol.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import { createApiClient } from "../api/client.ts";
import type { EmbeddedCommands } from "../cli/context.ts";
import { createArchiveDisk } from "../demo/archive-disk.ts";
import { describeReport, type DemoReport } from "../demo/report.ts";
import { tour } from "../demo/tour.ts";
import { describeDoctor, examineMachine } from "../embedded/doctor.ts";
import { createGuestImages } from "../embedded/guest.ts";
import { apiAccess, assertControlSite, isUp, readInstallation, type Installation } from "../embedded/installation.ts";
import { lostMarker, SITES, type SiteName } from "../embedded/layout.ts";
import { findTool } from "../embedded/tools.ts";
import { down, loseSite, lostSiteText, startSite, up, type EnrolmentDesk } from "../embedded/up.ts";

/** Enough that the initial sync of the demo takes longer than a blink. */
const ARCHIVE_BYTES = 256 << 20;
const LEEWARD = [process.execPath, new URL("./leeward", import.meta.url).pathname + extension()];

export function createEmbeddedCommands({
  version,
  stop,
}: {
  readonly version: string;
  readonly stop: AbortSignal;
}): EmbeddedCommands {
  const commands: EmbeddedCommands = {
    up: async (state, { detach, say }) => {
      const folder = resolve(state);
      if (detach) return startDetached(folder, say, stop);
      let started: Installation | undefined;
      await runUp(folder, version, say, stop, (installation) => {
        started = installation;
        for (const [name, url] of Object.entries(installation.urls)) say(`${name.padEnd(16)} ${url}`);
        say("Ready. Ctrl-C ends everything.");
      });
      return { urls: started?.urls ?? {}, state: folder, pid: process.pid };
    },
    down: (state) => down(resolve(state)),
    loseSite: (state, site) => loseSite(resolve(state), siteName(site)),
    startSite: async (state, site) => startSite(resolve(state), siteName(site)),
    doctor: async () => {
      const report = await examineMachine();
      return { ok: report.ok, lines: describeDoctor(report), report };
    },
    demo: async (state, { keep, say }) => {
      const folder = join(resolve(state), "demo");
      await down(folder);
      rmSync(folder, { recursive: true, force: true });
      const guest = await createGuestImages(join(folder, "images"));
      const images = { ...guest, archive: join(folder, "images", "archive.img") };
      await createArchiveDisk(images.archive, ARCHIVE_BYTES);
      const ending = new AbortController();
      stop.addEventListener("abort", () => ending.abort(), { once: true });
      say("Starting two sites on this machine");
      const { urls } = await startDetached(folder, say, stop);
      let report: DemoReport | undefined;
      try {
        report = await tour({
          client: createApiClient(apiAccess(folder)),
          urls,
          say,
          images,
          loseSite: (site) => loseSite(folder, siteName(site)),
          startSite: async (site) => startSite(folder, siteName(site)),
          // Beside the demo's folder, which goes.
          reports: join(resolve(state), "drills"),
        });
      } finally {
        // A demo that failed leaves its logs, never its processes, unless it was asked to.
        if (!keep) await down(folder);
        if (!keep && report?.ok === true) rmSync(folder, { recursive: true, force: true });
        else if (!keep)
          say(`The demo's logs and disks stay in "${folder}", up to 1 GiB; remove that folder when you have looked`);
        else say(`Kept running; end it with: leeward down --state ${folder}`);
      }
      // Nobody answers at these addresses any more.
      const told = keep ? report : { ...report, urls: {} };
      return { ok: report.ok, text: describeReport(told), report: told };
    },
  };
  return commands;
}

async function runUp(
  state: string,
  version: string,
  say: (line: string) => void,
  stop: AbortSignal,
  onReady: (installation: Installation) => void,
): Promise<void> {
  const [temporal, versitygw, redisServer] = await Promise.all([
    findTool("temporal"),
    findTool("versitygw"),
    findTool("redis-server"),
  ]);
  await up(
    state,
    {
      version,
      tools: { temporal, versitygw, redisServer },
      leeward: LEEWARD,
      log: createLog({ fields: { role: "up" } }),
      say,
      desk,
      stop,
    },
    onReady,
  );
}

function desk({ url, token }: { readonly url: string; readonly token: string }): EnrolmentDesk {
  const client = createApiClient({ url, token });
  return {
    token: async (role) => (await client.enrolmentToken({ site: role.site, role: role.role, name: role.name })).token,
    enrol: async (role, roleToken) => {
      await enrol({
        apiUrl: url,
        token: roleToken,
        site: role.site,
        role: role.role,
        name: role.name,
        dir: role.identityFolder,
      });
    },
    connected: async () =>
      (await client.status()).roles.filter((one) => one.connected).map((one) => `${one.site}/${one.role}`),
  };
}

/** `up` in the background, in a session of its own. Returns once it is ready; throws with the log's place when it ends first. */
async function startDetached(
  state: string,
  say: (line: string) => void,
  stop: AbortSignal,
): Promise<{ urls: Readonly<Record<string, string>>; state: string; pid: number; lost: readonly string[] }> {
  assertControlSite(state);
  mkdirSync(state, { recursive: true, mode: 0o700 });
  const running = readInstallation(state);
  if (isUp(running))
    throw new Fault("REFUSED", `Already running in "${state}"`, {
      hint: `See ${running.urls["api"]}, or end it with \`leeward down --state ${state}\``,
    });
  const logFile = join(state, "up.log");
  const output = openSync(logFile, "a", 0o600);
  const [program, ...args] = LEEWARD;
  if (program === undefined) throw new RangeError("No command to run");
  const child = spawn(program, [...args, "--state", state, "up"], {
    detached: true,
    stdio: ["ignore", output, output],
  });
  closeSync(output);
  let ended: string | undefined;
  child.once("exit", (code, signal) => (ended = signal ?? `exit code ${code}`));
  child.once("error", (error) => (ended = error.message));
  for (;;) {
    const installation = readInstallation(state);
    if (installation?.ready === true && installation.up.pid === child.pid) {
      child.unref();
      const lost = SITES.filter((site) => existsSync(lostMarker(state, site)));
      for (const site of lost) say(lostSiteText(state, site));
      return { urls: installation.urls, state, pid: installation.up.pid, lost };
    }
    if (ended !== undefined)
      throw new Fault("PROCESS_DIED", `Starting failed: ${ended}`, {
        hint: `See "${logFile}" and the logs in "${join(state, "sites")}"`,
      });
    if (stop.aborted) {
      child.kill("SIGTERM");
      say("Stopping");
      await down(state);
      throw new Fault("INTERRUPTED", "Stopped while starting");
    }
    await sleep(100);
  }
}

function siteName(text: string): SiteName {
  const found = SITES.find((name) => name === text);
  if (found === undefined) throw new Fault("NOT_FOUND", `No site "${text}", expected one of ${SITES.join(", ")}`);
  return found;
}

/** `.ts` in a clone, `.js` in a built package. */
function extension(): string {
  return import.meta.filename.endsWith(".ts") ? ".ts" : ".js";
}
