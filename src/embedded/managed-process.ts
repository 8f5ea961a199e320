/**
 * One process of a site: started when what it needs is there, restarted when it dies, ended with its site.
 *
 * ```
 *  waiting ──files there──► starting ──ready──► running ──exit──► backing off ──► starting
 *                               └───────────────exit────────────────┘
 * ```
 *
 * Its standard output and error go to one log file. It stays in the process group of the site's leader, so that a whole site can be
 * lost with one signal.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, writeSync } from "node:fs";
import { connect } from "node:net";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Log } from "#ports/log.ts";
import { identify } from "./process-identity.ts";
import { SITE_MARK } from "./site-processes.ts";

export interface ProcessSpec {
  readonly name: string;
  readonly command: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  readonly folder: string;
  readonly logFile: string;
  /** Files that must be there before it starts: its configuration, its certificate. */
  readonly needs: readonly string[];
  /** Ready when this port on the loopback address takes a connection; at once when left out. */
  readonly readyPort?: number;
}

export type ProcessState = "waiting" | "starting" | "running" | "backing-off" | "stopped";

export interface ManagedProcess {
  readonly spec: ProcessSpec;
  state(): {
    readonly state: ProcessState;
    readonly pid?: number;
    readonly started?: string;
    readonly restarts: number;
  };
  stop(graceMs: number): Promise<void>;
}

const RESTART_DELAY_MS_MIN = 100;
const RESTART_DELAY_MS_MAX = 5_000;
/** A process that lived this long starts its next life without delay. */
const LONG_LIFE_MS = 10_000;

export function manage(
  spec: ProcessSpec,
  { log, onChange }: { readonly log: Log; readonly onChange: () => void },
): ManagedProcess {
  const stopping = new AbortController();
  let state: ProcessState = "waiting";
  let child: ChildProcess | undefined;
  let restarts = 0;
  const move = (next: ProcessState): void => {
    state = next;
    onChange();
  };
  const life = run();
  return {
    spec,
    state: () => {
      const identity = child?.pid === undefined ? undefined : identify(child.pid);
      return { state, restarts, ...(identity ?? {}) };
    },
    stop: async (graceMs) => {
      stopping.abort();
      if (child !== undefined && child.exitCode === null && child.signalCode === null) {
        child.kill("SIGTERM");
        const timer = setTimeout(() => child?.kill("SIGKILL"), graceMs);
        await life;
        clearTimeout(timer);
      }
      await life;
    },
  };

  async function run(): Promise<void> {
    let delayMs = RESTART_DELAY_MS_MIN;
    while (!stopping.signal.aborted) {
      while (!spec.needs.every((file) => existsSync(file)) && !stopping.signal.aborted) await pause(100);
      if (stopping.signal.aborted) break;
      const bornAt = performance.now();
      const exit = start();
      move("starting");
      const ready = waitUntilReady().then((isReady) => {
        if (isReady) move("running");
      });
      const how = await exit;
      await ready;
      if (stopping.signal.aborted) break;
      restarts += 1;
      delayMs =
        performance.now() - bornAt > LONG_LIFE_MS ? RESTART_DELAY_MS_MIN : Math.min(delayMs * 2, RESTART_DELAY_MS_MAX);
      log.warn("Process ended, starting it again", { process: spec.name, how, delayMs, log: spec.logFile });
      move("backing-off");
      await pause(delayMs);
    }
    move("stopped");
  }

  function start(): Promise<string> {
    mkdirSync(spec.folder, { recursive: true });
    mkdirSync(dirname(spec.logFile), { recursive: true });
    const output = openSync(spec.logFile, "a", 0o600);
    writeSync(output, `\n--- ${new Date().toISOString()} start ${spec.name}\n`);
    const [program, ...args] = spec.command;
    if (program === undefined) throw new RangeError(`Process "${spec.name}" has no command`);
    const born = spawn(program, args, {
      cwd: spec.folder,
      env: { ...basicEnvironment(), ...spec.environment },
      stdio: ["ignore", output, output],
    });
    closeSync(output);
    child = born;
    return new Promise((resolve) => {
      born.once("error", (error) => resolve(error.message));
      born.once("exit", (code, signal) => resolve(signal ?? `exit code ${code}`));
    });
  }

  async function waitUntilReady(): Promise<boolean> {
    const mine = child;
    while (mine === child && mine?.exitCode === null && mine.signalCode === null && !stopping.signal.aborted) {
      if (spec.readyPort === undefined || (await accepts(spec.readyPort))) return true;
      await pause(50);
    }
    return false;
  }

  async function pause(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: stopping.signal }).catch(() => undefined); // Woken early by stop(): the loop looks.
  }
}

/** What a role may see of our own environment: nothing that could carry a secret of another role or site. */
function basicEnvironment(): Record<string, string> {
  const names = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_CACHE_HOME", "NODE_EXTRA_CA_CERTS", SITE_MARK];
  return Object.fromEntries(
    names.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]])),
  );
}

export function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: "127.0.0.1", port, timeout: 1_000 });
    const settle = (answer: boolean): void => {
      socket.destroy();
      resolve(answer);
    };
    socket.once("connect", () => settle(true));
    socket.once("error", () => settle(false));
    socket.once("timeout", () => settle(false));
  });
}
