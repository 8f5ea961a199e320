/**
 * The demo's machine: a Linux that boots through its own boot loader from its own disk in a few seconds, has a second disk, and
 * runs a ledger (guest/ledgerd) by which anyone can see what a crash or a failover lost.
 *
 * Built once per user into the cache, under a key made of everything in guest/: a change there makes a new one. A folder with
 * its final name is complete; it is filled under another name first.
 *
 * Source: docs/guest.md
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Fault } from "#model/fault.ts";
import { cacheFolder, findTool, isReadable } from "./tools.ts";

const run = promisify(execFile);
const sources = fileURLToPath(new URL("../../guest/", import.meta.url));
/** The system disk's only partition. */
const PARTITION_OFFSET = 1 << 20;

export interface GuestTemplates {
  readonly systemImage: string;
  readonly dataImage: string;
  /** The ledger program for this host: `ledgerd verify FILE…`. */
  readonly ledgerd: string;
}

export interface GuestImages {
  readonly system: string;
  readonly data: string;
}

export interface GuestOptions {
  /** Records a second; 0: as many as both disks sync. Default 10. */
  readonly recordsPerSecond?: number;
}

/**
 * Fresh raw images in `folder` (made if missing): `system.img` and `data.img`, sparse. Existing ones are replaced.
 *
 * Throws: TOOL_MISSING, OPERATION_FAILED with the end of the build's output.
 */
export async function createGuestImages(folder: string, options: GuestOptions = {}): Promise<GuestImages> {
  const templates = await ensureGuestTemplates();
  await mkdir(folder, { recursive: true });
  const images = { system: path.join(folder, "system.img"), data: path.join(folder, "data.img") };
  await copySparse(templates.systemImage, images.system);
  await copySparse(templates.dataImage, images.data);
  if (options.recordsPerSecond !== undefined) await configureLedger(images.system, options.recordsPerSecond);
  return images;
}

/** Build the guest unless the cache has it. */
export async function ensureGuestTemplates(): Promise<GuestTemplates> {
  const folder = path.join(cacheFolder(), "guest", await contentKey());
  const templates = {
    systemImage: path.join(folder, "system.img"),
    dataImage: path.join(folder, "data.img"),
    ledgerd: path.join(folder, "ledgerd"),
  };
  if (!(await isReadable(templates.ledgerd))) await build(folder);
  return templates;
}

async function build(folder: string): Promise<void> {
  if (process.platform !== "linux" || process.arch !== "x64") {
    throw new Fault(
      "TOOL_MISSING",
      `The demo's machine is built on Linux on x64, and this is ${process.platform} on ${process.arch}`,
      {
        hint: "Protect images of your own instead: leeward group protect NAME --disk tap:IMAGE",
      },
    );
  }
  const tools = ["go", "cpio", "grub-mkimage", "sfdisk", "mke2fs", "debugfs", "busybox", "dpkg-deb"];
  for (const tool of tools) await findTool(tool);
  await mkdir(path.dirname(folder), { recursive: true });
  const draft = await mkdtemp(`${folder}.draft-`);
  try {
    const kernel = await ensureKernel();
    const ledgerd = path.join(draft, "ledgerd");
    const flags = ["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", ledgerd, "."];
    await runStep(await findTool("go"), flags, {
      cwd: path.join(sources, "ledgerd"),
      env: { CGO_ENABLED: "0", GOFLAGS: "" },
    });
    await runStep(path.join(sources, "build.sh"), [kernel, ledgerd, draft]);
    await publish(draft, folder);
  } finally {
    await rm(draft, { recursive: true, force: true });
  }
}

/** Debian's cloud kernel with the modules that the guest loads; about 11 MB. */
async function ensureKernel(): Promise<string> {
  const script = path.join(sources, "fetch-kernel.sh");
  const key = createHash("sha256")
    .update(await readFile(script))
    .digest("hex")
    .slice(0, 16);
  const folder = path.join(cacheFolder(), "guest", `kernel-${key}`);
  if (await isReadable(path.join(folder, "version"))) return folder;
  const draft = await mkdtemp(`${folder}.draft-`);
  try {
    await runStep(script, [draft]);
    await publish(draft, folder);
  } finally {
    await rm(draft, { recursive: true, force: true });
  }
  return folder;
}

/** Two builds at once are harmless: the second one finds the place taken by an equal one. */
async function publish(draft: string, folder: string): Promise<void> {
  try {
    await rename(draft, folder);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "ENOTEMPTY" && code !== "EEXIST") throw error;
  }
}

async function contentKey(): Promise<string> {
  const digest = createHash("sha256");
  const entries = await readdir(sources, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => path.join(entry.parentPath, entry.name));
  for (const file of files.sort()) digest.update(`${path.relative(sources, file)}\0`).update(await readFile(file));
  return digest.digest("hex").slice(0, 16);
}

async function copySparse(from: string, to: string): Promise<void> {
  await rm(to, { force: true });
  await runStep("cp", ["--sparse=always", "--reflink=auto", from, to]);
}

/** Rewrites one file in the image's file system, without a mount. */
async function configureLedger(image: string, recordsPerSecond: number): Promise<void> {
  if (!(recordsPerSecond >= 0)) throw new RangeError(`recordsPerSecond ${recordsPerSecond}`);
  const settings = `${image}.ledger.conf`;
  await writeFile(settings, `hz=${recordsPerSecond}\nport=8080\n`);
  const commands = `${image}.debugfs`;
  await writeFile(commands, `rm /etc/ledger.conf\nwrite ${settings} /etc/ledger.conf\n`);
  try {
    await runStep(await findTool("debugfs"), ["-w", "-f", commands, `${image}?offset=${PARTITION_OFFSET}`]);
  } finally {
    await rm(settings, { force: true });
    await rm(commands, { force: true });
  }
}

async function runStep(
  command: string,
  words: readonly string[],
  options: { readonly cwd?: string; readonly env?: NodeJS.ProcessEnv } = {},
): Promise<void> {
  try {
    await run(command, words, { ...options, env: { ...process.env, ...options.env }, maxBuffer: 64 << 20 });
  } catch (cause) {
    const { stdout = "", stderr = "" } = cause as { stdout?: string; stderr?: string };
    const tail = `${stdout}${stderr}`.trimEnd().split("\n").slice(-10).join("\n");
    throw new Fault("OPERATION_FAILED", `Making the demo's machine failed in "${path.basename(command)}": ${tail}`, {
      cause,
      hint: "Run `leeward doctor`; it says what is missing on this machine",
    });
  }
}
