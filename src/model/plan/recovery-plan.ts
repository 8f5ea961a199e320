/**
 * A recovery plan: which protection groups come back in which order, what is done before and after, who is asked, and how it is known that it
 * worked.
 *
 * ```
 * boot group 1:  pre actions ─► members, beside each other (but "after") ─► their checks ─► post actions
 * boot group 2:  …                                                          begins when all of boot group 1 has ended
 * ```
 * Invariants:
 * - a member is a protection group: it moves as a whole, so nothing smaller has a place in the order (docs/decisions/0023);
 * - an action that changes something says how it is undone, or that it need not be ("none");
 * - everything that a run needs stands in the plan, scripts too: what is in the bucket is enough to run it;
 * - times are milliseconds here; the YAML says "90s".
 *
 * Source: docs/recovery-plan.md; the moves.
 */
export const PLAN_MODES = ["test", "unplanned", "planned", "failback"] as const;
export type PlanMode = (typeof PLAN_MODES)[number];

export const PLAN_DIRECTIONS = ["out", "home"] as const;
/** `home`: to the site that the machines are from. */
export type PlanDirection = (typeof PLAN_DIRECTIONS)[number];

/** When nobody says otherwise: in a test nothing outside is touched and nobody is woken. */
export const DEFAULT_ACTION_MODES: readonly PlanMode[] = ["unplanned", "planned", "failback"];

export interface RecoveryPlan {
  readonly plan: string;
  readonly description?: string;
  /** What is promised; a run is held against it. */
  readonly objectives: { readonly rtoMs?: number; readonly rpoMs?: number };
  /** Left out: what has been moved stays for `unplanned`, and goes back for the others. A test always goes back. */
  readonly onCancel?: CancelPolicy;
  readonly scripts: Readonly<Record<string, string>>;
  readonly boot: readonly BootGroup[];
}

export type CancelPolicy = "undo" | "keep";

export interface BootGroup {
  readonly name: string;
  readonly pre: readonly PlanAction[];
  readonly groups: readonly PlanMember[];
  readonly post: readonly PlanAction[];
}

export interface PlanMember extends StepPolicy {
  /** Name of a protection group. */
  readonly group: string;
  /** Members of the same boot group that come first, with their checks. */
  readonly after: readonly string[];
  /** A selector of docs/surface.md; a planned move takes its final cut. */
  readonly point?: string;
  readonly checks: readonly PlanCheck[];
}

/** What becomes of a step that takes too long, and of one that fails. */
export interface StepPolicy {
  readonly budgetMs?: number;
  /** `retry`: stopped, and begun again. `ask`: it goes on while a person is asked. */
  readonly onOverrun: "wait" | "retry" | "ask";
  readonly retries: number;
  /** After the retries. `abort` is a cancellation by the plan itself. */
  readonly onFailure: "ask" | "continue" | "abort";
}

export interface PlanAction extends StepPolicy {
  readonly name: string;
  readonly call: ActionCall | ApprovalCall;
  readonly undo: ActionCall | "none";
  /** At the end of every run that began it, however it ended. */
  readonly cleanup?: ActionCall;
  readonly modes: readonly PlanMode[];
  readonly direction?: PlanDirection;
}

export type ActionCall = ScriptCall | HttpCall;

export interface ScriptCall {
  readonly do: "script";
  /** Of `scripts`. */
  readonly script: string;
  readonly timeoutMs: number;
}

export interface HttpCall {
  readonly do: "http";
  readonly method: "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE";
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Left out, and not GET or HEAD: the run's context as JSON. */
  readonly body?: string;
  /** Empty: any of 200 to 299. */
  readonly expect: readonly number[];
  readonly timeoutMs: number;
}

export interface ApprovalCall {
  readonly do: "approval";
  readonly question: string;
  readonly remindEveryMs: number;
}

/** Asked again and again until it holds or `withinMs` have passed. */
export interface PlanCheck extends StepPolicy {
  readonly check: "tcp" | "http";
  /** A port of the guest, which the group publishes; of `machine`, or of the group's first machine that publishes it. */
  readonly port: number;
  readonly machine?: string;
  /** http: the path that is asked for, and the status that is the right one. */
  readonly path?: string;
  readonly status?: number;
  readonly withinMs: number;
}

export function changesNothing(call: ActionCall | ApprovalCall): boolean {
  return call.do === "approval" || (call.do === "http" && (call.method === "GET" || call.method === "HEAD"));
}

/** Groups of a plan, in its order. */
export function groupsOfPlan(plan: RecoveryPlan): readonly string[] {
  return plan.boot.flatMap(({ groups }) => groups.map(({ group }) => group));
}
