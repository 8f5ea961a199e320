/** What one can say to the run of a recovery plan; see messages.ts. Plain JSON only. */
import type { ResolvedPlan } from "#model/plan/resolved-plan.ts";
import type { Operation } from "./messages.ts";

export const PLAN_WORKFLOWS = { recoveryPlan: "recoveryPlan", planJanitor: "planJanitor", drDrill: "drDrill" } as const;

export const planWorkflowId = (plan: string, operationId: string): string => `plan/${plan}/run/${operationId}`;

/** The argument of `recoveryPlan`: the plan as it was resolved, and nothing is looked up any more. */
export interface PlanStart extends Operation {
  readonly plan: ResolvedPlan;
  /** Where control and its store are. */
  readonly site: string;
  readonly note?: string;
  /** Nobody is there: what would be asked ends the run (a step that failed) or is waited for (one over its budget). */
  readonly drill?: boolean;
  /** Shorter than usual, for tests: between two attempts that nobody asked for; how often a question is repeated. */
  readonly limits?: { readonly retryMs?: number; readonly remindMs?: number; readonly debtMs?: number };
}

/** The argument of `drDrill`, as a schedule gives it. */
export interface DrillStart {
  readonly plan: string;
  /** Where control and its store are. */
  readonly site: string;
  readonly by: string;
}

export const PLAN_UPDATES = { decide: "decide" } as const;

/**
 * approve, reject: an approval; a step over its budget (go on, or stop it). retry, skip: a step that failed. Cancelling the run is the way to give up: the
 * workflow is cancelled.
 */
export const DECISIONS = ["approve", "reject", "retry", "skip"] as const;
export type Decision = (typeof DECISIONS)[number];

export interface DecideRequest extends Operation {
  readonly step: string;
  readonly decision: Decision;
  readonly note?: string;
}

/** The one line that says what a run is; given as `staticSummary` when it is started. */
export function planSummary({ plan, version, mode, steps }: ResolvedPlan): string {
  return `plan ${plan}, version ${version}: ${mode}, ${steps.length} steps`;
}
