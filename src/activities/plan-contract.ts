/** What the workflow of a recovery plan can ask for. Types only; the invariants are those of contract.ts. */
import type { JsonObject } from "#model/json.ts";
import type { PlanMode } from "#model/plan/recovery-plan.ts";
import type { BoundCall, ResolvedPlan } from "#model/plan/resolved-plan.ts";
import type { RunReport } from "#model/plan/run-report.ts";
import type { ActionAnswer } from "#ports/action-runner.ts";
import type { GroupOperationView } from "#ports/group-commands.ts";

export interface PlanActivities {
  /** Give a group the command of this mode, or `undo`. It answers at once. */
  beginMove(input: BeginMove): Promise<void>;
  /** Until the operation ended (`up`: or its machines run), or the window passed: as it was last seen. */
  followMove(input: {
    readonly group: string;
    readonly operationId: string;
    readonly until: "ended" | "up";
    readonly windowMs: number;
  }): Promise<GroupOperationView>;
  /** Cancel an operation that runs; one that has ended, or never was, is fine. */
  cancelMove(input: { readonly group: string; readonly operationId: string }): Promise<void>;
  /** A test and everything it made are gone when this returns; one that never was is fine. */
  endTest(input: {
    readonly group: string;
    readonly testOperationId: string;
    readonly operationId: string;
    readonly by: string;
  }): Promise<void>;
  runAction(input: {
    readonly id: string;
    readonly call: BoundCall;
    readonly context: JsonObject;
  }): Promise<ActionAnswer>;
  /** Asks until it holds. VERIFICATION_FAILED with the last answer after `withinMs`. */
  checkReadiness(input: {
    readonly check: "tcp" | "http";
    readonly hostPort: number;
    readonly path?: string;
    readonly status?: number;
    readonly withinMs: number;
  }): Promise<{ readonly detail: string }>;
  /** The newest version of a plan in test mode, as things are now. */
  resolveDrill(input: { readonly plan: string }): Promise<ResolvedPlan>;
  /** Keep what became of a run, behind the runs before it. */
  recordRun(input: { readonly site: string; readonly report: RunReport }): Promise<{ readonly number: number }>;
}

export interface BeginMove {
  readonly group: string;
  readonly operationId: string;
  readonly by: string;
  readonly move: PlanMode | "undo";
  readonly point: string;
  readonly sourceLost: boolean;
  readonly leaseMs: number;
  readonly note: string;
}
