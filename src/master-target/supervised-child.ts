/**
 * A child process that is kept running: started again with growing pauses when it ends, set up anew each time, and ended with us.
 *
 * ```
 *   starting ── configured ──► ready ── exit ──► waiting ── pause over ──► starting
 *       └──────── exit or failed set-up ──────────┘                 stop(): ended, from anywhere
 * ```
 *
 * A child leaves by itself when its IPC channel closes, so none outlives a killed master target by more than a moment.
 */
import { fork, type ChildProcess } from "node:child_process";
import { Fault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Log } from "#ports/log.ts";
import { openChildChannel, type ChannelHandlers, type ChildChannel } from "./child-channel.ts";

export interface SupervisedChild {
  /** Waits for a child that is set up (at most `timeoutMs`), then calls it. Throws its Faults, PROCESS_DIED, TIMED_OUT. */
  call(method: string, params: JsonObject, options?: { readonly timeoutMs?: number }): Promise<JsonValue>;
  /** The fault of the last failed set-up; undefined once it is ready. */
  readonly fault: Fault | undefined;
  readonly pid: number | undefined;
  stop(): Promise<void>;
}

export interface ChildSpec {
  readonly name: string;
  /** The program: an absolute path. */
  readonly script: string;
  readonly nodeFlags?: readonly string[];
  readonly handlers: ChannelHandlers;
  readonly log: Log;
  /** Give a fresh child what it needs. Throwing ends it, and it is tried again. */
  setUp(channel: ChildChannel): Promise<void>;
}

const PAUSE_MS_MIN = 50;
const PAUSE_MS_MAX = 5_000;
/** A child that ran this long did not die of its start. */
const STEADY_MS = 10_000;
const EXIT_MS = 10_000;

export function superviseChild(spec: ChildSpec): SupervisedChild {
  const log = spec.log.child({ child: spec.name });
  let stopping = false;
  let process_: ChildProcess | undefined;
  let channel: ChildChannel | undefined;
  let fault: Fault | undefined;
  let pauseMs = PAUSE_MS_MIN;
  let wake = (): void => undefined;
  let waiters: (() => void)[] = [];

  const once = async (): Promise<void> => {
    const startedAt = performance.now();
    const child = fork(spec.script, [], {
      execArgv: [...(spec.nodeFlags ?? [])],
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    process_ = child;
    const exited = new Promise<string>((resolve) => {
      child.once("exit", (code, signal) => resolve(signal ?? `exit code ${code}`));
      child.once("error", (error) => resolve(error.message));
    });
    const opened = openChildChannel(child, { handlers: spec.handlers, log });
    try {
      await Promise.race([
        spec.setUp(opened),
        exited.then((how) =>
          Promise.reject(new Fault("PROCESS_DIED", `The ${spec.name} process ended at its start: ${how}`)),
        ),
      ]);
      channel = opened;
      fault = undefined;
      for (const waiter of waiters.splice(0)) waiter();
      log.info("Child is ready", { pid: child.pid });
    } catch (error) {
      fault =
        error instanceof Fault
          ? error
          : new Fault("PROCESS_DIED", `The ${spec.name} process could not be set up: ${String(error)}`, {
              cause: error,
            });
      log.error("Child could not be set up", { fault: fault.toJSON() });
      if (child.connected) child.disconnect();
      child.kill("SIGKILL");
    }
    const how = await exited;
    channel = undefined;
    process_ = undefined;
    if (performance.now() - startedAt > STEADY_MS) pauseMs = PAUSE_MS_MIN;
    if (!stopping) log.warn("Child ended and is started again", { how, pauseMs });
  };

  const loop = (async () => {
    while (!stopping) {
      await once();
      if (stopping) break;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, pauseMs);
        wake = () => (clearTimeout(timer), resolve());
      });
      pauseMs = Math.min(pauseMs * 2, PAUSE_MS_MAX);
    }
  })();

  const ready = (timeoutMs: number): Promise<ChildChannel> => {
    if (channel) return Promise.resolve(channel);
    return new Promise((resolve, reject) => {
      const waiter = (): void => {
        clearTimeout(timer);
        if (channel) resolve(channel);
        else reject(new Fault("PROCESS_DIED", `The ${spec.name} process is being stopped`));
      };
      const timer = setTimeout(() => {
        waiters = waiters.filter((other) => other !== waiter);
        reject(fault ?? new Fault("TIMED_OUT", `The ${spec.name} process was not ready within ${timeoutMs} ms`));
      }, timeoutMs);
      waiters.push(waiter);
    });
  };

  return {
    async call(method, params, options = {}) {
      const timeoutMs = options.timeoutMs ?? 60_000;
      if (stopping) throw new Fault("PROCESS_DIED", `The ${spec.name} process is being stopped`);
      return (await ready(timeoutMs)).call(method, params, { timeoutMs });
    },
    get fault() {
      return fault;
    },
    get pid() {
      return process_?.pid;
    },
    async stop() {
      stopping = true;
      for (const waiter of waiters.splice(0)) waiter();
      wake();
      const child = process_;
      if (child?.connected) child.disconnect();
      const timer = setTimeout(() => child?.kill("SIGKILL"), EXIT_MS);
      await loop;
      clearTimeout(timer);
    },
  };
}
