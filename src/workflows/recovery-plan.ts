/**
 * The run of a recovery plan: it executes the resolved plan that it was given, and nothing else.
 *
 * ```
 * janitor ─► steps, each when those before it have ended ─► [cancelled, aborted: undo, newest first] ─► clean-ups ─► record ─► release the janitor
 * ```
 * Invariants:
 * - the plan is an argument: a dry run of the same plan has printed the very steps;
 * - a test goes back whole, whatever happened; and it yields: when a test ends by itself (a real failover wants the room), the run ends;
 * - of a real move nothing is undone unless the plan says so (`onCancel`), and then newest first;
 * - what could not be taken away is named in the report and left to the janitor, which goes on;
 * - the record of the run is written whatever became of it.
 *
 * Source: docs/orchestration.md, "Recovery plans".
 */
import {
  allHandlersFinished,
  CancellationScope,
  condition,
  defineQuery,
  defineUpdate,
  isCancellation,
  log,
  ParentClosePolicy,
  setHandler,
  startChild,
  workflowInfo,
  type ChildWorkflowHandle,
} from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import { describeWork, type PlanStep } from "#model/plan/resolved-plan.ts";
import type { RunReport } from "#model/plan/run-report.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOf, failureOfOperation, faultOf } from "./failures.ts";
import { CONTROL_QUEUE, QUERIES, type OperationDone, type OperationState } from "./messages.ts";
import { owe, paid, payDebt, type Creditor, type Debt } from "./plan-debts.ts";
import { planJanitor } from "./plan-janitor.ts";
import { PLAN_UPDATES, type DecideRequest, type PlanStart } from "./plan-messages.ts";
import { mark, newRun, runState, show, stepRecord, type PlanRun } from "./plan-run.ts";
import {
  attemptsOf,
  contextOf,
  faultOfMove,
  follow,
  moveId,
  PlanAborted,
  runStep,
  type StepWorld,
} from "./plan-steps.ts";
import { release } from "./signals.ts";
import { now } from "./workflow-time.ts";

/** How long this workflow tries to take something away before it reports failure; the janitor goes on. */
const DEBT_MS = 120_000;

export async function recoveryPlan(start: PlanStart): Promise<OperationState> {
  const { workflowId } = workflowInfo();
  const run = newRun(start, workflowId);
  setHandler(defineQuery<OperationState>(QUERIES.state), () => runState(run));
  handleDecisions(run);
  show(run);
  const debts: Debt[] = [];
  const left: { step: string; why: string }[] = [];
  const guard = await CancellationScope.nonCancellable(async () => await startPlanJanitor(run));
  const body = new CancellationScope();
  const watchers = new CancellationScope();
  let yielded: Fault | undefined;
  const world: StepWorld = {
    run,
    owe: async (debt) => {
      if (debts.some(({ id }) => id === debt.id)) return;
      debts.push(debt);
      await guard.signal(owe, debt);
    },
    testIsUp: (group, operationId) => {
      const watching = watchers.run(async () => await watchTest(run, group, operationId));
      watching.then(
        (fault) => {
          yielded ??= fault;
          body.cancel();
        },
        (error: unknown) => {
          if (!isCancellation(error)) log.warn("A test is not watched any more", { group, error: String(error) });
        },
      );
    },
  };

  let rtoMs: number | undefined;
  try {
    await body.run(async () => await runSteps(world));
    rtoMs = now() - run.startedAtMs;
  } catch (error) {
    const fault = error instanceof PlanAborted ? error.fault : (yielded ?? faultOf(error));
    run.fault = toldOf(fault);
    await CancellationScope.nonCancellable(async () => await settleMoves(run, left));
    if (start.plan.onCancel === "undo" && start.plan.mode !== "test")
      await CancellationScope.nonCancellable(async () => await undoActions(run, left));
    run.endedAtMs = now();
    await CancellationScope.nonCancellable(
      async () => await finish(isCancellation(error) && yielded === undefined ? "cancelled" : "failed"),
    );
    throw failureOfOperation(runState(run));
  }
  await CancellationScope.nonCancellable(async () => await finish("done"));
  if (run.state !== "done") throw failureOfOperation(runState(run));
  return runState(run);

  async function finish(how: "done" | "failed" | "cancelled"): Promise<void> {
    watchers.cancel();
    // On a way that went well an undo of an action is owed by a test only: there everything goes back.
    for (let debt = debts.pop(); debt !== undefined; debt = debts.pop()) {
      run.doing = `clean-up: ${debt.id}`;
      show(run);
      try {
        await payDebt(creditorOf(run), debt, start.limits?.debtMs ?? DEBT_MS);
        await guard.signal(paid, { id: debt.id });
      } catch (error) {
        left.push({ step: debt.id, why: faultOf(error).message });
      }
    }
    delete run.doing;
    const isLeft = left.length > 0 && how === "done";
    if (isLeft)
      run.fault = toldOf(
        new Fault(
          "OPERATION_FAILED",
          `Not everything could be taken away: ${left.map(({ step, why }) => `${step} (${why})`).join("; ")}`,
          {
            hint: "Its janitor goes on; look at it in the Temporal Web UI",
          },
        ),
      );
    const state = isLeft ? "failed" : how;
    for (const record of run.steps.values()) if (record.state === "waiting") record.state = "skipped";
    run.endedAtMs ??= now();
    await keepReport(run, { state, left, ...(rtoMs === undefined ? {} : { rtoMs }) });
    run.state = state;
    show(run);
    if (left.length === 0) await guard.signal(release);
    await condition(allHandlersFinished);
  }
}

/** Each step begins when those that it waits for have ended; when one ends the run, all others are cancelled, and awaited. */
async function runSteps(world: StepWorld): Promise<void> {
  const { steps } = world.run.start.plan;
  const scope = new CancellationScope();
  const ends = new Map<string, Promise<void>>();
  let first: Error | undefined;
  const fails = (error: unknown): void => {
    first ??= error instanceof Error ? error : new RangeError(String(error));
  };
  await scope
    .run(async () => {
      for (const step of steps) {
        const before = step.after.map((id) => ends.get(id));
        const end = (async () => {
          await Promise.all(before);
          await runStep(world, step);
        })();
        ends.set(
          step.id,
          end.catch((error: unknown) => {
            fails(error);
            scope.cancel();
            throw error;
          }),
        );
      }
      await Promise.allSettled(ends.values());
    })
    .catch(fails);
  if (first !== undefined) throw first;
}

/** Settles with the reason when the test ends; nobody else knows of a failover that wants its room. */
async function watchTest(run: PlanRun, group: string, operationId: string): Promise<Fault> {
  for (;;) {
    const view = await act(
      "followMove",
      { group, operationId, until: "ended", windowMs: 60_000 },
      { at: run.start.site, summary: `watch the test failover of ${group}`, priority: PRIORITY.watch },
    );
    if (view.state !== "running")
      return new Fault(
        "INTERRUPTED",
        `The test failover of "${group}" ended before the plan did: ${view.detail ?? view.fault?.message ?? view.state}`,
        {
          hint: "A real failover goes first; run the plan again when it is through",
        },
      );
  }
}

/** The run ends early. A move that is under way is ended or awaited, as the plan says; a test is a debt, and paid as one. */
async function settleMoves(run: PlanRun, left: { step: string; why: string }[]): Promise<void> {
  const { plan } = run.start;
  if (plan.mode === "test") return;
  for (const step of plan.steps.toReversed()) {
    const attempts = attemptsOf(run, step);
    if (step.work.do !== "move" || attempts === 0) continue;
    const { group } = step.work;
    const operationId = run.moved.get(group)?.operationId;
    if (operationId === undefined) continue;
    run.doing = plan.onCancel === "undo" ? `undo: ${step.id}` : `the end of ${operationId}`;
    show(run);
    try {
      const undone = await settleMove(run, step, { group, operationId });
      if (undone) mark(run, step.id, { state: "undone" });
    } catch (error) {
      const why = faultOf(error).message;
      left.push({ step: step.id, why });
      mark(run, step.id, { detail: `not undone: ${why}` });
    }
  }
  delete run.doing;
}

/** True: the group is where it was. */
async function settleMove(
  run: PlanRun,
  step: PlanStep,
  { group, operationId }: { readonly group: string; readonly operationId: string },
): Promise<boolean> {
  const { start } = run;
  const at = { at: start.site, priority: PRIORITY.failover };
  const undoes = start.plan.onCancel === "undo";
  if (undoes)
    await act("cancelMove", { group, operationId }, { ...at, summary: `cancel ${operationId} if it still runs` });
  let view;
  try {
    view = await follow(run, step.id, { group, operationId, until: "ended" });
  } catch (error) {
    if (faultOf(error).code === "NOT_FOUND") return true; // It never began.
    throw error;
  }
  run.moved.set(group, { operationId, view });
  if (!undoes) return false;
  if (view.state !== "done") return true; // It took itself back.
  const undo = moveId(start, step, "undo");
  const note = `plan ${start.plan.plan}, run ${start.operationId} was cancelled`;
  await act(
    "beginMove",
    { group, operationId: undo, by: start.by, move: "undo", point: "", sourceLost: false, leaseMs: 0, note },
    { ...at, summary: `undo: ${describeWork(step.work)}` },
  );
  const ended = await follow(run, step.id, { group, operationId: undo, until: "ended" });
  if (ended.state !== "done") throw failureOf(faultOfMove(group, undo, ended));
  return true;
}

async function undoActions(run: PlanRun, left: { step: string; why: string }[]): Promise<void> {
  for (const step of run.start.plan.steps.toReversed()) {
    if (step.undo === undefined || attemptsOf(run, step) === 0) continue;
    run.doing = `undo: ${step.id}`;
    show(run);
    try {
      await payDebt(
        creditorOf(run),
        { id: `${step.id} undo`, pays: { with: "call", call: step.undo } },
        run.start.limits?.debtMs ?? DEBT_MS,
      );
      mark(run, step.id, { state: "undone" });
    } catch (error) {
      left.push({ step: `${step.id} undo`, why: faultOf(error).message });
    }
  }
  delete run.doing;
}

function creditorOf(run: PlanRun): Creditor {
  const { site, operationId, by } = run.start;
  return { site, operationId, by, context: contextOf(run) };
}

async function startPlanJanitor(run: PlanRun): Promise<ChildWorkflowHandle<typeof planJanitor>> {
  const { runId } = workflowInfo();
  const { plan, site } = run.start;
  return await startChild(planJanitor, {
    workflowId: `${run.workflowId}/janitor`,
    args: [{ ...creditorOf(run), plan: plan.plan, watches: { workflowId: run.workflowId, runId } }],
    taskQueue: CONTROL_QUEUE,
    parentClosePolicy: ParentClosePolicy.ABANDON,
    staticSummary: `plan ${plan.plan}: clean-up of ${run.start.operationId} at ${site}`,
  });
}

/** A store that is away for ten minutes costs the record, not the run. */
async function keepReport(run: PlanRun, more: Pick<RunReport, "state" | "left" | "rtoMs">): Promise<void> {
  try {
    await act(
      "recordRun",
      { site: run.start.site, report: reportOf(run, more) },
      {
        at: run.start.site,
        summary: `keep the record of ${run.start.operationId}`,
        ...(run.start.limits?.debtMs === undefined ? {} : { budgetMs: run.start.limits.debtMs }),
      },
    );
  } catch (error) {
    log.warn("The record of the run could not be kept", { error: faultOf(error).message });
  }
}

function reportOf(run: PlanRun, more: Pick<RunReport, "state" | "left" | "rtoMs">): RunReport {
  const { plan, operationId, by, drill = false } = run.start;
  const groups = [...run.moved].map(([group, { operationId: id, view }]) => ({
    group,
    operationId: id,
    ...(view?.pointId === undefined ? {} : { pointId: view.pointId }),
    ...(view?.pointCutAtMs === undefined ? {} : { pointCutAtMs: view.pointCutAtMs }),
  }));
  const planned = plan.mode === "planned" || plan.mode === "failback";
  const ages = groups.flatMap(({ pointCutAtMs }) =>
    pointCutAtMs === undefined ? [] : [run.startedAtMs - pointCutAtMs],
  );
  return {
    plan: plan.plan,
    planVersion: plan.version,
    mode: plan.mode,
    direction: plan.direction,
    operationId,
    by,
    drill,
    startedAtMs: run.startedAtMs,
    endedAtMs: run.endedAtMs ?? now(),
    ...(run.fault === undefined ? {} : { fault: run.fault }),
    objectives: plan.objectives,
    predicted: plan.predicted,
    ...more,
    ...(planned ? { rpoMs: 0 } : ages.length === 0 ? {} : { rpoMs: Math.max(0, ...ages) }),
    steps: plan.steps.map((step) => {
      const { state, attempts, startedAtMs, endedAtMs, evidence } = stepRecord(run, step.id);
      return {
        id: step.id,
        what: describeWork(step.work),
        state,
        attempts,
        budgetMs: step.budgetMs,
        ...(step.expectedMs === undefined ? {} : { expectedMs: step.expectedMs }),
        ...(startedAtMs === undefined || endedAtMs === undefined ? {} : { tookMs: endedAtMs - startedAtMs }),
        ...(evidence === undefined ? {} : { evidence: evidence.slice(0, 4_096) }),
      };
    }),
    leftOut: plan.leftOut,
    decisions: run.decisions,
    groups,
  };
}

function toldOf(fault: Fault): NonNullable<OperationState["fault"]> {
  const { details: _details, ...told } = fault.toJSON();
  return told;
}

/** Validated against the questions that wait; a repeat is answered as before. */
function handleDecisions(run: PlanRun): void {
  const answered = new Map<string, OperationDone>();
  setHandler(
    defineUpdate<OperationDone, [DecideRequest]>(PLAN_UPDATES.decide),
    (request) => {
      const known = answered.get(request.operationId);
      if (known !== undefined) return known;
      const question = run.questions.get(request.step);
      if (question === undefined || question.answer !== undefined) throw failureOf(notAsked(run, request));
      question.answer = request;
      const { step, decision, by, note } = request;
      run.decisions.push({ step, decision, by, atMs: now(), ...(note === undefined ? {} : { note }) });
      const done = { operationId: request.operationId, doneAtMs: now() };
      answered.set(request.operationId, done);
      show(run);
      return done;
    },
    {
      validator: (request) => {
        if (answered.has(request.operationId)) return;
        const question = run.questions.get(request.step);
        if (question === undefined || question.answer !== undefined || !question.choices.includes(request.decision))
          throw failureOf(notAsked(run, request));
      },
    },
  );
}

function notAsked(run: PlanRun, { step, decision }: DecideRequest): Fault {
  const open = [...run.questions].filter(([, { answer }]) => answer === undefined);
  return new Fault("REFUSED", `Nobody is asked to ${decision} "${step}" of ${run.start.operationId}`, {
    hint:
      open.length === 0
        ? "It waits for nobody now"
        : `It waits for: ${open.map(([id, { choices }]) => `${choices.join(" or ")} ${id}`).join("; ")}`,
  });
}
