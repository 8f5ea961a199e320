/** What a failover is told, and what it finds out on its way. */
import type { ReplicationOrder } from "#ports/replication.ts";
import type { ProtectedMachine } from "./messages.ts";
import type { FailoverOutcome } from "./signals.ts";

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

/** Filled in as the failover goes on; a compensation reads what holds by then. */
export type OutcomeSoFar = { -readonly [Key in keyof FailoverOutcome]: FailoverOutcome[Key] };
