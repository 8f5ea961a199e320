/** The activities of recovery plans over what they need: groups, actions, probes, the store's catalog. */
import { createHash } from "node:crypto";
import { Context } from "@temporalio/activity";
import { Fault, isFault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { ResolvedPlan } from "#model/plan/resolved-plan.ts";
import { digestOfRecord, REPORT_VERSION, runRecordOf, type RunReport } from "#model/plan/run-report.ts";
import type { ActionRunner, ReadinessProbe } from "#ports/action-runner.ts";
import type { Clock } from "#ports/clock.ts";
import type { GroupCommand, GroupCommands, GroupOperationView } from "#ports/group-commands.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import { beating, translating } from "./faults.ts";
import type { BeginMove, PlanActivities } from "./plan-contract.ts";

const POLL_MS = 300;
const BEAT_MS = 2_000;
const CHECK_MS = 500;
/** How far back a repeat of `recordRun` looks for itself. */
const RUNS_LOOKED_AT = 5;

export interface PlanActivityDependencies {
  readonly groups: GroupCommands;
  readonly actions: ActionRunner;
  readonly probe: ReadinessProbe;
  readonly masterTarget: (site: string) => Pick<MasterTarget, "keepRecord" | "readRecords">;
  /** In test mode; control knows how. */
  readonly resolve: (plan: string) => Promise<ResolvedPlan>;
  readonly clock: Clock;
}

export function createPlanActivities(dependencies: PlanActivityDependencies): PlanActivities {
  const { groups, actions, probe, masterTarget, clock } = dependencies;

  async function follow(
    group: string,
    operationId: string,
    { holds, windowMs }: { readonly holds: (view: GroupOperationView) => boolean; readonly windowMs: number },
  ): Promise<GroupOperationView> {
    const signal = Context.current().cancellationSignal;
    const end = clock.monotonic() + windowMs;
    for (;;) {
      const view = await groups.operation(group, operationId);
      if (view === undefined) throw forgotten(group, operationId);
      Context.current().heartbeat({ group, state: view.state, step: view.step ?? "", waitsFor: view.waitsFor ?? "" });
      if (view.state !== "running" || holds(view) || clock.monotonic() > end) return view;
      await clock.sleep(POLL_MS, signal);
    }
  }

  return {
    // Once asked for it must be known whether the move began: what ends it comes after.
    beginMove: finishing(async (input) => {
      const { name, request } = commandOf(input);
      await groups.command(input.group, name, request);
    }),

    followMove: beating(
      async ({ group, operationId, until, windowMs }) =>
        await follow(group, operationId, { holds: ({ up }) => until === "up" && up, windowMs }),
    ),

    cancelMove: beating(async ({ group, operationId }) => await groups.cancel(group, operationId)),

    endTest: beating(async ({ group, testOperationId, operationId, by }) => {
      const test = await absentIsFine(groups.operation(group, testOperationId));
      if (test === undefined) return;
      try {
        await groups.command(group, "testFailoverCleanup", { operationId, by, testOperationId, force: false });
      } catch (error) {
        // Gone already: its lease ended, or a failover of the group wanted the room.
        if (!isFault(error, "NOT_FOUND") && !isFault(error, "REFUSED")) throw error;
      }
      for (;;) {
        const { state } = (await absentIsFine(groups.operation(group, testOperationId))) ?? { state: "done" };
        const cleanup = (await absentIsFine(groups.operation(group, operationId)))?.state ?? "done";
        if (state !== "running" && cleanup === "failed")
          throw new Fault("OPERATION_FAILED", `The test failover "${testOperationId}" is not gone`, {
            hint: `It is tried again; see \`leeward test-failover list ${group}\``,
          });
        if (state !== "running" && cleanup !== "running") return;
        await clock.sleep(POLL_MS, Context.current().cancellationSignal);
      }
    }),

    // Its undo must not run beside it: a cancellation is answered when the action has been stopped.
    runAction: finishing(async (input) => await actions.run(input, Context.current().cancellationSignal)),

    checkReadiness: beating(async ({ withinMs, ...question }) => {
      const started = clock.monotonic();
      for (;;) {
        const { holds, detail } = await probe(question);
        if (holds) return { detail };
        if (clock.monotonic() - started > withinMs)
          throw new Fault("VERIFICATION_FAILED", `Not ready within ${withinMs / 1_000} s: ${detail}`, {
            hint: "Look at the machine's console; then retry or skip the check",
          });
        await clock.sleep(CHECK_MS, Context.current().cancellationSignal);
      }
    }),

    resolveDrill: beating(async ({ plan }) => await dependencies.resolve(plan)),

    recordRun: beating(async ({ site, report }) => await recordRun(masterTarget(site), report)),
  };
}

/** As `beating`, but a cancellation waits for the work, which hears of it by the signal. */
function finishing<Input, Output>(work: (input: Input) => Promise<Output>): (input: Input) => Promise<Output> {
  return translating(async (input) => {
    const context = Context.current();
    const beat = setInterval(() => context.heartbeat(), BEAT_MS);
    context.heartbeat();
    try {
      return await work(input);
    } catch (error) {
      // Stopped because it was cancelled, or because this worker is: the reason is the SDK's.
      if (context.cancellationSignal.aborted) return await context.cancelled;
      throw error;
    } finally {
      clearInterval(beat);
    }
  });
}

function commandOf({ operationId, by, move, point, sourceLost, leaseMs, note }: BeginMove): {
  readonly name: GroupCommand;
  readonly request: Parameters<GroupCommands["command"]>[2];
} {
  const head = { operationId, by };
  switch (move) {
    case "test":
      return { name: "testFailoverStart", request: { ...head, point, leaseMs } };
    case "unplanned":
      return { name: "failover", request: { ...head, mode: "unplanned", point, sourceLost, note } };
    case "planned":
      return { name: "failover", request: { ...head, mode: "planned", point, sourceLost: false, note } };
    case "failback":
      return {
        name: "failover",
        request: { ...head, mode: "planned", point, sourceLost: false, failback: true, note },
      };
    case "undo":
      return { name: "undo", request: { ...head, note } };
  }
}

/** Once, however often it is asked for: a repeat finds its own record. */
async function recordRun(
  masterTarget: Pick<MasterTarget, "keepRecord" | "readRecords">,
  report: RunReport,
): Promise<{ readonly number: number }> {
  const series = { collection: "runs", name: report.plan } as const;
  for (;;) {
    const [found] = await masterTarget.readRecords({ ...series, newest: RUNS_LOOKED_AT });
    const mine = found?.records.find(({ record }) => runRecordOf(record)?.report.operationId === report.operationId);
    if (mine !== undefined) return { number: mine.number };
    const number = (found?.numbers.at(-1) ?? 0) + 1;
    const before = found?.records.find((one) => one.number === number - 1)?.record;
    const record = {
      version: REPORT_VERSION,
      previous: before === undefined ? "" : digestOfRecord(before, sha256),
      report,
    };
    // A report is plain JSON throughout.
    if ((await masterTarget.keepRecord({ ...series, number, record: record as unknown as JsonObject })).kept)
      return { number };
  }
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function forgotten(group: string, operationId: string): Fault {
  return new Fault("NOT_FOUND", `Group "${group}" does not know operation "${operationId}"`, {
    hint: `See \`leeward group show ${group}\``,
  });
}

async function absentIsFine<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    if (isFault(error, "NOT_FOUND")) return undefined;
    throw error;
  }
}
