/**
 * The vCenter for tests, built from tools/vsphere once per state of its sources, into the per-user cache.
 *
 * One builds at a time: whoever holds the lock, an abstract socket that the kernel frees with its process. Two would only be slower.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, mkdir, mkdtemp, readdir, readFile, rename, rm } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { cacheFolder, findTool, isExecutable } from "../src/embedded/tools.ts";

export const SIMULATOR_SOURCES = path.join(import.meta.dirname, "..", "tools", "vsphere");

const SOCKET_NAME_LENGTH = 107;

/** The program's path. The first build compiles govmomi, which takes about a minute on two cores; later ones are seconds. */
export async function buildVsphereSimulator(): Promise<string> {
  const digest = createHash("sha256");
  for (const name of (await readdir(SIMULATOR_SOURCES)).sort()) {
    if (/\.(go|mod|sum)$/.test(name))
      digest.update(`${name}\0`).update(await readFile(path.join(SIMULATOR_SOURCES, name)));
  }
  const folder = path.join(cacheFolder(), "vsphere-sim");
  const key = digest.digest("hex").slice(0, 16);
  const program = path.join(folder, key, "vsphere-sim");
  for (;;) {
    if (await isExecutable(program)) return program;
    const lock = await takeLock(`\0leeward-${key}-${folder}`.slice(0, SOCKET_NAME_LENGTH));
    if (lock === undefined) await sleep(200);
    else {
      try {
        if (!(await isExecutable(program))) await build(folder, program);
      } finally {
        lock.close();
      }
    }
  }
}

async function build(folder: string, program: string): Promise<void> {
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
}

/** undefined when another process has it. */
async function takeLock(name: string): Promise<Server | undefined> {
  const server = createServer();
  server.unref();
  return await new Promise((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "EADDRINUSE" ? resolve(undefined) : reject(error),
    );
    server.listen(name, () => resolve(server));
  });
}
