/**
 * Foreign programs: where they are, and what to do when they are not.
 *
 * Invariants:
 * - `tools/parts.json` is the one list; scripts/bootstrap.mjs installs from it, this file only looks;
 * - the order is PATH (and the usual sbin folders, which a plain user's PATH lacks), then the per-user cache;
 * - a cached program is `NAME-VERSION-OS-ARCH/NAME` with `NAME.sha256` beside it; without that file it was never finished.
 *
 * Source: docs/decisions/0002-tools-are-built-not-downloaded.md
 */
import { constants } from "node:fs";
import { access, readFile } from "node:fs/promises";
import { homedir } from "node:os";
import path from "node:path";
import { Fault } from "#model/fault.ts";

export interface GoTool {
  readonly name: string;
  readonly version: string;
  readonly package: string;
  readonly what: string;
  /** Folder of the Go module that names it as a tool. */
  readonly module: string;
  readonly for: PartUse;
}

export interface DebianPackage {
  readonly name: string;
  /** Commands on PATH, or absolute paths; all of them there means the package is not needed. */
  readonly provides: readonly string[];
  readonly what: string;
  readonly for: PartUse;
}

/** `run`: Leeward itself; `npm`: compiling npm packages; `test`, `bench`: those only. */
export type PartUse = "run" | "npm" | "test" | "bench";

export interface Parts {
  readonly node: { readonly atLeast: string };
  readonly npm: { readonly expectedSeconds: number };
  readonly guest: { readonly expectedSeconds: number };
  readonly go: { readonly atLeast: string; readonly expectedSeconds: number; readonly tools: readonly GoTool[] };
  readonly debian: { readonly expectedSeconds: number; readonly packages: readonly DebianPackage[] };
}

export interface FoundTool {
  readonly path: string;
  readonly from: "path" | "cache";
}

/**
 * Absolute path of a program.
 *
 * Throws: TOOL_MISSING, with the package or the command that brings it.
 */
export async function findTool(name: string): Promise<string> {
  const found = await lookForTool(name);
  if (found !== undefined) return found.path;
  throw await toolMissing(name);
}

/** Like `findTool`, and says where it was; undefined when it is nowhere. */
export async function lookForTool(name: string): Promise<FoundTool | undefined> {
  for (const folder of searchFolders()) {
    const candidate = path.join(folder, name);
    if (await isExecutable(candidate)) return { path: candidate, from: "path" };
  }
  const tool = (await readParts()).go.tools.find((known) => known.name === name);
  if (tool === undefined) return undefined;
  const cached = cachedToolPath(tool);
  return (await isExecutable(cached)) && (await isReadable(`${cached}.sha256`))
    ? { path: cached, from: "cache" }
    : undefined;
}

/** Where a program built by us is, or would be. */
export function cachedToolPath(tool: Pick<GoTool, "name" | "version">): string {
  return path.join(
    cacheFolder(),
    "tools",
    `${tool.name}-${tool.version}-${process.platform}-${process.arch}`,
    tool.name,
  );
}

/** Per user, so that a clean clone builds nothing again. `LEEWARD_CACHE` moves it. */
export function cacheFolder(): string {
  const own = process.env["LEEWARD_CACHE"];
  if (own !== undefined && own !== "") return path.resolve(own);
  const shared = process.env["XDG_CACHE_HOME"];
  return path.join(shared !== undefined && shared !== "" ? shared : path.join(homedir(), ".cache"), "leeward");
}

/** The list of what is needed, `tools/parts.json` of the package. */
export async function readParts(): Promise<Parts> {
  const file = new URL("../../tools/parts.json", import.meta.url);
  return JSON.parse(await readFile(file, "utf8")) as Parts; // Our own file, checked by test/house/parts.test.ts.
}

async function toolMissing(name: string): Promise<Fault> {
  const parts = await readParts();
  const tool = parts.go.tools.find((known) => known.name === name);
  const debian = parts.debian.packages.find((known) => known.provides.includes(name));
  const hint =
    tool !== undefined
      ? `Run \`npm run setup\` in a clone of Leeward, which builds ${name} ${tool.version} with Go into ${path.dirname(cachedToolPath(tool))}, or put it on PATH`
      : debian !== undefined
        ? `Install it: apt-get install ${debian.name}`
        : `Put "${name}" on PATH`;
  return new Fault("TOOL_MISSING", `Program "${name}" is neither on PATH nor in the cache`, {
    details: { tool: name },
    hint,
  });
}

function searchFolders(): readonly string[] {
  const own = (process.env["PATH"] ?? "").split(path.delimiter).filter((folder) => path.isAbsolute(folder));
  return [...own, "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"];
}

export async function isExecutable(file: string): Promise<boolean> {
  return await can(file, constants.X_OK);
}

export async function isReadable(file: string): Promise<boolean> {
  return await can(file, constants.R_OK);
}

async function can(file: string, mode: number): Promise<boolean> {
  try {
    await access(file, mode);
    return true;
  } catch {
    return false; // Not there or not allowed: for whoever searches both mean "look on".
  }
}
