/**
 * What is there on this machine, what is missing, from where it comes, how long that takes, and how much disk it needs.
 * Only looks; `npm run setup` installs.
 */
import { createReadStream } from "node:fs";
import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, stat, statfs } from "node:fs/promises";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { cacheFolder, cachedToolPath, isReadable, lookForTool, readParts, type PartUse } from "./tools.ts";

export interface DoctorReport {
  /** Everything that Leeward itself needs is there; what only tests need may be missing. */
  readonly ok: boolean;
  readonly machine: { readonly platform: string; readonly arch: string; readonly node: string; readonly root: boolean };
  readonly parts: readonly PartReport[];
  readonly cache: { readonly folder: string; readonly bytes: number; readonly freeBytes: number };
}

export interface PartReport {
  readonly name: string;
  readonly what: string;
  readonly use: PartUse;
  readonly state: "on PATH" | "in the cache" | "missing" | "damaged";
  /** Where it is. */
  readonly path?: string;
  /** What brings it, and about how long that takes. */
  readonly remedy?: string;
  readonly expectedSeconds?: number;
}

const USES: Readonly<Record<PartUse, string>> = {
  run: "Leeward itself",
  npm: "compiling npm packages",
  test: "tests",
  bench: "benchmarks",
};

/** Built Go tools with their caches, Debian packages, npm packages, the guest. */
const FREE_BYTES_NEEDED = 4 * 2 ** 30;

export async function examineMachine(): Promise<DoctorReport> {
  const parts = [...(await examineGoTools()), await examineGo(), ...(await examineDebianPackages())];
  const cache = await examineCache();
  return {
    ok: parts.every((one) => one.use !== "run" || isThere(one)) && process.platform === "linux",
    machine: {
      platform: process.platform,
      arch: process.arch,
      node: process.versions.node,
      root: process.getuid?.() === 0,
    },
    parts,
    cache,
  };
}

/** For a person, one line per finding; what is missing last. */
export function describeDoctor(report: DoctorReport): readonly string[] {
  const { machine, cache } = report;
  const missing = report.parts.filter((one) => !isThere(one));
  const wanted = missing.filter((one) => one.use !== "bench"); // The benchmark fetches its own.
  return [
    `${machine.platform} ${machine.arch}, Node ${machine.node}${machine.root ? "" : ", not root (nothing can be installed here by Leeward)"}`,
    `Cache ${cache.folder}: ${mebibytes(cache.bytes)} used, ${mebibytes(cache.freeBytes)} free`,
    ...(cache.freeBytes < FREE_BYTES_NEEDED
      ? [`Less than ${mebibytes(FREE_BYTES_NEEDED)} free: a first set-up may fill the disk`]
      : []),
    ...(machine.platform === "linux"
      ? []
      : [`Leeward's servers and its demo need Linux; use docker-compose.yml on ${machine.platform}`]),
    ...report.parts.filter(isThere).map((one) => `ok      ${one.name} (${one.what}): ${one.path ?? ""}`),
    ...missing.map(
      (one) =>
        `${one.state.padEnd(7)} ${one.name} (${one.what}${one.use === "run" ? "" : `, for ${USES[one.use]} only`}): ${one.remedy ?? ""}`,
    ),
    wanted.length === 0
      ? "Everything is there"
      : `Missing: ${wanted.map((one) => one.name).join(", ")}. \`npm run setup\` brings what it may, in about ${Math.ceil(seconds(wanted) / 60)} min`,
  ];
}

async function examineGoTools(): Promise<readonly PartReport[]> {
  const { go } = await readParts();
  return Promise.all(
    go.tools.map(async ({ name, version, what, for: use }): Promise<PartReport> => {
      const found = await lookForTool(name);
      const remedy = `\`npm run ${use === "bench" ? "bench" : "setup"}\` builds ${name} ${version} with Go ${go.atLeast} into ${path.dirname(cachedToolPath({ name, version }))}`;
      const part = { name, what: `${what} ${version}`, use };
      if (found === undefined) return { ...part, state: "missing", remedy, expectedSeconds: go.expectedSeconds };
      if (found.from === "path") return { ...part, state: "on PATH", path: found.path };
      if (await checksumHolds(found.path)) return { ...part, state: "in the cache", path: found.path };
      return { ...part, state: "damaged", path: found.path, remedy, expectedSeconds: go.expectedSeconds };
    }),
  );
}

/** Needed where something is still to be built; the demo's machine is rebuilt whenever its sources change. */
async function examineGo(): Promise<PartReport> {
  const { go } = await readParts();
  const part = { name: "go", what: "builds servers and the demo's machine", use: "run" as const };
  const found = await lookForTool("go");
  if (found !== undefined) return { ...part, state: "on PATH", path: found.path };
  return { ...part, state: "missing", remedy: `Install Go ${go.atLeast} or later (https://go.dev/dl)` };
}

async function examineDebianPackages(): Promise<readonly PartReport[]> {
  const { debian } = await readParts();
  return Promise.all(
    debian.packages.map(async ({ name, provides, what, for: use }): Promise<PartReport> => {
      const paths = await Promise.all(provides.map(whereIs));
      const [first] = paths;
      if (first !== undefined && !paths.includes(undefined)) return { name, what, use, state: "on PATH", path: first };
      const remedy = `apt-get install --no-install-recommends ${name}`;
      return { name, what, use, state: "missing", remedy, expectedSeconds: debian.expectedSeconds };
    }),
  );
}

async function whereIs(program: string): Promise<string | undefined> {
  if (path.isAbsolute(program)) return (await isReadable(program)) ? program : undefined;
  return (await lookForTool(program))?.path;
}

async function checksumHolds(file: string): Promise<boolean> {
  const digest = createHash("sha256");
  await pipeline(createReadStream(file), digest);
  return (await readFile(`${file}.sha256`, "utf8")).startsWith(digest.digest("hex"));
}

async function examineCache(): Promise<DoctorReport["cache"]> {
  const folder = cacheFolder();
  await mkdir(folder, { recursive: true });
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const sizes = await Promise.all(
    entries
      .filter((entry) => entry.isFile())
      .map(async (entry) => (await stat(path.join(entry.parentPath, entry.name))).blocks * 512),
  );
  const { bavail, bsize } = await statfs(folder);
  return { folder, bytes: sizes.reduce((sum, size) => sum + size, 0), freeBytes: bavail * bsize };
}

function isThere(part: PartReport): boolean {
  return part.state === "on PATH" || part.state === "in the cache";
}

/** Parts of one kind come together, kinds beside each other. */
function seconds(missing: readonly PartReport[]): number {
  return Math.max(0, ...missing.map((one) => one.expectedSeconds ?? 0));
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}
