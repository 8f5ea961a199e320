/**
 * The vCenter for tests, built from tools/vsphere once per state of its sources, into the per-user cache.
 *
 * Two that build at the same time both finish, and the last one's program, which is the same, stays.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, mkdir, mkdtemp, readdir, readFile, rename, rm } from "node:fs/promises";
import path from "node:path";
import { promisify } from "node:util";
import { cacheFolder, findTool, isExecutable } from "../src/embedded/tools.ts";

export const SIMULATOR_SOURCES = path.join(import.meta.dirname, "..", "tools", "vsphere");

/** The program's path. The first build compiles govmomi, which takes about a minute on two cores; later ones are seconds. */
export async function buildVsphereSimulator(): Promise<string> {
  const digest = createHash("sha256");
  for (const name of (await readdir(SIMULATOR_SOURCES)).sort()) {
    if (/\.(go|mod|sum)$/.test(name))
      digest.update(`${name}\0`).update(await readFile(path.join(SIMULATOR_SOURCES, name)));
  }
  const folder = path.join(cacheFolder(), "vsphere-sim");
  const program = path.join(folder, digest.digest("hex").slice(0, 16), "vsphere-sim");
  if (await isExecutable(program)) return program;
  await mkdir(folder, { recursive: true });
  const draft = await mkdtemp(path.join(folder, "build-"));
  try {
    const built = path.join(draft, "vsphere-sim");
    const words = ["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", "-s -w", "-o", built, "."];
    await promisify(execFile)(await findTool("go"), words, {
      cwd: SIMULATOR_SOURCES,
      env: { ...process.env, CGO_ENABLED: "0", GOFLAGS: "" },
    });
    await chmod(built, 0o755);
    await mkdir(path.dirname(program), { recursive: true });
    await rename(built, program);
  } finally {
    await rm(draft, { recursive: true, force: true });
  }
  return program;
}
