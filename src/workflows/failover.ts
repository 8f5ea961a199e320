/**
 * Failover: fence → point → disks → machines → answers. Read it as the runbook it replaces.
 *
 * Invariants:
 * - whether the source is lost was decided before step 1; it never asks in the middle;
 * - no point is chosen before every disk is fenced; the fence cannot be cancelled;
 * - every call to the source side has a bound, and none of them can hold up an unplanned failover for more than a minute;
 * - planned: the final cut is asked for after the machines are off, so its barrier holds all they ever wrote;
 * - a failure before the first machine started is undone: the replica goes back to a source that is not lost, and a source that we
 *   shut down is powered on again. From the first start on, nothing is undone.
 *
 * Source: docs/orchestration.md, "Failover"; the moves.
 */
import { CancellationScope, isCancellation } from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import type { RecoveryPoint, ReplicationOrder } from "#ports/replication.ts";
import type { FoundMachine } from "../activities/contract.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOfOperation, faultOf } from "./failures.ts";
import { startGuard, type Guard } from "./guard.ts";
import type { OperationState, ProtectedMachine } from "./messages.ts";
import { reporter, reportEnd } from "./operation-view.ts";
import { awaitAnswers, createMachines, startMachines, type BootPlan } from "./replica-machines.ts";
import { runOperation, type Runbook } from "./runbook.ts";
import type { FailoverOutcome, OperationEnd } from "./signals.ts";

const PRE_CHECK_MS = 8_000;
/** Bound of everything that is tried at a source during an unplanned failover. */
const SOURCE_MS = 60_000;
const SHUTDOWN_MS = 90_000;
const FINAL_CUT_MS = 90_000;
const FENCE_MS = 600_000;
const ANSWER_MS = 180_000;

export interface FailoverInput {
  readonly groupId: string;
  readonly groupName: string;
  readonly operationId: string;
  readonly workflowId: string;
  readonly by: string;
  readonly mode: "unplanned" | "planned";
  readonly point: string;
  readonly sourceLost: boolean;
  readonly sourceSite: string;
  readonly targetSite: string;
  readonly machines: readonly ProtectedMachine[];
  /** The order as it stands; versions above it up to `orderVersion + 2` are reserved for this operation. */
  readonly order: ReplicationOrder;
  /** How long to wait for the machines to answer. */
  readonly answerMs?: number;
}

type Mutable<T> = { -readonly [Key in keyof T]: T[Key] };

export async function failover(input: FailoverInput): Promise<OperationState> {
  const headline = `${input.groupName}: ${input.mode} failover ${input.sourceSite} → ${input.targetSite}`;
  const outcome: Mutable<FailoverOutcome> = {
    booted: false,
    sourceFenced: false,
    orderVersion: input.order.version,
    orderState: input.order.state,
    partial: false,
    answering: true,
    sourceMayRun: false,
  };
  let guard: Guard | undefined;
  const { operation, notUndone } = await runOperation(
    { operationId: input.operationId, kind: "failover", workflowId: input.workflowId, groupId: input.groupId, by: input.by },
    input.mode === "planned"
      ? ["pre-check", "guard", "shut down source", "final cut", "stop replication", "fence", "choose point", "open disks", "create machines", "start machines", "verify"]
      : ["pre-check", "guard", "stop source", "fence", "choose point", "open disks", "create machines", "start machines", "verify"],
    reporter(input.groupId, headline),
    async (run) => await runFailover(input, run, outcome, (started) => (guard = started)),
  );
  // Removed by ourselves: nothing is left for the janitor. Otherwise it goes on trying.
  if (!notUndone.includes("open disks")) await guard?.release();
  // A fence that could not be given back, or whose end is not known, shuts the source out: say so, and let "resume" repair it.
  if (!outcome.booted && notUndone.includes("fence")) outcome.sourceFenced = true;
  const end: OperationEnd = { operation, failover: outcome };
  await reportEnd(input.groupId, end);
  if (operation.state !== "done") throw failureOfOperation(operation);
  return operation;
}

async function runFailover(input: FailoverInput, run: Runbook, outcome: Mutable<FailoverOutcome>, guarded: (guard: Guard) => void): Promise<void> {
  const { groupId, operationId, targetSite } = input;
  const plan: BootPlan = { site: targetSite, operationId, machines: input.machines, mode: "user", priority: PRIORITY.failover };
  const at = { at: targetSite, priority: PRIORITY.failover };

  await run.step("pre-check", async (note) => note(await preCheck(input)), { budgetMs: PRE_CHECK_MS });
  const guard = await run.step("guard", async () => await startGuard({ groupId, groupName: input.groupName, site: targetSite, operationId }));
  guarded(guard);
  try {
    const atLeast = input.mode === "planned" ? await emptySource(input, run, outcome) : undefined;
    // Unplanned: beside each other. The source is told first, so that its compensations run last, under the epoch that then holds.
    const stopping = input.mode === "planned" ? undefined : stopSource(input, run, outcome);
    // A cancellation may end it while the fence, which cannot be cancelled, still runs; it is awaited there.
    stopping?.catch(() => undefined);
    const fenced = await fence(input, run, outcome, stopping);

    const point = await run.step("choose point", async (note) => {
      const chosen = await act("choosePoint", { site: targetSite, groupId, selector: input.point }, { ...at, summary: `choose point ${input.point}`, budgetMs: 30_000 });
      if (atLeast !== undefined && chosen.barrier < atLeast) {
        throw new Fault("OPERATION_FAILED", `The newest point is barrier ${chosen.barrier}, expected the final cut ${atLeast}`, { hint: "Look at the master target's log; the source is powered on again" });
      }
      note(`barrier ${chosen.barrier} of ${fenced.newest ?? "none"}, ${chosen.consistency}-consistent`);
      run.set({ pointId: chosen.id, pointCutAtMs: chosen.cutAtMs });
      return chosen;
    });
    outcome.point = point;

    run.undo("open disks", async () => void (await act("removeOperation", { site: targetSite, operationId, discard: true }, { ...at, summary: "undo: remove machines and disks" })));
    const opened = await run.step("open disks", async (note) => {
      const status = await act("openExport", { site: targetSite, groupId, operationId, point: point.id, mode: "read-write" }, { ...at, summary: "open the disks read-write" });
      note(`${status.disks.length} disks${status.branch === undefined ? "" : `, branch ${status.branch}`}`);
      return status;
    });
    const created = await run.step("create machines", async () => await createMachines(plan, opened.disks));

    // From here on the disks may hold writes that exist nowhere else. A janitor must not touch them; see janitor.ts.
    await guard.release();
    const booted = await run.step("start machines", async (note) => {
      const result = await startMachines(plan, created, opened.disks);
      const [first] = result.failed;
      if (result.machines.length === 0 && first !== undefined) throw first.fault;
      if (first !== undefined) note(`not started: ${result.failed.map((one) => `${one.name} (${one.fault.code}: ${one.fault.message})`).join("; ")}`);
      return result;
    });
    run.keep();
    outcome.booted = true;
    outcome.partial = booted.failed.length > 0;
    if (opened.branch !== undefined) outcome.branch = opened.branch;
    run.set({ machines: booted.machines });

    await run.step("verify", async (note) => {
      try {
        const seen = await awaitAnswers(plan, booted.machines, input.answerMs ?? ANSWER_MS);
        outcome.answering = seen.all;
        note(seen.detail);
      } catch (error) {
        // The machines run: not knowing whether they answer is a finding of the operation, not its failure.
        if (isCancellation(error)) throw error;
        outcome.answering = false;
        note(`not known: ${faultOf(error).message}`);
      }
    }, { waitsFor: "the machines to answer", budgetMs: input.answerMs ?? ANSWER_MS });
  } catch (error) {
    // Cancelled while waiting for answers: the machines run, the failover stands.
    if (!(outcome.booted && isCancellation(error))) throw error;
    outcome.answering = false;
  }
}

/** Throws when a person would have to decide first: nothing has happened yet. */
async function preCheck(input: FailoverInput): Promise<string> {
  if (input.sourceLost) return `site "${input.sourceSite}" is lost, says ${input.by}`;
  const seen = await act("sourceState", { site: input.sourceSite, groupId: input.groupId, timeoutMs: PRE_CHECK_MS }, { at: input.targetSite, summary: `is ${input.sourceSite} reachable?`, priority: PRIORITY.failover, attempts: 2 });
  if (seen.reachable) return `the process server of "${input.sourceSite}" answers`;
  throw new Fault("SOURCE_UNREACHABLE", `The process server of site "${input.sourceSite}" does not answer (${seen.fault?.code ?? ""}: ${seen.fault?.message ?? ""}), so a person must say that it is lost`, {
    hint: `Nothing was changed. If the site is lost, type "leeward failover ${input.groupName} --source-lost"`,
  });
}

/** Planned: machines off, then the final cut, then no more orders. Returns the barrier that holds everything. */
async function emptySource(input: FailoverInput, run: Runbook, outcome: Mutable<FailoverOutcome>): Promise<number> {
  const at = { at: input.targetSite, priority: PRIORITY.failover };
  const source: SourceMachines = { found: [] };
  run.undo("shut down source", async () => await powerOn(input, source));
  await run.step("shut down source", async (note) => {
    const { running, detail } = await shutDown(input, source, SHUTDOWN_MS);
    note(detail);
    if (running.length > 0) {
      throw new Fault("TIMED_OUT", `Machine ${running.map((name) => `"${name}"`).join(", ")} did not shut down within ${SHUTDOWN_MS / 1_000} s`, { hint: "Shut it down yourself and repeat; or fail over without --planned" });
    }
  }, { budgetMs: SHUTDOWN_MS });
  const cut = await run.step("final cut", async (note) => {
    const made = await act("cutNow", { site: input.sourceSite, groupId: input.groupId, operationId: `${input.operationId}-cut`, timeoutMs: FINAL_CUT_MS }, { ...at, summary: "final cut, after power-off", budgetMs: FINAL_CUT_MS + 15_000 });
    note(`barrier ${made.barrier}`);
    return made;
  }, { waitsFor: "the final cut to be committed at the target", budgetMs: FINAL_CUT_MS });
  registerResume(input, run, outcome, "stop replication");
  await run.step("stop replication", async (note) => note(await stopOrder(input, outcome, SOURCE_MS)));
  return cut.barrier;
}

/** Unplanned: order and machines are stopped as far as the source answers within its bound. Never fails. */
async function stopSource(input: FailoverInput, run: Runbook, outcome: Mutable<FailoverOutcome>): Promise<void> {
  const source: SourceMachines = { found: [] };
  if (!input.sourceLost) {
    registerResume(input, run, outcome, "stop source");
    run.undo("stop source", async () => await powerOn(input, source));
  }
  await run.step("stop source", async (note) => {
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
      tried(async () => await stopOrder(input, outcome, input.sourceLost ? 5_000 : SOURCE_MS)),
      tried(async () => {
        if (input.sourceLost) return "its machines are left alone";
        const { running, detail } = await shutDown(input, source, SOURCE_MS - 10_000);
        outcome.sourceMayRun ||= running.length > 0;
        return detail;
      }),
    ]);
    note(notes.join("; "));
  }, { budgetMs: SOURCE_MS });
}

/** Also waits for `stopping`: what is tried at the source ends before anything is built on the fence, or undone. */
async function fence(input: FailoverInput, run: Runbook, outcome: Mutable<FailoverOutcome>, stopping: Promise<void> | undefined): Promise<{ readonly newest: number | undefined }> {
  const { groupId, operationId, sourceSite, targetSite } = input;
  const at = { at: targetSite, priority: PRIORITY.failover };
  if (input.sourceLost) outcome.sourceFenced = true;
  else {
    run.undo("fence", async () => {
      const back = await act("fence", { site: targetSite, groupId, operationId: `${operationId}-undo`, activeSite: sourceSite }, { ...at, summary: `undo: give the replica back to ${sourceSite}` });
      outcome.epoch = back.groupEpoch;
    });
  }
  try {
    return await run.step("fence", async (note) => {
      const fenced = await CancellationScope.nonCancellable(async () => await act("fence", { site: targetSite, groupId, operationId, activeSite: targetSite }, { ...at, summary: `fence: from now on only ${targetSite} writes` }));
      outcome.epoch = fenced.groupEpoch;
      const newest: RecoveryPoint | undefined = fenced.newestPoint;
      note(`epoch ${fenced.groupEpoch}, newest barrier ${newest?.barrier ?? "none"}`);
      return { newest: newest?.barrier };
    }, { waitsFor: "every disk to be fenced", budgetMs: FENCE_MS });
  } finally {
    await stopping;
  }
}

async function stopOrder(input: FailoverInput, outcome: Mutable<FailoverOutcome>, budgetMs: number): Promise<string> {
  const order: ReplicationOrder = { ...input.order, version: input.order.version + 1, state: "stopped" };
  outcome.orderVersion = order.version;
  outcome.orderState = "stopped";
  const { delivered } = await act("putOrder", { order }, { at: input.targetSite, summary: "stop replication at the source", budgetMs, priority: PRIORITY.failover });
  return delivered ? "replication stopped" : "the order to stop waits for its process server";
}

/** Undoing a stop: the order goes on under the epoch that holds by then (undos run in reverse: the fence is given back first). */
function registerResume(input: FailoverInput, run: Runbook, outcome: Mutable<FailoverOutcome>, step: string): void {
  run.undo(step, async () => {
    const order: ReplicationOrder = { ...input.order, version: input.order.version + 2, groupEpoch: outcome.epoch ?? input.order.groupEpoch };
    outcome.orderVersion = order.version;
    outcome.orderState = order.state;
    await act("putOrder", { order }, { at: input.targetSite, summary: "undo: replicate again", priority: PRIORITY.failover });
  });
}

/** What ran at the source before we touched it: that, and only that, is powered on again. */
interface SourceMachines {
  found: readonly FoundMachine[];
}

async function shutDown(input: FailoverInput, source: SourceMachines, timeoutMs: number): Promise<{ readonly running: readonly string[]; readonly detail: string }> {
  const at = { at: input.targetSite, priority: PRIORITY.failover };
  const names = input.machines.map((machine) => machine.name);
  source.found = await act("findMachines", { site: input.sourceSite, names }, { ...at, summary: `find ${names.join(", ")} at ${input.sourceSite}`, budgetMs: 15_000 });
  const on = source.found.filter((machine) => machine.power !== "off" && machine.power !== "unknown");
  const machineIds = on.flatMap((machine) => (machine.machineId === undefined ? [] : [machine.machineId]));
  const still =
    machineIds.length === 0
      ? []
      : (await act("shutdownMachines", { site: input.sourceSite, machineIds, timeoutMs }, { ...at, summary: `shut down ${on.map((machine) => machine.name).join(", ")}`, budgetMs: timeoutMs + 10_000 })).stillRunning;
  const running = on.filter((machine) => machine.machineId !== undefined && still.includes(machine.machineId)).map((machine) => machine.name);
  const words = (machine: FoundMachine): string => {
    if (machine.power === "unknown") return "not known to the hypervisor there: it must be off already";
    if (machine.power === "off") return "was off";
    return running.includes(machine.name) ? "still running" : "shut down";
  };
  return { running, detail: source.found.map((machine) => `${machine.name}: ${words(machine)}`).join("; ") };
}

async function powerOn(input: FailoverInput, source: SourceMachines): Promise<void> {
  const machineIds = source.found.flatMap((machine) => (machine.power === "running" && machine.machineId !== undefined ? [machine.machineId] : []));
  if (machineIds.length === 0) return;
  await act("startMachines", { site: input.sourceSite, machineIds }, { at: input.targetSite, summary: "undo: power the source on again", priority: PRIORITY.failover });
}
