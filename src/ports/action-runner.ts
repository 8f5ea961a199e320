/** What a plan's actions and checks do to the world, from the recovery site. */
import type { JsonObject } from "#model/json.ts";
import type { BoundCall } from "#model/plan/resolved-plan.ts";

export interface ActionRequest {
  /** The same for every attempt of what is one attempt to a person: a repeat after a lost reply is answered with what it made. */
  readonly id: string;
  readonly call: BoundCall;
  /** The run's context: environment and standard input of a script, body of a call that has none. */
  readonly context: JsonObject;
}

export interface ActionAnswer {
  /** "exit 0", "status 200". */
  readonly outcome: string;
  /** The end of what it said, at most 4 KiB. */
  readonly output: string;
}

export interface ActionRunner {
  /** Throws ACTION_FAILED with what it said; stops it when `signal` aborts. */
  run(request: ActionRequest, signal: AbortSignal): Promise<ActionAnswer>;
}

export interface ReadinessQuestion {
  readonly check: "tcp" | "http";
  /** On the loopback address of the recovery site: where a replica machine's port is published. */
  readonly hostPort: number;
  readonly path?: string;
  readonly status?: number;
}

/** Asked once. Never throws for an answer that is not the right one. */
export type ReadinessProbe = (
  question: ReadinessQuestion,
) => Promise<{ readonly holds: boolean; readonly detail: string }>;
