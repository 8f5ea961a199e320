/**
 * What `leeward up` leaves in the state folder for everybody else: the CLI finds the API here, `down` finds what to end.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Fault } from "#model/fault.ts";
import { readJsonFile, writeJsonFile } from "./json-file.ts";
import { CONTROL_SITE, controlFolder, lostMarker, siteFolder, SITES } from "./layout.ts";
import { isAlive, type ProcessIdentity } from "./process-identity.ts";
import { readSiteStatus } from "./site-leader.ts";

export interface Installation {
  readonly state: string;
  readonly version: string;
  /** The process of `leeward up`. */
  readonly up: ProcessIdentity;
  readonly ready: boolean;
  readonly urls: Readonly<Record<string, string>>;
  /** Where to look when something does not start. */
  readonly logs: readonly string[];
}

const file = (state: string): string => join(state, "embedded.json");

export function writeInstallation(installation: Installation): void {
  writeJsonFile(file(installation.state), installation);
}

export function readInstallation(state: string): Installation | undefined {
  return readJsonFile(file(state)) as Installation | undefined;
}

export function isUp(installation: Installation | undefined): installation is Installation {
  return installation !== undefined && isAlive(installation.up);
}

/** Its sites run on by themselves when `up` is killed: then there is nobody to start a lost site, and everything else is as before. */
function answers(installation: Installation | undefined): installation is Installation {
  if (installation === undefined) return false;
  const leaders = SITES.map((site) => readSiteStatus(siteFolder(installation.state, site))?.leader);
  return [installation.up, ...leaders].some((one) => one !== undefined && isAlive(one));
}

/** Processes of it run in this state folder, whether its API answers or not. */
export function isRunning(state: string): boolean {
  return answers(readInstallation(state));
}

/** Throws REFUSED when the site that control runs at was lost: nothing works until it is switched on. */
export function assertControlSite(state: string): void {
  if (!existsSync(lostMarker(state, CONTROL_SITE))) return;
  throw new Fault("REFUSED", `Site "${CONTROL_SITE}" is lost, and control runs there`, {
    hint: `Switch it on first: leeward site start ${CONTROL_SITE} --state ${state}`,
  });
}

/** URL and token of the API. Throws NOT_FOUND when nothing runs in this state folder. */
export function apiAccess(state: string): { readonly url: string; readonly token: string } {
  const installation = readInstallation(state);
  const tokenFile = join(controlFolder(state), "api-token");
  const url = installation?.urls["api"];
  if (installation !== undefined) assertControlSite(state);
  if (!answers(installation) || url === undefined || !existsSync(tokenFile)) {
    throw new Fault("NOT_FOUND", `No running installation in "${state}"`, {
      hint: "Start one with `leeward up --detach`, or name its folder with --state DIR",
    });
  }
  return { url, token: readFileSync(tokenFile, "utf8").trim() };
}
