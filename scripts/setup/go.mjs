// Servers that come as Go modules: built once per user from the go.mod of tools/ or tools/peers/, whose go.sum pins every byte of their source.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { cacheFolder, cachedToolPath, findProgram, isAtLeast, root } from "./places.mjs";
import { runLogged } from "./progress.mjs";

/** From this version on `go` fetches the toolchain that tools/go.mod names, from the module proxy. */
const FETCHES_TOOLCHAINS = "1.21";
const FLAGS = ["-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", "-s -w"];

export function missingGoTools(parts, uses) {
  return parts.go.tools.filter(
    (tool) => uses.includes(tool.for) && findProgram(tool.name) === undefined && !isCached(tool),
  );
}

/** Why they cannot be built, as sentences for a person; undefined when they can. */
export function whyNotGo(parts, tools) {
  const names = tools.map((tool) => `${tool.name} ${tool.version} (${tool.what})`).join(" and ");
  const go = findProgram("go");
  if (go === undefined)
    return [
      `Missing: ${names}. They are built with Go ${parts.go.atLeast}, and there is no "go" on PATH; install Go (https://go.dev/dl), or put the programs on PATH.`,
    ];
  const version =
    /go(\d+\.\d+(?:\.\d+)?)/.exec(execFileSync(go, ["env", "GOVERSION"], { encoding: "utf8" }))?.[1] ?? "0";
  if (!isAtLeast(version, FETCHES_TOOLCHAINS))
    return [
      `Missing: ${names}. They are built with Go ${parts.go.atLeast}, and "${go}" is ${version}; install a newer one (https://go.dev/dl).`,
    ];
  return undefined;
}

export async function buildGoTools(tools, log) {
  mkdirSync(cacheFolder(), { recursive: true });
  const folder = mkdtempSync(path.join(cacheFolder(), "build-"));
  try {
    for (const module of new Set(tools.map((tool) => tool.module))) {
      const packages = tools.filter((tool) => tool.module === module).map((tool) => tool.package);
      await runLogged(findProgram("go"), ["build", ...FLAGS, "-o", `${folder}/`, ...packages], {
        log,
        env: { CGO_ENABLED: "0", GOFLAGS: "" },
        cwd: path.join(root, module),
      });
    }
    for (const tool of tools) keep(path.join(folder, tool.name), cachedToolPath(tool));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The checksum goes last: a tool without it was never finished. */
function keep(built, place) {
  mkdirSync(path.dirname(place), { recursive: true });
  rmSync(`${place}.sha256`, { force: true });
  copyFileSync(built, `${place}.new`);
  chmodSync(`${place}.new`, 0o755);
  renameSync(`${place}.new`, place);
  writeFileSync(`${place}.sha256`, `${sha256(place)}  ${path.basename(place)}\n`);
}

/** Hashing 140 MB at every start would be felt; a program that changed after its checksum was written is hashed again. */
function isCached(tool) {
  const place = cachedToolPath(tool);
  if (!existsSync(place) || !existsSync(`${place}.sha256`)) return false;
  if (statSync(place).mtimeMs <= statSync(`${place}.sha256`).mtimeMs) return true;
  return readFileSync(`${place}.sha256`, "utf8").startsWith(sha256(place));
}

function sha256(file) {
  return createHash("sha256").update(readFileSync(file)).digest("hex");
}
