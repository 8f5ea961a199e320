/**
 * One step of a plan's run: its attempts, its budget, and what a person is asked about it.
 *
 * Invariants:
 * - a step ends as it was written, or as a person decided; time alone never ends one as approved, skipped or aborted;
 * - what an attempt owes is told to the janitor before the attempt begins;
 * - every attempt has an id of its own: whatever is repeated below it (a worker died, a reply was lost) does nothing twice.
 */
import { CancellationScope, isCancellation, sleep } from "@temporalio/workflow";
import { crc32c } from "#model/checksum.ts";
import { Fault } from "#model/fault.ts";
import { utf8Bytes } from "#model/format/utf8.ts";
import { duration } from "#model/health.ts";
import type { JsonObject } from "#model/json.ts";
import { describeWork, type CheckWork, type MoveWork, type PlanStep } from "#model/plan/resolved-plan.ts";
import type { GroupOperationView } from "#ports/group-commands.ts";
import { act, PRIORITY } from "./act.ts";
import { faultOf } from "./failures.ts";
import type { Debt } from "./plan-debts.ts";
import type { PlanStart } from "./plan-messages.ts";
import { ask, mark, stepRecord, type PlanRun } from "./plan-run.ts";
import { now, timestamp } from "./workflow-time.ts";

const RETRY_MS = 5_000;
const FOLLOW_MS = 60_000;
const LEASE_MS = 8 * 3_600_000;

export interface StepWorld {
  readonly run: PlanRun;
  /** The janitor knows of it when this settles. */
  readonly owe: (debt: Debt) => Promise<void>;
  /** A test of a group is up: what else has to be watched from now on. */
  readonly testIsUp: (group: string, operationId: string) => void;
}

/** The plan itself gives up: a step whose failure means that, an approval that was refused. */
export class PlanAborted extends Error {
  readonly fault: Fault;
  constructor(fault: Fault) {
    super(fault.message);
    this.fault = fault;
  }
}

/** Returns when the step is done, or the run goes on without it. Throws PlanAborted, or the cancellation. */
export async function runStep(world: StepWorld, step: PlanStep): Promise<void> {
  const { run } = world;
  let bySelf = step.retries;
  mark(run, step.id, { state: "running", startedAtMs: now() });
  for (let attempt = 1; ; attempt += 1) {
    mark(run, step.id, { state: "running", attempts: attempt });
    let fault: Fault;
    try {
      const evidence = await inBudget(world, step, async () => await perform(world, step, attempt));
      return mark(run, step.id, {
        state: "done",
        endedAtMs: now(),
        detail: `${describeWork(step.work)}: ${evidence.slice(0, 300)}`,
        evidence,
      });
    } catch (error) {
      if (error instanceof PlanAborted) {
        mark(run, step.id, { state: "failed", endedAtMs: now(), detail: error.fault.message });
        throw error;
      }
      if (error instanceof LeftOut)
        return mark(run, step.id, { state: "skipped", endedAtMs: now(), detail: error.message });
      if (isCancellation(error)) {
        mark(run, step.id, { state: "failed", endedAtMs: now(), detail: "interrupted" });
        throw error;
      }
      fault = error instanceof OverBudget ? error.fault : faultOf(error);
      // Begun again once at least: that is what the choice says.
      if (error instanceof OverBudget && step.onOverrun === "retry" && attempt === 1) bySelf = Math.max(bySelf, 1);
    }
    mark(run, step.id, { detail: `${fault.code}: ${fault.message}`, evidence: evidenceOf(fault) });
    if (bySelf > 0) {
      bySelf -= 1;
      await sleep(run.start.limits?.retryMs ?? RETRY_MS, { summary: `again: ${step.id}`.slice(0, 200) });
      continue;
    }
    if (step.onFailure === "continue") return mark(run, step.id, { state: "failed", endedAtMs: now() });
    if (step.onFailure === "abort" || run.start.drill === true) {
      mark(run, step.id, { state: "failed", endedAtMs: now() });
      throw new PlanAborted(fault);
    }
    const { decision, by } = await ask(run, step.id, {
      choices: ["retry", "skip"],
      text: `${step.id} failed: ${fault.message}`,
    });
    if (decision === "skip")
      return mark(run, step.id, { state: "skipped", endedAtMs: now(), detail: `skipped by ${by}: ${fault.message}` });
  }
}

/** There is nothing for this step to do. */
class LeftOut extends Error {}

class OverBudget extends Error {
  readonly fault: Fault;
  constructor(step: PlanStep) {
    super("Over budget");
    this.fault = new Fault("TIMED_OUT", `${step.id} took longer than ${duration(step.budgetMs)} and was stopped`, {
      hint: "Look at what it waits for; retry or skip it",
    });
  }
}

async function inBudget<T>(world: StepWorld, step: PlanStep, work: () => Promise<T>): Promise<T> {
  const { run } = world;
  // A person takes the time that it takes.
  if (step.work.do === "approval") return await work();
  const scope = new CancellationScope();
  const timer = new CancellationScope();
  const working = scope.run(work);
  // Looked at below, whichever way it ends.
  working.catch(() => undefined);
  const isOver = timer.run(async () => {
    await sleep(step.budgetMs, { summary: `budget of ${step.id}`.slice(0, 200) });
    return true;
  });
  isOver.catch(() => undefined); // The timer of a step that ended in time is cancelled.
  try {
    if (await Promise.race([working.then(() => false), isOver])) {
      const over = `over its budget of ${duration(step.budgetMs)}`;
      mark(run, step.id, { detail: `${describeWork(step.work)}: ${over}` });
      if (step.onOverrun === "retry") throw await stopped(scope, working, step);
      if (step.onOverrun === "ask" && run.start.drill !== true) await askOverrun(world, step, { over, scope, working });
    }
    return await working;
  } finally {
    timer.cancel();
  }
}

/** It goes on while a person is asked; done meanwhile, the question goes. */
async function askOverrun(
  { run }: StepWorld,
  step: PlanStep,
  {
    over,
    scope,
    working,
  }: { readonly over: string; readonly scope: CancellationScope; readonly working: Promise<unknown> },
): Promise<void> {
  const asking = new CancellationScope();
  const question = asking.run(
    async () =>
      await ask(run, step.id, { choices: ["approve", "reject"], text: `${step.id} is ${over}: wait on, or stop it?` }),
  );
  question.catch(() => undefined); // Cancelled when the step ends before anybody answers.
  const settled = working.then(
    () => undefined,
    () => undefined,
  );
  const answer = await Promise.race([question, settled]);
  asking.cancel();
  if (answer?.decision === "reject") throw await stopped(scope, working, step);
}

async function stopped(scope: CancellationScope, working: Promise<unknown>, step: PlanStep): Promise<OverBudget> {
  scope.cancel();
  await working.catch(() => undefined); // How it ended: because it was stopped, which is what is told.
  return new OverBudget(step);
}

/** What was seen. */
async function perform(world: StepWorld, step: PlanStep, attempt: number): Promise<string> {
  const { run } = world;
  const { start } = run;
  const { work } = step;
  switch (work.do) {
    case "approval": {
      const { decision, by, note } = await ask(run, step.id, {
        choices: ["approve", "reject"],
        text: work.question,
        remindMs: work.remindEveryMs,
      });
      const told = `${decision === "approve" ? "approved" : "rejected"} by ${by}${note === undefined ? "" : `: ${note}`}`;
      if (decision === "approve") return told;
      throw new PlanAborted(
        new Fault("REFUSED", `"${work.question}" was ${told}`, {
          hint: "What was done is taken back, unless the plan says that it stays",
        }),
      );
    }
    case "script":
    case "http": {
      for (const what of ["cleanup", "undo"] as const) {
        const call = step[what];
        // Of a real failover nothing is undone behind a person's back.
        if (call !== undefined && (what === "cleanup" || start.plan.mode === "test"))
          await world.owe({ id: `${step.id} ${what}`, pays: { with: "call", call } });
      }
      const id = `${start.operationId}/${step.id}#${attempt}`;
      const context = { ...contextOf(run), step: step.id, attempt };
      const { outcome, output } = await act(
        "runAction",
        { id, call: work, context },
        {
          at: start.site,
          summary: `${step.id}: ${describeWork(work)}`,
          priority: PRIORITY.failover,
          awaitsCancel: true,
        },
      );
      return output.trim() === "" ? outcome : `${outcome}: ${output.trim()}`;
    }
    case "move":
      return await move(world, step, work, attempt);
    case "check":
      return await check(run, step, work);
  }
}

async function move(world: StepWorld, step: PlanStep, work: MoveWork, attempt: number): Promise<string> {
  const { run } = world;
  const { start } = run;
  const { group } = work;
  const operationId = moveId(start, step, attempt);
  const isTest = work.move === "test";
  if (isTest)
    await world.owe({
      id: `${step.id} #${attempt}`,
      pays: { with: "end-test", group, testOperationId: operationId, operationId: `${operationId}-end` },
    });
  const moved = { operationId };
  run.moved.set(group, moved);
  await act(
    "beginMove",
    {
      group,
      operationId,
      by: start.by,
      move: work.move,
      point: work.point,
      sourceLost: start.plan.sourceLost,
      leaseMs: LEASE_MS,
      note: `plan ${start.plan.plan}, run ${start.operationId}`,
    },
    { at: start.site, summary: describeWork(work), priority: PRIORITY.failover, awaitsCancel: true },
  );
  const view = await follow(run, step.id, { group, operationId, until: isTest ? "up" : "ended" });
  run.moved.set(group, { ...moved, view });
  if (isTest ? !view.up : view.state !== "done") throw faultOfMove(group, operationId, view);
  if (isTest) world.testIsUp(group, operationId);
  const point = view.pointCutAtMs === undefined ? "" : `, point cut at ${timestamp(view.pointCutAtMs)}`;
  return `${operationId}${point}; ${view.machines.map(({ name, site }) => `${name} at ${site}`).join(", ")}`;
}

/** Its last state; `step` shows meanwhile what it waits for. */
export async function follow(
  run: PlanRun,
  step: string,
  what: { readonly group: string; readonly operationId: string; readonly until: "ended" | "up" },
): Promise<GroupOperationView> {
  for (;;) {
    const view = await act(
      "followMove",
      { ...what, windowMs: FOLLOW_MS },
      { at: run.start.site, summary: `follow ${what.operationId}`, priority: PRIORITY.failover },
    );
    if (view.state !== "running" || (what.until === "up" && view.up)) return view;
    mark(run, step, {
      detail: `${what.operationId}: ${view.step ?? "begins"}${view.waitsFor === undefined ? "" : `, waits for ${view.waitsFor}`}`,
    });
  }
}

export function faultOfMove(group: string, operationId: string, { fault, state, detail }: GroupOperationView): Fault {
  return new Fault(
    "OPERATION_FAILED",
    `${operationId} of "${group}" ended as ${state}: ${fault === undefined ? (detail ?? "it said nothing") : `${fault.code}: ${fault.message}`}`,
    {
      details: { group, operationId },
      hint: fault?.hint ?? `See \`leeward operation show ${operationId}\``,
    },
  );
}

async function check(run: PlanRun, step: PlanStep, work: CheckWork): Promise<string> {
  const { start } = run;
  const view = run.moved.get(work.group)?.view;
  if (view === undefined || view.machines.length === 0) throw new LeftOut(`Group "${work.group}" was not moved`);
  const forward = view.machines
    .filter(({ name }) => work.machine === undefined || name === work.machine)
    .flatMap(({ forwards }) => forwards)
    .find(({ guestPort }) => guestPort === work.port);
  if (forward === undefined)
    throw new Fault("VERIFICATION_FAILED", `Nothing of group "${work.group}" publishes port ${work.port}`, {
      hint: `Published: ${view.machines.flatMap(({ forwards }) => forwards.map(({ guestPort }) => guestPort)).join(", ") || "none"}`,
    });
  const { check: kind, withinMs, path, status } = work;
  const { detail } = await act(
    "checkReadiness",
    {
      check: kind,
      hostPort: forward.hostPort,
      withinMs,
      ...(path === undefined ? {} : { path }),
      ...(status === undefined ? {} : { status }),
    },
    { at: start.site, summary: `${step.id}: ${describeWork(work)}`, priority: PRIORITY.failover },
  );
  return detail;
}

/** `GROUP.KIND.RUN-STEP-ATTEMPT`, the same at every replay, and short. */
export function moveId({ plan, operationId }: PlanStart, step: PlanStep, attempt: number | "undo"): string {
  if (step.work.do !== "move") throw new RangeError(`Step "${step.id}" moves no group`);
  const kind =
    attempt === "undo"
      ? "undo"
      : { test: "test", unplanned: "failover", planned: "failover", failback: "failback" }[plan.mode];
  const run = `${(operationId.split(".").at(-1) ?? "").slice(-12)}${crc32c(utf8Bytes(operationId)).toString(16).padStart(8, "0")}`;
  return `${step.work.group}.${kind}.${run}-${plan.steps.indexOf(step)}${attempt === "undo" ? "" : `-${attempt}`}`;
}

/** What a script is told on its standard input, and by its environment. */
export function contextOf({ start, moved }: PlanRun): JsonObject {
  const { plan, operationId, by } = start;
  const groups = [...moved].map(([group, one]) => ({
    group,
    operationId: one.operationId,
    machines: (one.view?.machines ?? []).map(({ name, site, forwards }) => ({
      name,
      site,
      ports: forwards.map(({ guestPort, hostPort }) => ({ guestPort, hostPort })),
    })),
  }));
  return {
    run: operationId,
    plan: plan.plan,
    version: plan.version,
    mode: plan.mode,
    direction: plan.direction,
    by,
    groups,
  };
}

function evidenceOf({ message, details }: Fault): string {
  return [message, ...(details["output"] === undefined ? [] : [`${details["output"]}`])].join("\n");
}

export function attemptsOf(run: PlanRun, step: PlanStep): number {
  return stepRecord(run, step.id).attempts;
}
