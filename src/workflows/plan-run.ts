/** The run of a plan as it stands: what its workflow keeps, what others see of it, and the questions that wait for a person. */
import { defineSearchAttributeKey, SearchAttributeType } from "@temporalio/common";
import { condition, setCurrentDetails, upsertSearchAttributes } from "@temporalio/workflow";
import { duration } from "#model/health.ts";
import { describeWork, type PlanStep } from "#model/plan/resolved-plan.ts";
import type { ReportedDecision } from "#model/plan/run-report.ts";
import type { GroupOperationView } from "#ports/group-commands.ts";
import type { OperationState, OperationStep } from "./messages.ts";
import type { DecideRequest, Decision, PlanStart } from "./plan-messages.ts";
import { KIND, operationDetails, PHASE, SITE } from "./operation-view.ts";
import { now, timestamp } from "./workflow-time.ts";

const PLAN = defineSearchAttributeKey("LeewardPlan", SearchAttributeType.KEYWORD);
const NEEDS_APPROVAL = defineSearchAttributeKey("LeewardNeedsApproval", SearchAttributeType.BOOL);
const REMIND_MS = 900_000;

export interface StepRecord {
  state: OperationStep["state"];
  attempts: number;
  startedAtMs?: number;
  endedAtMs?: number;
  detail?: string;
  evidence?: string;
}

export interface Question {
  readonly choices: readonly Decision[];
  readonly text: string;
  readonly askedAtMs: number;
  reminders: number;
  answer?: DecideRequest;
}

export interface MovedGroup {
  readonly operationId: string;
  view?: GroupOperationView;
}

export interface PlanRun {
  readonly start: PlanStart;
  readonly workflowId: string;
  readonly startedAtMs: number;
  readonly steps: Map<string, StepRecord>;
  readonly questions: Map<string, Question>;
  readonly decisions: ReportedDecision[];
  /** The newest move of each group. */
  readonly moved: Map<string, MovedGroup>;
  state: OperationState["state"];
  endedAtMs?: number;
  /** What it does when no step runs: "undo: data/db". */
  doing?: string;
  fault?: OperationState["fault"];
  asked: boolean;
}

export function newRun(start: PlanStart, workflowId: string): PlanRun {
  upsertSearchAttributes([
    { key: KIND, value: "plan" },
    { key: PLAN, value: start.plan.plan },
    { key: PHASE, value: start.plan.mode },
    { key: SITE, value: start.site },
    { key: NEEDS_APPROVAL, value: false },
  ]);
  return {
    start,
    workflowId,
    startedAtMs: now(),
    steps: new Map(start.plan.steps.map(({ id }) => [id, { state: "waiting", attempts: 0 }])),
    questions: new Map(),
    decisions: [],
    moved: new Map(),
    state: "running",
    asked: false,
  };
}

export function stepRecord(run: PlanRun, id: string): StepRecord {
  const record = run.steps.get(id);
  if (record === undefined) throw new RangeError(`No step "${id}" in the plan`);
  return record;
}

export function mark(run: PlanRun, id: string, more: Partial<StepRecord>): void {
  Object.assign(stepRecord(run, id), more);
  show(run);
}

/** Current details at every change; the attribute only when it changes, for that is an event. */
export function show(run: PlanRun): void {
  const { plan } = run.start;
  setCurrentDetails(
    [
      operationDetails(`Plan ${plan.plan}, version ${plan.version}: ${plan.mode}`, runState(run)),
      ...[...run.questions].map(
        ([step, { text, choices, askedAtMs, reminders }]) =>
          `\n**${text}** Asked at ${timestamp(askedAtMs)}${reminders === 0 ? "" : `, and ${reminders} times since`}: ${choices.map((choice) => `\`leeward operation ${choice} ${run.start.operationId} ${step}\``).join(" or ")}`,
      ),
    ].join("\n"),
  );
  const asks = run.questions.size > 0;
  if (asks === run.asked) return;
  run.asked = asks;
  upsertSearchAttributes([{ key: NEEDS_APPROVAL, value: asks }]);
}

/** Answer of the `state` query. */
export function runState(run: PlanRun): OperationState {
  const { start, fault, endedAtMs } = run;
  const { plan, version, mode } = start.plan;
  const steps = start.plan.steps.map((step) => shownStep(run, step));
  const running = steps.filter(({ state }) => state === "running").map(({ name }) => name);
  const [question] = run.questions;
  const waitsFor =
    run.state !== "running"
      ? undefined
      : (run.doing ??
        (question === undefined
          ? running.join(", ") || "its next step"
          : `a person: ${question[1].choices.join(" or ")} ${question[0]} (leeward operation ${question[1].choices[0] ?? ""} ${start.operationId} ${question[0]})`));
  return {
    operationId: start.operationId,
    kind: "plan",
    workflowId: run.workflowId,
    groupId: "",
    by: start.by,
    plan: { name: plan, version, mode },
    state: run.state,
    startedAtMs: run.startedAtMs,
    ...(endedAtMs === undefined ? {} : { endedAtMs }),
    ...(waitsFor === undefined ? {} : { waitsFor }),
    ...(fault === undefined ? {} : { fault }),
    steps,
  };
}

function shownStep(run: PlanRun, step: PlanStep): OperationStep {
  const { state, attempts, startedAtMs, endedAtMs, detail } = stepRecord(run, step.id);
  const choices = run.questions.get(step.id)?.choices;
  const told = [
    detail ?? describeWork(step.work),
    ...(attempts > 1 ? [`attempt ${attempts}`] : []),
    ...(choices === undefined
      ? []
      : [`asks: leeward operation ${choices.join("|")} ${run.start.operationId} ${step.id}`]),
    ...(state === "waiting" && step.expectedMs !== undefined ? [`usually ${duration(step.expectedMs)}`] : []),
  ];
  return {
    name: step.id,
    state,
    detail: told.join("; "),
    ...(startedAtMs === undefined ? {} : { startedAtMs }),
    ...(endedAtMs === undefined ? {} : { endedAtMs }),
    ...(step.expectedMs === undefined ? {} : { expectedMs: step.expectedMs }),
    ...(choices === undefined ? {} : { choices }),
  };
}

/** Waits for a person; never answered by time, only repeated in the details. Throws the cancellation of its scope. */
export async function ask(
  run: PlanRun,
  step: string,
  {
    choices,
    text,
    remindMs = REMIND_MS,
  }: { readonly choices: readonly Decision[]; readonly text: string; readonly remindMs?: number },
): Promise<DecideRequest> {
  const question: Question = { choices, text, askedAtMs: now(), reminders: 0 };
  run.questions.set(step, question);
  show(run);
  try {
    const every = run.start.limits?.remindMs ?? remindMs;
    while (
      !(await condition(() => question.answer !== undefined, every, { summary: `remind: ${step}`.slice(0, 200) }))
    ) {
      question.reminders += 1;
      show(run);
    }
    // Set, or the condition would not have ended so.
    return question.answer!;
  } finally {
    if (run.questions.get(step) === question) run.questions.delete(step);
    show(run);
  }
}
