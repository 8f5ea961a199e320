/** Activities that wait for something outside: taps, a booted machine, a shut-down, the end of a workflow. All bounded, all repeatable. */
import { Context } from "@temporalio/activity";
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { Hypervisor, Machine } from "#ports/hypervisor.ts";
import type { ProcessServer } from "#ports/process-server.ts";
import type { DiskReport } from "#ports/replication.ts";
import type { Activities, FoundMachine } from "./contract.ts";

const POLL_MS = 500;
const READY_POLL_MS = 200;
const CLOSED_POLL_MS = 2_000;
const CLOSED_WAIT_MS = 3_600_000;
/** A machine that has been running for this long without a port to ask counts as started. */
const SETTLED_MS = 1_000;

export async function awaitTaps(
  processServer: ProcessServer,
  clock: Clock,
  input: Parameters<Activities["awaitTaps"]>[0],
): Promise<readonly DiskReport[]> {
  const end = clock.monotonic() + input.timeoutMs;
  let missing: readonly string[] = input.diskIds;
  let last: Fault | undefined;
  for (;;) {
    try {
      const state = await processServer.groupState({ groupId: input.groupId });
      if (state.fault !== undefined && state.state === "failed")
        last = new Fault(
          "SOURCE_UNREACHABLE",
          `${state.fault.code}: ${state.fault.message}`,
          state.fault.hint === undefined ? {} : { hint: state.fault.hint },
        );
      const serving = state.disks.filter((disk) => disk.tapUrl !== undefined && disk.tapUrl !== "");
      missing = input.diskIds.filter((diskId) => !serving.some((disk) => disk.diskId === diskId));
      if (missing.length === 0) return serving.filter((disk) => input.diskIds.includes(disk.diskId));
    } catch (error) {
      // Not there yet is what we wait for: the order reaches the process server when it connects.
      if (!isFault(error) || !(error.retryable || error.code === "NOT_FOUND")) throw error;
      last = error;
    }
    if (clock.monotonic() >= end) {
      throw new Fault(
        "AGENT_UNREACHABLE",
        `No tap serves ${missing.map((id) => `"${id}"`).join(", ")}, expected one for each disk within ${Math.round(input.timeoutMs / 1_000)} s${last === undefined ? "" : ` (${last.code}: ${last.message})`}`,
        {
          hint: "Start the agent on that machine, and the process server of its site, then protect again",
          ...(last === undefined ? {} : { cause: last }),
        },
      );
    }
    await pause(clock, POLL_MS);
  }
}

export async function awaitReady(
  hypervisor: Hypervisor,
  answers: (hostPort: number) => Promise<boolean>,
  clock: Clock,
  input: Parameters<Activities["awaitReady"]>[0],
): Promise<{ readonly ready: boolean; readonly running: boolean; readonly detail: string }> {
  const end = clock.monotonic() + input.timeoutMs;
  const begun = clock.monotonic();
  for (;;) {
    const machine = await inspect(hypervisor, input.machineId);
    const running = machine?.power === "running";
    if (running && machine !== undefined) {
      for (const { hostPort, guestPort } of machine.forwards) {
        if (await answers(hostPort))
          return { ready: true, running, detail: `port ${guestPort} answers at 127.0.0.1:${hostPort}` };
      }
      if (machine.forwards.length === 0 && clock.monotonic() - begun >= SETTLED_MS)
        return { ready: true, running, detail: "runs; it publishes no port to ask" };
    } else if (machine !== undefined && machine.startedAtMs !== undefined) {
      return {
        ready: false,
        running: false,
        detail: `powered off by itself; its console ends with "${machine.consoleTail.slice(-200)}"`,
      };
    }
    if (clock.monotonic() >= end)
      return { ready: false, running, detail: running ? "runs, but no published port answers yet" : "is not running" };
    await pause(clock, READY_POLL_MS);
  }
}

export async function findMachines(
  hypervisor: Hypervisor,
  { names, tapUrls = [], machineIds = [] }: Omit<Parameters<Activities["findMachines"]>[0], "site">,
): Promise<readonly FoundMachine[]> {
  const machines = await hypervisor.list();
  return names.map((name, index): FoundMachine => {
    const attached = (machine: Machine): boolean =>
      machine.disks?.some((disk) => tapUrls[index]?.includes(disk.url)) === true;
    const byId = machines.filter((machine) => machine.id === machineIds[index]);
    const byDisk = machines.filter(attached);
    const found =
      byId.length > 0 ? byId : byDisk.length > 0 ? byDisk : machines.filter((machine) => machine.name === name);
    const machine = found.find((one) => one.power !== "off") ?? found.at(-1);
    return machine === undefined ? { name, power: "unknown" } : { name, machineId: machine.id, power: machine.power };
  });
}

export async function shutdownMachines(
  hypervisor: Hypervisor,
  input: Parameters<Activities["shutdownMachines"]>[0],
): Promise<{ readonly stillRunning: readonly string[] }> {
  const stillRunning = await Promise.all(
    input.machineIds.map(async (machineId) => {
      try {
        await hypervisor.shutdown(machineId, { timeoutMs: input.timeoutMs });
        return undefined;
      } catch (error) {
        if (!isFault(error, "TIMED_OUT")) throw error;
        return machineId;
      }
    }),
  );
  return { stillRunning: stillRunning.filter((machineId) => machineId !== undefined) };
}

export async function stopMachines(
  hypervisor: Hypervisor,
  input: Parameters<Activities["stopMachines"]>[0],
): Promise<{ readonly forced: readonly string[] }> {
  const machines = await hypervisor.list({ operationId: input.operationId });
  const forced: string[] = [];
  await Promise.all(
    machines.map(async ({ id, name, power }) => {
      if (power === "off") return;
      try {
        await hypervisor.shutdown(id, { timeoutMs: input.timeoutMs });
      } catch (error) {
        if (!isFault(error, "TIMED_OUT")) throw error;
        forced.push(name);
        await hypervisor.powerOff(id);
      }
    }),
  );
  // Said by the hypervisor, not concluded from answers to something else.
  const still = (await hypervisor.list({ operationId: input.operationId })).filter(({ power }) => power !== "off");
  if (still.length === 0) return { forced };
  throw new Fault(
    "HYPERVISOR_UNAVAILABLE",
    `Machine ${still.map(({ name }) => `"${name}"`).join(", ")} still runs after it was powered off`,
    { hint: "Power it off at its hypervisor" },
  );
}

export async function awaitWorkflowEnd(
  isOpen: (workflowId: string, runId: string) => Promise<boolean>,
  clock: Clock,
  input: { readonly workflowId: string; readonly runId: string },
): Promise<{ readonly closed: boolean }> {
  const end = clock.monotonic() + CLOSED_WAIT_MS;
  while (clock.monotonic() < end) {
    if (!(await isOpen(input.workflowId, input.runId))) return { closed: true };
    await pause(clock, CLOSED_POLL_MS);
  }
  return { closed: false };
}

async function inspect(hypervisor: Hypervisor, machineId: string): Promise<Machine | undefined> {
  try {
    return await hypervisor.inspect(machineId);
  } catch (error) {
    // A hypervisor that is away for a moment is asked again; the caller's bound ends that.
    if (isFault(error) && error.retryable) return undefined;
    throw error;
  }
}

/** A pause that a cancellation of the activity ends by throwing. */
async function pause(clock: Clock, ms: number): Promise<void> {
  await Promise.race([clock.sleep(ms), Context.current().cancelled]);
}
