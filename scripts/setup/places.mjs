// Where set-up reads and writes. src/embedded/tools.ts knows the same cache; test/house/parts.test.ts compares the two.
import { accessSync, constants, readFileSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

export const root = path.join(path.dirname(fileURLToPath(import.meta.url)), "..", "..");
export const logFolder = path.join(root, ".tmp", "setup");

export function cacheFolder() {
  if (process.env.LEEWARD_CACHE) return path.resolve(process.env.LEEWARD_CACHE);
  return path.join(process.env.XDG_CACHE_HOME || path.join(homedir(), ".cache"), "leeward");
}

export function cachedToolPath(tool) {
  return path.join(
    cacheFolder(),
    "tools",
    `${tool.name}-${tool.version}-${process.platform}-${process.arch}`,
    tool.name,
  );
}

export function readParts() {
  return JSON.parse(readFileSync(path.join(root, "tools", "parts.json"), "utf8"));
}

/** A command on PATH or in the folders that a plain user's PATH lacks; an absolute path is looked at as it is. */
export function findProgram(name) {
  if (path.isAbsolute(name)) return isThere(name, constants.R_OK) ? name : undefined;
  const folders = (process.env.PATH ?? "").split(path.delimiter).filter((folder) => path.isAbsolute(folder));
  for (const folder of [...folders, "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"]) {
    if (isThere(path.join(folder, name), constants.X_OK)) return path.join(folder, name);
  }
  return undefined;
}

export function isThere(file, mode = constants.R_OK) {
  try {
    accessSync(file, mode);
    return true;
  } catch {
    return false; // Not there or not allowed: for whoever searches both mean "look on".
  }
}

/** Is version `have` ("1.26.8") at least `want` ("1.21")? */
export function isAtLeast(have, want) {
  const [left, right] = [have, want].map((version) => version.split(".").map(Number));
  for (let at = 0; at < right.length; at++) {
    if ((left[at] ?? 0) !== right[at]) return (left[at] ?? 0) > right[at];
  }
  return true;
}
