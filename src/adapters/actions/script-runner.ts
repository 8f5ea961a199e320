/**
 * Runs a plan's scripts: in a process group and a folder of its own, with an environment that has nothing of ours, bounded in time and in what it may
 * say.
 *
 * Invariants:
 * - what a script made is on disk before anybody hears of it, under the id of its attempt: asked again, the answer is read, and nothing runs twice;
 * - an attempt whose worker died is ended, with all that it started, before the next one begins: two never run beside each other here;
 * - as root it runs as nobody; otherwise as the worker's own user, who cannot become another (docs/decisions/0024).
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat as statOf, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Fault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { BoundScript } from "#model/plan/resolved-plan.ts";
import type { ActionAnswer } from "#ports/action-runner.ts";
import { createDurableFiles } from "../file/durable-files.ts";

const files = createDurableFiles({ fullHint: "Free space under the worker's state folder" });

const OUTPUT_BYTES = 4_096;
const NOBODY = 65_534;
/** Answers of attempts are kept this long: nobody repeats one after that. */
const KEPT_MS = 7 * 86_400_000;
/**
 * No core files, files of at most 1 GiB (blocks of 512 bytes), 1,024 open at a time. It begins with the first line of its input, which comes when it is
 * known whom to end: a worker that dies before has started nothing. `read` takes no byte behind the line.
 */
const LIMITS = 'ulimit -c 0; ulimit -f 2097152; ulimit -n 1024; read -r _ || exit 125; exec "$@"';

export interface ScriptRequest {
  readonly id: string;
  readonly call: BoundScript;
  readonly context: JsonObject;
}

/** A pid alone is recycled by the kernel, a pid with its start time is not. */
interface Started {
  readonly pid: number;
  readonly at: string;
  /** Its folder: goes with it. */
  readonly place: string;
}

interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly late: boolean;
  readonly output: string;
}

/** `folder`: where attempts are remembered. */
export function scriptRunner(folder: string) {
  return async (request: ScriptRequest, signal: AbortSignal): Promise<ActionAnswer> => {
    const memory = join(folder, createHash("sha256").update(request.id).digest("hex").slice(0, 32));
    await forgetOld(folder);
    await mkdir(memory, { recursive: true, mode: 0o700 });
    const known = await readJson<Ended>(join(memory, "ended.json"));
    const ended = known ?? (await runOnce(request, memory, signal));
    return answerOf(request, ended);
  };
}

async function runOnce({ id, call, context }: ScriptRequest, memory: string, signal: AbortSignal): Promise<Ended> {
  const before = await readJson<Started>(join(memory, "started.json"));
  if (before !== undefined) {
    await endGroup(before);
    await rm(before.place, { recursive: true, force: true });
  }
  signal.throwIfAborted();
  const place = await mkdtemp(join(tmpdir(), "leeward-action-"));
  try {
    await chmod(place, 0o755);
    const file = join(place, "script");
    await writeFile(file, call.text, { mode: 0o755 });
    const ended = await runProcess(call, { id, place, file, context, memory, signal });
    await writeJson(join(memory, "ended.json"), ended);
    return ended;
  } finally {
    await rm(place, { recursive: true, force: true });
  }
}

async function runProcess(
  call: BoundScript,
  given: {
    readonly id: string;
    readonly place: string;
    readonly file: string;
    readonly context: JsonObject;
    readonly memory: string;
    readonly signal: AbortSignal;
  },
): Promise<Ended> {
  const { id, place, file, context, memory, signal } = given;
  const command = call.text.startsWith("#!") ? [file] : ["/bin/sh", file];
  const isRoot = process.getuid?.() === 0;
  const child = spawn("/bin/sh", ["-c", LIMITS, "sh", ...command], {
    cwd: place,
    detached: true,
    env: environmentOf(id, context),
    stdio: ["pipe", "pipe", "pipe"],
    ...(isRoot ? { uid: NOBODY, gid: NOBODY } : {}),
  });
  let output = Buffer.alloc(0);
  const take = (piece: Buffer): void => {
    output = Buffer.concat([output, piece]).subarray(-OUTPUT_BYTES);
  };
  child.stdout.on("data", take);
  child.stderr.on("data", take);
  // A script that does not read its input is none of our business.
  child.stdin.on("error", () => undefined);
  let late = false;
  const { pid } = child;
  const kill = (): void => {
    if (pid !== undefined) killGroup(pid);
  };
  const timer = setTimeout(() => {
    late = true;
    kill();
  }, call.timeoutMs);
  signal.addEventListener("abort", kill, { once: true });
  try {
    const exit = new Promise<{ code: number | null; signal: string | null }>((resolve, reject) => {
      child.once("error", reject);
      // Not "close": something that it left running may hold its output open.
      child.once("exit", (code, name) => resolve({ code, signal: name }));
    });
    exit.catch(() => undefined); // Awaited below.
    const at = pid === undefined ? undefined : await startOf(pid);
    if (pid !== undefined && at !== undefined) await writeJson(join(memory, "started.json"), { pid, at, place });
    child.stdin.end(`begin\n${JSON.stringify(context)}\n`);
    const { code, signal: name } = await exit;
    // What it left in the background goes with it.
    kill();
    signal.throwIfAborted();
    await settled(child.stdout);
    return { code, signal: name, late, output: output.toString("utf8") };
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", kill);
    kill();
    child.stdout.destroy();
    child.stderr.destroy();
  }
}

function environmentOf(id: string, context: JsonObject): Record<string, string> {
  const environment: Record<string, string> = {
    PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    LANG: "C.UTF-8",
    LEEWARD_ID: id,
  };
  for (const [name, value] of Object.entries(context))
    if (typeof value === "string" || typeof value === "number" || typeof value === "boolean")
      environment[`LEEWARD_${name.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()}`] = `${value}`;
  return environment;
}

function answerOf({ call }: ScriptRequest, { code, signal, late, output }: Ended): ActionAnswer {
  if (code === 0 && !late) return { outcome: "exit 0", output };
  const how = late
    ? `did not end within ${call.timeoutMs / 1_000} s and was ended`
    : code === null
      ? `was ended by ${signal ?? "a signal"}`
      : `ended with exit code ${code}`;
  throw new Fault("ACTION_FAILED", `Script "${call.script}" ${how}`, {
    details: { script: call.script, code: code ?? -1, output },
    hint:
      output.trim() === ""
        ? "It said nothing"
        : `It said: ${output.trim().split("\n").slice(-3).join(" | ").slice(-500)}`,
  });
}

function killGroup(pid: number): void {
  try {
    process.kill(-pid, "SIGKILL");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

async function endGroup({ pid, at }: Started): Promise<void> {
  for (let tries = 0; (await startOf(pid)) === at && tries < 100; tries += 1) {
    killGroup(pid);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Boot and start time of a living process. Source: proc(5), field 22 of stat. */
async function startOf(pid: number): Promise<string | undefined> {
  let stat: string;
  try {
    stat = await readFile(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined; // No such process: the answer, not an error.
  }
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  if (fields[0] === "Z" || fields[0] === "X") return undefined;
  return `${(await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim()}/${fields[19]}`;
}

/** Its output has ended, or does not end by itself soon. */
async function settled(stream: NodeJS.ReadableStream & { readonly readableEnded: boolean }): Promise<void> {
  for (let tries = 0; !stream.readableEnded && tries < 10; tries += 1)
    await new Promise((resolve) => setTimeout(resolve, 10));
}

async function forgetOld(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  for (const name of await readdir(folder)) {
    const path = join(folder, name);
    const { mtimeMs } = await statOf(path);
    if (performance.timeOrigin + performance.now() - mtimeMs > KEPT_MS)
      await rm(path, { recursive: true, force: true });
  }
}

async function readJson<T>(path: string): Promise<T | undefined> {
  const text = await files.read(path);
  return text === undefined ? undefined : (JSON.parse(text) as T); // Written by us, whole or not at all.
}

async function writeJson(path: string, value: unknown): Promise<void> {
  await files.write(path, JSON.stringify(value));
}
