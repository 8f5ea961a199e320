/** kill -9 of a role while a step runs, or SIGSTOP for longer than a heartbeat may be late; and whether the role is there to be struck. */
import { setTimeout as sleep } from "node:timers/promises";
import { SITES } from "../../src/embedded/layout.ts";
import { identify, signal, type ProcessIdentity } from "../../src/embedded/process-identity.ts";
import type { OperationState } from "../../src/api/contract.ts";
import type { Role } from "./kill-table.ts";
import type { System } from "./system.ts";

/** Heartbeats of movers may be 10 s late. */
const FROZEN_MS = 12_000;
const LOOK_MS = 20;

/** By the names that the embedded sites give them. */
const PROCESSES: Readonly<Record<Role, readonly string[]>> = {
  worker: ["worker"],
  "master target": ["master-target"],
  "process server": ["process-server"],
  S3: ["s3"],
  Redis: ["redis"],
  Temporal: ["temporal"],
  control: ["control"],
  "frozen mover": ["master-target", "data-mover"],
};

export interface Strike {
  readonly step: string;
  /** What the step was when it was struck, as far as anyone could see. */
  readonly state: string;
}

export interface Striker {
  /** Strike once for each step in `steps` that is seen; until the operation has ended. */
  follow(
    operationId: string,
    role: Role,
    steps: ReadonlySet<string>,
    during: (operation: OperationState) => Promise<void>,
  ): Promise<{ readonly operation: OperationState; readonly strikes: readonly Strike[] }>;
  strike(role: Role): boolean;
  /** Whoever is frozen runs again when this settles. */
  thawed(): Promise<void>;
}

export function striker(system: System, timeoutMs: number): Striker {
  const frozen = new Set<Promise<void>>();
  const targets = (role: Role): readonly ProcessIdentity[] =>
    SITES.flatMap((site) =>
      PROCESSES[role].flatMap((name) => system.pids(site, name).flatMap((pid) => identify(pid) ?? [])),
    );

  async function freeze(processes: readonly ProcessIdentity[]): Promise<void> {
    for (const one of processes) signal(one, "SIGSTOP");
    await sleep(FROZEN_MS);
    for (const one of processes) signal(one, "SIGCONT");
  }

  /** False when it is down, or frozen, already. */
  function strike(role: Role): boolean {
    const processes = targets(role);
    if (processes.length === 0 || frozen.size > 0) return false;
    if (role === "frozen mover") {
      const work = freeze(processes);
      frozen.add(work);
      void work.finally(() => frozen.delete(work));
    } else for (const one of processes) signal(one, "SIGKILL");
    return true;
  }

  return {
    strike,
    thawed: async () => void (await Promise.all(frozen)),
    async follow(operationId, role, steps, during) {
      const strikes: Strike[] = [];
      const deadline = performance.now() + timeoutMs;
      let last: unknown;
      for (;;) {
        try {
          const operation = await system.client.operation(operationId);
          last = operation;
          const next = operation.steps.find(
            ({ name, state }) =>
              steps.has(name) &&
              state !== "waiting" &&
              state !== "skipped" &&
              !strikes.some(({ step }) => step === name),
          );
          if (next !== undefined && operation.state === "running" && strike(role))
            strikes.push({ step: next.name, state: next.state });
          if (operation.state !== "running") return { operation, strikes };
          await during(operation);
        } catch (error) {
          last = error; // Whoever answers was struck: asked again.
        }
        if (performance.now() > deadline)
          throw new Error(`${operationId} has not ended within ${timeoutMs} ms: ${JSON.stringify(last)}`, {
            cause: last,
          });
        await sleep(LOOK_MS);
      }
    },
  };
}
