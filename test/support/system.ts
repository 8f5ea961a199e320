/** The embedded installation, started for a test in a folder of its own and ended with it, whatever happens. */
import assert from "node:assert/strict";
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { createWriteStream, existsSync, globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { TestContext } from "node:test";
import { promisify } from "node:util";
import type { ApiClient } from "../../src/api/contract.ts";
import { createApiClient } from "../../src/api/client.ts";
import { apiAccess, isUp, readInstallation } from "../../src/embedded/installation.ts";
import { CONTROL_SITE, lostMarker, siteFolder } from "../../src/embedded/layout.ts";
import { identify, signal } from "../../src/embedded/process-identity.ts";
import { readSiteStatus } from "../../src/embedded/site-leader.ts";
import { siteProcessesAlive } from "../../src/embedded/site-processes.ts";
import { replayEverything } from "./replay.ts";

const run = promisify(execFile);
const PROGRAM = new URL("../../src/main/leeward.ts", import.meta.url).pathname;

export interface Answer {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface System {
  readonly state: string;
  readonly folder: string;
  readonly client: ApiClient;
  /** Run the program as a person would; never throws for an exit code. */
  leeward(...args: string[]): Promise<Answer>;
  /** Pids of a process by its name in the site ("tap" and "data-mover" are children of a role). */
  pids(site: "primary" | "secondary", name: string): number[];
  /** kill -9; returns how many. */
  kill(site: "primary" | "secondary", name: string): number;
}

export function runLeeward(args: readonly string[]): Promise<Answer> {
  return new Promise((resolve) => {
    execFile(process.execPath, [PROGRAM, ...args], { maxBuffer: 1 << 26 }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : 1;
      resolve({ code, stdout, stderr });
    });
  });
}

export async function startSystem(t: TestContext): Promise<System> {
  const folder = mkdtempSync(join(tmpdir(), "lw-"));
  const state = join(folder, "state");
  const dismissReaper = startReaper(state, folder);
  t.after(async () => {
    const stuck = await whatDoesNotReplay(state);
    const down = await runLeeward(["--state", state, "down"]);
    const left = (["primary", "secondary"] as const).flatMap((site) => siteProcessesAlive(siteFolder(state, site)));
    for (const one of left) signal(one, "SIGKILL");
    if (process.env["LEEWARD_KEEP"] === undefined) rmSync(folder, { recursive: true, force: true });
    dismissReaper();
    if (down.code !== 0 || left.length > 0) throw new Error(`down left ${left.length} processes: ${down.stderr}`);
    if (stuck.length > 0) throw new Error(`Histories that do not replay:\n${stuck.join("\n")}`);
  });
  const up = await runLeeward(["--state", state, "up", "--detach", "--json"]);
  if (up.code !== 0) throw new Error(`up failed with ${up.code}: ${up.stderr}\n${logsOf(state)}`);
  return {
    state,
    folder,
    client: createApiClient(apiAccess(state)),
    leeward: (...args) => runLeeward(["--state", state, ...args]),
    pids,
    kill: (site, name) => {
      const found = pids(site, name);
      for (const pid of found) {
        const identity = identify(pid);
        if (identity !== undefined) signal(identity, "SIGKILL");
      }
      return found.length;
    },
  };

  function pids(site: "primary" | "secondary", name: string): number[] {
    const managed = readSiteStatus(siteFolder(state, site))?.processes.find((one) => one.name === name)?.pid;
    if (managed !== undefined) return [managed];
    return siteProcessesAlive(siteFolder(state, site)).flatMap(({ pid }) =>
      commandOf(pid).includes(`/main/${name}.`) ? [pid] : [],
    );
  }
}

/** What ends the system when the test is killed itself: it waits for a word from us, and our death is the end of its input. */
function startReaper(state: string, folder: string): () => void {
  const work = 'read -r word || { "$1" "$2" --state "$3" down; rm -rf "$4"; }';
  const reaper = spawn("sh", ["-c", work, "sh", process.execPath, PROGRAM, state, folder], {
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
  });
  reaper.unref();
  (reaper.stdin as Socket).unref();
  return () => reaper.stdin.end("done\n");
}

/** Nothing to say where the site of the control plane does not run. */
async function whatDoesNotReplay(state: string): Promise<readonly string[]> {
  const installation = readInstallation(state);
  if (!isUp(installation) || existsSync(lostMarker(state, CONTROL_SITE))) return [];
  const { failures } = await until("the replay of all histories", 60_000, () =>
    replayEverything(installation.urls["temporal"]!),
  );
  return failures;
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return ""; // It ended.
  }
}

/** The ends of all logs of an installation that did not come up: its folder is gone by the time a person could look. */
function logsOf(state: string): string {
  return globSync(["up.log", "sites/*/logs/*.log"], { cwd: state })
    .map((name) => `--- ${name}\n${readFileSync(join(state, name), "utf8").slice(-1_500)}`)
    .join("\n");
}

/** Wait until `ask` answers something; a failed call counts as no answer and is told when time runs out. */
export async function until<T>(what: string, timeoutMs: number, ask: () => Promise<T | undefined | false>): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  let last: unknown;
  for (;;) {
    try {
      const answer = await ask();
      if (answer !== undefined && answer !== false) return answer;
    } catch (error) {
      last = error;
    }
    if (performance.now() > deadline) throw new Error(`Waited ${timeoutMs} ms for ${what}`, { cause: last });
    await sleep(150);
  }
}

/** Export the newest point and let foreign programs compare every block of it with the images. */
export async function assertReplicaEqual(system: System, group: string, images: readonly string[]): Promise<void> {
  const view = await system.client.group(group);
  const opened = await system.client.openExport(group, { point: "latest" });
  try {
    for (const [index, image] of images.entries()) {
      const id = view.disks[index]?.id;
      const disk = opened.disks.find((one) => one.diskId === id);
      assert.ok(disk !== undefined);
      const copy = join(system.folder, `copy${index}.img`);
      await run("nbdcopy", [disk.url, copy]);
      await run("cmp", [copy, image]);
    }
  } finally {
    await system.client.closeExport(opened.operationId);
  }
}

/** A raw image in which every block says which block it is, and of which image. */
export async function numberedImage(file: string, sizeBytes: number, label: number): Promise<void> {
  const stream = createWriteStream(file);
  const chunk = Buffer.alloc(1 << 20);
  for (let at = 0; at < sizeBytes; at += chunk.length) {
    for (let block = 0; block < chunk.length / 4096; block += 1)
      fillBlock(chunk.subarray(block * 4096, (block + 1) * 4096), at / 4096 + block, label);
    if (!stream.write(Buffer.from(chunk))) await new Promise<void>((resolve) => stream.once("drain", () => resolve()));
  }
  await new Promise<void>((resolve) => stream.end(() => resolve()));
}

/** Unlike its neighbours, and not compressible to nothing. */
function fillBlock(target: Buffer, block: number, label: number): void {
  let state = (Math.imul(block + 1, 2654435761) ^ Math.imul(label + 1, 40503)) >>> 0;
  for (let at = 0; at < 4096; at += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    target.writeUInt32LE(at % 64 === 0 ? block : state, at);
  }
}

/**
 * Somebody who writes to several disks over NBD without pause: numbered blocks at random places, each durable before the next one is begun,
 * and the same number to each disk in turn. Ends by itself when its standard input closes.
 */
export function startWriter(
  t: TestContext,
  urls: readonly string[],
  folder: string,
): { readonly child: ChildProcess; readonly stop: () => Promise<number> } {
  const script = join(folder, "writer.py");
  writeFileSync(script, WRITER);
  const child = spawn("/usr/bin/python3", [script, ...urls], { stdio: ["pipe", "pipe", "pipe"] });
  let told = "";
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (complaint += text));
  // Looked at as a whole: a chunk may end within a number, or be nothing but the end of a line.
  child.stdout.setEncoding("utf8").on("data", (text: string) => (told += text));
  // "close" comes after the last of the output, "exit" may come before it.
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  t.after(() => child.kill("SIGKILL"));
  return {
    child,
    stop: async () => {
      child.stdin.end();
      await ended;
      const written = Number(told.trim().split("\n").at(-1));
      if (child.exitCode !== 0 || written < RECORDS_MIN)
        throw new Error(`The writer ended with ${child.exitCode} after ${written} records: ${complaint}`);
      return written;
    },
  };
}

/** With fewer, nothing was shown. */
const RECORDS_MIN = 100;

const WRITER = `
import nbd, random, struct, sys, select, time
urls = sys.argv[1:]
random.seed(7)
def dial(url):
    born = time.monotonic()
    while True:
        try:
            h = nbd.NBD(); h.connect_uri(url); return h, h.get_size()
        except nbd.Error as error:
            if time.monotonic() - born > 120: raise SystemExit("cannot connect to %s: %s" % (url, error))
            time.sleep(0.05)
connected = [dial(u) for u in urls]
disks = [h for h, _ in connected]
sizes = [size for _, size in connected]
n = 0
born = time.monotonic(); longest = 0; dials = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    n += 1
    begun = time.monotonic()
    for i, url in enumerate(urls):
        block = random.randrange(sizes[i] // 4096)
        data = struct.pack("<QQ", n, block) * 256
        while True:
            # A killed tap comes back: dial again and write again, as a guest's driver does.
            try:
                disks[i].pwrite(data, block * 4096, nbd.CMD_FLAG_FUA); break
            except nbd.Error: disks[i], _ = dial(url); dials += 1
    longest = max(longest, time.monotonic() - begun)
    if n % 20 == 0: print(n, flush=True)
    time.sleep(0.002)
print(n, flush=True)
print("%d records in %.1f s, the longest took %.1f s, %d new connections" % (n, time.monotonic() - born, longest, dials), file=sys.stderr)
`;
