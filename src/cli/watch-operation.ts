/** Follow an operation to its end, telling each step as it happens. */
import { setTimeout as sleep } from "node:timers/promises";
import { Fault, faultFromJson, isFault } from "#model/fault.ts";
import type { OperationState } from "../api/contract.ts";
import type { ApiClient } from "../api/contract.ts";
import { parseDuration, type WaitOptions } from "./context.ts";
import { duration, type Output } from "./output.ts";

const POLL_MS = 1_000;

/**
 * Returns the ended operation.
 * Throws the operation's own fault when it failed; TIMED_OUT when it still runs after `timeoutMs`, with the command to go on watching.
 */
export async function watchOperation(
  client: ApiClient,
  operationId: string,
  {
    say,
    timeoutMs,
    stop,
  }: { readonly say: (line: string) => void; readonly timeoutMs: number; readonly stop: AbortSignal },
): Promise<OperationState> {
  const deadline = performance.now() + timeoutMs;
  const told = new Set<string>();
  /** A worker or `control` that is being replaced does not end the watching: the operation goes on without us. */
  const ask = async (): Promise<OperationState | undefined> => {
    try {
      return await client.operation(operationId, { waitMs: POLL_MS });
    } catch (error) {
      if (!isFault(error) || !error.retryable || stop.aborted || performance.now() > deadline) throw error;
      say(`  no answer (${error.code}), asking again`);
      await sleep(POLL_MS);
      return undefined;
    }
  };
  for (;;) {
    const operation = await ask();
    if (operation === undefined) continue;
    for (const step of operation.steps) {
      const line = `${step.name}: ${step.state}${step.detail === undefined ? "" : ` (${step.detail})`}`;
      if (step.state === "waiting" || told.has(line)) continue;
      told.add(line);
      const took =
        step.startedAtMs !== undefined && step.endedAtMs !== undefined
          ? ` ${duration(step.endedAtMs - step.startedAtMs)}`
          : "";
      say(`  ${line}${took}`);
    }
    if (operation.state === "done") return operation;
    if (operation.state !== "running") throw failureOf(operation);
    if (stop.aborted)
      throw new Fault("INTERRUPTED", `Stopped watching; "${operationId}" goes on`, {
        hint: `See it with \`leeward operation watch ${operationId}\``,
      });
    if (performance.now() > deadline) {
      throw new Fault(
        "TIMED_OUT",
        `"${operationId}" still runs${operation.waitsFor === undefined ? "" : `, waiting for ${operation.waitsFor}`}`,
        {
          hint: `Go on watching with \`leeward operation watch ${operationId}\``,
        },
      );
    }
  }
}

function failureOf(operation: OperationState): Fault {
  if (operation.fault !== undefined) return faultFromJson({ details: {}, ...operation.fault });
  return new Fault("OPERATION_FAILED", `"${operation.operationId}" ended as ${operation.state}`, {
    hint: `See its steps with \`leeward operation show ${operation.operationId}\``,
  });
}

/** Start something, then wait for it unless `--no-wait`. Prints the operation either way. */
export async function startAndWatch(
  start: () => Promise<{ readonly operationId: string }>,
  client: ApiClient,
  output: Output,
  options: WaitOptions & { readonly stop: AbortSignal },
): Promise<void> {
  const { operationId } = await start();
  if (!options.wait) {
    output.answer(
      { operationId },
      (value) => `${value.operationId}\nSee it with \`leeward operation watch ${value.operationId}\``,
    );
    return;
  }
  const timeoutMs = options.timeout === undefined ? Number.POSITIVE_INFINITY : parseDuration(options.timeout);
  const operation = await watchOperation(client, operationId, { say: output.say, timeoutMs, stop: options.stop });
  output.answer(operation, describeOperation);
}

export function describeOperation(operation: OperationState): string {
  const took = operation.endedAtMs === undefined ? "" : ` in ${duration(operation.endedAtMs - operation.startedAtMs)}`;
  const head = `${operation.operationId}: ${operation.kind} of "${operation.plan?.name ?? operation.groupId}" ${operation.state}${took}`;
  const steps = operation.steps.map(
    (step) => `  ${step.state.padEnd(8)} ${step.name}${step.detail === undefined ? "" : `: ${step.detail}`}`,
  );
  const machines = (operation.machines ?? []).map(
    (machine) =>
      `  machine ${machine.name} at ${machine.site}${machine.forwards.map((one) => `, port ${one.guestPort} at 127.0.0.1:${one.hostPort}`).join("")}`,
  );
  const waits =
    operation.waitsFor === undefined || operation.state !== "running" ? [] : [`  waits for ${operation.waitsFor}`];
  return [head, ...steps, ...waits, ...machines].join("\n");
}
