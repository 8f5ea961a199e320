/** The whole embedded system for a benchmark, in a folder that is removed afterwards. */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { createApiClient } from "../src/api/client.ts";
import type { ApiClient, GroupView } from "../src/api/contract.ts";
import { apiAccess } from "../src/embedded/installation.ts";

const run = promisify(execFile);
const PROGRAM = new URL("../src/main/leeward.ts", import.meta.url).pathname;

export interface BenchSystem extends AsyncDisposable {
  readonly state: string;
  readonly client: ApiClient;
  leeward(...args: string[]): Promise<{ readonly stdout: string }>;
}

export async function startBenchSystem(): Promise<BenchSystem> {
  const folder = mkdtempSync(join(tmpdir(), "lw-bench-"));
  const state = join(folder, "state");
  const leeward = (...args: string[]) =>
    run(process.execPath, [PROGRAM, "--state", state, ...args], { maxBuffer: 1 << 24 });
  await leeward("up", "--detach");
  return {
    state,
    client: createApiClient(apiAccess(state)),
    leeward,
    [Symbol.asyncDispose]: async () => {
      await leeward("down");
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

export async function waitForGroup(
  client: ApiClient,
  group: string,
  condition: (view: GroupView) => boolean,
  timeoutMs = 600_000,
): Promise<GroupView> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const view = await client.group(group);
    if (condition(view)) return view;
    if (performance.now() > deadline) throw new Error(`Group "${group}" is still ${view.phase} after ${timeoutMs} ms`);
    await sleep(50);
  }
}

export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

/** One line of the result, with what it should be; sets the exit code when it is not. */
export function verdict(
  what: string,
  value: number,
  goal: { readonly atMost?: number; readonly atLeast?: number },
  note = "",
): void {
  const held = value <= (goal.atMost ?? Number.POSITIVE_INFINITY) && value >= (goal.atLeast ?? 0);
  const wanted = goal.atMost === undefined ? `≥ ${goal.atLeast}` : `≤ ${goal.atMost}`;
  console.log(
    `${what.padEnd(46)} ${value.toFixed(3).padStart(8)}  ${held ? "held  " : "MISSED"} (goal ${wanted}${note === "" ? "" : `; ${note}`})`,
  );
  if (!held) process.exitCode = 1;
}
