/**
 * The one plan object: what a dry run prints and what a run executes, step by step and nothing else. Plain JSON; it travels as the argument
 * of the workflow, so its shape is a contract with old histories.
 */
import type { ApprovalCall, CancelPolicy, HttpCall, PlanDirection, PlanMode, StepPolicy } from "./recovery-plan.ts";

export const RESOLVED_FORMAT = 1;

export interface ResolvedPlan {
  readonly format: number;
  readonly plan: string;
  readonly version: number;
  readonly mode: PlanMode;
  readonly direction: PlanDirection;
  /** Said by a person before the first step, for `unplanned`. */
  readonly sourceLost: boolean;
  readonly onCancel: CancelPolicy;
  readonly objectives: { readonly rtoMs?: number; readonly rpoMs?: number };
  readonly steps: readonly PlanStep[];
  /** Actions that this mode or direction leaves out, and why. */
  readonly leftOut: readonly { readonly step: string; readonly why: string }[];
  readonly predicted: Prediction;
  /** What keeps the run from succeeding as things are now; empty: nothing that is known. */
  readonly blockers: readonly PlanBlocker[];
}

export interface Prediction {
  /** Along the longest way through the steps; left out while a step has never been timed. */
  readonly rtoMs?: number;
  /** What would be lost now, of the group that loses most; null when that is not known. */
  readonly rpoMs: number | null;
  /** Earlier runs that the times are from. */
  readonly runs: number;
}

export interface PlanBlocker {
  readonly step: string;
  readonly message: string;
  readonly hint?: string;
}

export interface PlanStep extends Omit<StepPolicy, "budgetMs"> {
  /** `BOOT/pre/ACTION`, `BOOT/GROUP`, `BOOT/GROUP/check-N`, `BOOT/post/ACTION`: stable from run to run, so that times can be compared. */
  readonly id: string;
  /** Position of the boot group, from 0. */
  readonly boot: number;
  /** Ids of the steps that must have ended. */
  readonly after: readonly string[];
  readonly work: StepWork;
  readonly budgetMs: number;
  readonly expectedMs?: number;
  readonly undo?: BoundCall;
  readonly cleanup?: BoundCall;
}

export type StepWork = BoundCall | ApprovalCall | MoveWork | CheckWork;

/** With the script's text: nothing is looked up any more. */
export type BoundCall = BoundScript | HttpCall;

export interface BoundScript {
  readonly do: "script";
  readonly script: string;
  readonly text: string;
  readonly timeoutMs: number;
}

export interface MoveWork {
  readonly do: "move";
  readonly group: string;
  readonly move: PlanMode;
  readonly point: string;
}

export interface CheckWork {
  readonly do: "check";
  readonly group: string;
  readonly check: "tcp" | "http";
  readonly port: number;
  readonly machine?: string;
  readonly path?: string;
  readonly status?: number;
  readonly withinMs: number;
}

/** "script open-gate", "fail over db", …: for people. */
export function describeWork(work: StepWork): string {
  switch (work.do) {
    case "script":
      return `script ${work.script}`;
    case "http":
      return `${work.method} ${work.url}`;
    case "approval":
      return `approval: ${work.question}`;
    case "move":
      return `${MOVE_WORDS[work.move]} ${work.group}${work.point === "latest" ? "" : ` to ${work.point}`}`;
    case "check":
      return `${work.check} ${work.machine ?? work.group}:${work.port}${work.path ?? ""}`;
  }
}

const MOVE_WORDS: Readonly<Record<PlanMode, string>> = {
  test: "test failover of",
  unplanned: "failover of",
  planned: "planned failover of",
  failback: "failback of",
};
