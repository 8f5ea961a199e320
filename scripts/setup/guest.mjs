// The demo's machine, so that no download stands between `npm run demo` and its first step. Built by src/embedded/guest.ts.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { findNode } from "./npm.mjs";
import { cacheFolder, findProgram, isThere, root } from "./places.mjs";
import { runLogged } from "./progress.mjs";

export function guestIsBuilt() {
  return isThere(path.join(guestFolder(), "ledgerd"));
}

/** Why it cannot be built, as sentences for a person; undefined when it can. */
export function whyNotGuest() {
  if (process.platform !== "linux" || process.arch !== "x64") {
    return [`The demo's machine is built on Linux on x64, and this is ${process.platform} on ${process.arch}.`];
  }
  if (findProgram("go") === undefined) {
    return [
      'The demo\'s machine needs Go for its ledger service, and there is no "go" on PATH; install Go (https://go.dev/dl).',
    ];
  }
  return undefined;
}

export async function buildGuest(log) {
  await runLogged(findNode(), [path.join(root, "scripts", "build-guest.ts")], { log });
}

/** As in src/embedded/guest.ts; test/house/parts.test.ts compares the two. */
export function guestFolder() {
  const sources = path.join(root, "guest");
  const files = readdirSync(sources, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath ?? entry.path, entry.name));
  const digest = createHash("sha256");
  for (const file of files.sort()) digest.update(`${path.relative(sources, file)}\0`).update(readFileSync(file));
  return path.join(cacheFolder(), "guest", digest.digest("hex").slice(0, 16));
}
