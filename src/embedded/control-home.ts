/** Control of the embedded installation as `leeward control adopt` finds it: its folder, which may be gone, and its process, which its leader keeps. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { Fault } from "#model/fault.ts";
import { readJsonFile, writeJsonFile } from "./json-file.ts";
import { CONTROL_SITE, controlConfig, controlFolder, recoveryKeyFile, siteFolder } from "./layout.ts";
import { signal } from "./process-identity.ts";
import { readSiteStatus } from "./site-leader.ts";

export interface ControlHome {
  readonly site: string;
  readonly stateDir: string;
  readonly recoveryKeyFile: string;
  /** Its configuration is made again if it went with the folder; its process, if there is one, begins anew. */
  restart(): void;
}

/** Throws NOT_FOUND when `leeward up` was never run in this state folder. */
export function controlHome(state: string): ControlHome {
  const ports = readJsonFile(join(state, "ports.json")) as Readonly<Record<string, number>> | undefined; // Written by `up`.
  if (ports === undefined) {
    throw new Fault("NOT_FOUND", `No installation in "${state}"`, {
      hint: "Name its folder with --state DIR; for a control of its own, its configuration with --config FILE",
    });
  }
  const stateDir = controlFolder(state);
  return {
    site: CONTROL_SITE,
    stateDir,
    recoveryKeyFile: recoveryKeyFile(state),
    restart() {
      const file = join(stateDir, "config.json");
      if (!existsSync(file)) writeJsonFile(file, controlConfig({ state, ports }));
      const running = readSiteStatus(siteFolder(state, CONTROL_SITE))?.processes.find(({ name }) => name === "control");
      if (running?.pid !== undefined && running.started !== undefined)
        signal({ pid: running.pid, started: running.started }, "SIGTERM");
    },
  };
}

/** Where the recovery site's store stands with all that opens it; undefined before the first `up`. */
export function ownStoreFile(state: string): string | undefined {
  const file = join(siteFolder(state, CONTROL_SITE), "master-target", "config.json");
  return existsSync(file) ? file : undefined;
}
