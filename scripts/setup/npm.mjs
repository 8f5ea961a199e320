// npm packages, and the Node that one of them brings.
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { isAtLeast, isThere, readParts, root } from "./places.mjs";
import { runLogged } from "./progress.mjs";

/**
 * Does node_modules hold what package-lock.json says? npm writes its own copy of the lock file as the last step of an
 * installation, so the two agree only after a complete one, whoever ran it.
 */
export function npmIsCurrent() {
  const installedFile = path.join(root, "node_modules", ".package-lock.json");
  if (!existsSync(installedFile)) return false;
  const wanted = JSON.parse(readFileSync(path.join(root, "package-lock.json"), "utf8")).packages;
  const installed = JSON.parse(readFileSync(installedFile, "utf8")).packages;
  return Object.entries(wanted).every(
    ([place, one]) =>
      place === "" ||
      one.optional === true ||
      one.devOptional === true ||
      one.peer === true ||
      installed[place]?.version === one.version,
  );
}

export async function installNpmPackages(log) {
  const env = {};
  // Our own node_modules/.bin may hold the `node` that is about to be replaced.
  env.PATH = (process.env.PATH ?? "")
    .split(path.delimiter)
    .filter((folder) => !folder.startsWith(path.join(root, "node_modules")))
    .join(path.delimiter);
  // Where Node came with its headers, node-gyp need not fetch them (the compiled packages use the stable Node-API).
  const prefix = path.dirname(path.dirname(process.execPath));
  for (const place of [prefix, "/usr", "/usr/local"]) {
    if (env.npm_config_nodedir === undefined && isThere(path.join(place, "include", "node", "node_api.h")))
      env.npm_config_nodedir = place;
  }
  await runLogged("npm", ["ci", "--no-audit", "--no-fund"], { log, env });
}

/** A Node that runs our TypeScript: this one, or the npm package's; undefined when neither is new enough. */
export function findNode() {
  const { atLeast } = readParts().node;
  if (isAtLeast(process.versions.node, atLeast)) return process.execPath;
  const home = path.join(root, "node_modules", "node");
  if (!isThere(path.join(home, "bin", "node"))) return undefined;
  const { version } = JSON.parse(readFileSync(path.join(home, "package.json"), "utf8"));
  return isAtLeast(version, atLeast) ? path.join(home, "bin", "node") : undefined;
}
