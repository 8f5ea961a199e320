/**
 * What a failover does at the source: look whether it is there, shut its machines down, take the final cut, stop its replication; and
 * undo that.
 *
 * Invariants:
 * - every call has a bound; unplanned, nothing here fails, it is noted;
 * - what ran before is looked up before anything is shut down, and only that is powered on again;
 * - a stop is not undone here: the group sends its order anew when a failover was undone, under the epoch and on the branch that hold by
 *   then.
 */
import { isCancellation } from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import type { FoundMachine } from "../activities/contract.ts";
import { act, PRIORITY } from "./act.ts";
import type { FailoverInput, OutcomeSoFar } from "./failover-input.ts";
import { faultOf } from "./failures.ts";
import type { Runbook } from "./runbook.ts";

const PRE_CHECK_MS = 8_000;
/** Bound of everything that is tried at a source during an unplanned failover. */
const SOURCE_MS = 60_000;
const SHUTDOWN_MS = 90_000;
const FINAL_CUT_MS = 90_000;

/** Throws when a person would have to decide first: nothing has happened yet. */
export async function preCheck(input: FailoverInput): Promise<string> {
  if (input.sourceLost)
    return `site "${input.sourceSite}" is lost, says ${input.by}${input.sourceSeen === true ? "; it was connected when last seen" : ""}`;
  const seen = await act(
    "sourceState",
    { site: input.sourceSite, groupId: input.groupId, timeoutMs: PRE_CHECK_MS },
    { at: input.targetSite, summary: `is ${input.sourceSite} reachable?`, priority: PRIORITY.failover, attempts: 2 },
  );
  if (seen.reachable) return `the process server of "${input.sourceSite}" answers`;
  throw new Fault(
    "SOURCE_UNREACHABLE",
    `The process server of site "${input.sourceSite}" does not answer (${seen.fault?.code ?? ""}: ${seen.fault?.message ?? ""}), so a person must say that it is lost`,
    {
      hint: `Nothing was changed. If the site is lost, type "leeward failover ${input.groupName} --source-lost"`,
    },
  );
}

/** Planned: machines off, then the final cut, then no more orders. Returns the barrier that holds everything. */
export async function emptySource(input: FailoverInput, run: Runbook): Promise<number> {
  const at = { at: input.targetSite, priority: PRIORITY.failover };
  const source: SourceMachines = { found: [] };
  run.undo("shut down source", async () => await powerOn(input, source));
  await run.step(
    "shut down source",
    async (note) => {
      const { running, detail } = await shutDown(input, source, SHUTDOWN_MS);
      note(detail);
      if (running.length > 0) {
        throw new Fault(
          "TIMED_OUT",
          `Machine ${running.map((name) => `"${name}"`).join(", ")} did not shut down within ${SHUTDOWN_MS / 1_000} s`,
          { hint: "Shut it down yourself and repeat; or fail over without --planned" },
        );
      }
    },
    { budgetMs: SHUTDOWN_MS },
  );
  const cut = await run.step(
    "final cut",
    async (note) => {
      const made = await act(
        "cutNow",
        {
          site: input.sourceSite,
          groupId: input.groupId,
          operationId: `${input.operationId}-cut`,
          timeoutMs: FINAL_CUT_MS,
          // Whoever shut them down: only resting disks make a cut that loses nothing.
          detached: true,
        },
        { ...at, summary: "final cut, after power-off", budgetMs: FINAL_CUT_MS + 15_000 },
      );
      note(`barrier ${made.barrier}`);
      return made;
    },
    { waitsFor: "the final cut to be committed at the target", budgetMs: FINAL_CUT_MS },
  );
  await run.step("stop replication", async (note) => note(await stopOrder(input, SOURCE_MS)));
  return cut.barrier;
}

/** Unplanned: order and machines are stopped as far as the source answers within its bound. Never fails. */
export async function stopSource(input: FailoverInput, run: Runbook, outcome: OutcomeSoFar): Promise<void> {
  const source: SourceMachines = { found: [] };
  if (!input.sourceLost) {
    run.undo("stop source", async () => await powerOn(input, source));
  }
  await run.step(
    "stop source",
    async (note) => {
      const notes: string[] = [];
      const tried = async (work: () => Promise<string>): Promise<void> => {
        try {
          notes.push(await work());
        } catch (error) {
          if (isCancellation(error)) throw error;
          // The source is what has failed: its answer is noted, and the fence protects us from it.
          outcome.sourceMayRun = !input.sourceLost;
          notes.push(`${faultOf(error).code}: ${faultOf(error).message}`);
        }
      };
      await Promise.all([
        tried(async () => await stopOrder(input, input.sourceLost ? 5_000 : SOURCE_MS)),
        tried(async () => {
          if (input.sourceLost) return "its machines are left alone";
          const { running, detail } = await shutDown(input, source, SOURCE_MS - 10_000);
          outcome.sourceMayRun ||= running.length > 0;
          return detail;
        }),
      ]);
      note(notes.join("; "));
    },
    { budgetMs: SOURCE_MS },
  );
}

async function stopOrder(input: FailoverInput, budgetMs: number): Promise<string> {
  const { delivered } = await act(
    "putOrder",
    { order: input.stopOrder },
    { at: input.targetSite, summary: "stop replication at the source", budgetMs, priority: PRIORITY.failover },
  );
  return delivered ? "replication stopped" : "the order to stop waits for its process server";
}

/** What ran at the source before we touched it: that, and only that, is powered on again. */
interface SourceMachines {
  found: readonly FoundMachine[];
}

async function shutDown(
  input: FailoverInput,
  source: SourceMachines,
  timeoutMs: number,
): Promise<{ readonly running: readonly string[]; readonly detail: string }> {
  const at = { at: input.targetSite, priority: PRIORITY.failover };
  const names = input.machines.map((machine) => machine.name);
  source.found = await act(
    "findMachines",
    {
      site: input.sourceSite,
      names,
      tapUrls: input.machines.map(({ disks }) => disks.flatMap(({ tapUrl }) => tapUrl ?? [])),
      machineIds: input.machines.map(({ machineId = "" }) => machineId),
    },
    { ...at, summary: `find ${names.join(", ")} at ${input.sourceSite}`, budgetMs: 15_000 },
  );
  const on = source.found.filter((machine) => machine.power !== "off" && machine.power !== "unknown");
  const machineIds = on.flatMap((machine) => (machine.machineId === undefined ? [] : [machine.machineId]));
  const still =
    machineIds.length === 0
      ? []
      : (
          await act(
            "shutdownMachines",
            { site: input.sourceSite, machineIds, timeoutMs },
            {
              ...at,
              summary: `shut down ${on.map((machine) => machine.name).join(", ")}`,
              budgetMs: timeoutMs + 10_000,
            },
          )
        ).stillRunning;
  const running = on
    .filter((machine) => machine.machineId !== undefined && still.includes(machine.machineId))
    .map((machine) => machine.name);
  const words = (machine: FoundMachine): string => {
    if (machine.power === "unknown")
      return "not known to the hypervisor there: it must be off already, its taps will tell";
    if (machine.power === "off") return "was off";
    return running.includes(machine.name) ? "still running" : "shut down";
  };
  return { running, detail: source.found.map((machine) => `${machine.name}: ${words(machine)}`).join("; ") };
}

async function powerOn(input: FailoverInput, source: SourceMachines): Promise<void> {
  const machineIds = source.found.flatMap((machine) =>
    machine.power === "running" && machine.machineId !== undefined ? [machine.machineId] : [],
  );
  if (machineIds.length === 0) return;
  await act(
    "startMachines",
    { site: input.sourceSite, machineIds },
    { at: input.targetSite, summary: "undo: power the source on again", priority: PRIORITY.failover },
  );
}
