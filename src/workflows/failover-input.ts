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
  /** At the group's last look the source was connected. */
  readonly sourceSeen?: boolean;
  readonly sourceSite: string;
  readonly targetSite: string;
  readonly machines: readonly ProtectedMachine[];
  /** The order that stops the source, under a version that is reserved for it. Its branch is the line that points are chosen on. */
  readonly stopOrder: ReplicationOrder;
  /** How long to wait for the machines to answer. */
  readonly answerMs?: number;
}

/** Filled in as the failover goes on; a compensation reads what holds by then. */
export type OutcomeSoFar = { -readonly [Key in keyof FailoverOutcome]: FailoverOutcome[Key] };
