/** What a recovery plan asks of protection groups: the same commands that people give, by operation id. */
import type { FaultJson } from "#model/fault.ts";

export type GroupCommand = "failover" | "undo" | "testFailoverStart" | "testFailoverCleanup";

export interface GroupCommands {
  /** Idempotent by `operationId`. Throws REFUSED, NOT_FOUND, and what the group answers. */
  command(
    groupId: string,
    name: GroupCommand,
    request: { readonly operationId: string; readonly by: string; readonly [field: string]: unknown },
  ): Promise<void>;
  /** An operation as the group has it; undefined when the group does not remember it. Throws NOT_FOUND when there is no such group. */
  operation(groupId: string, operationId: string): Promise<GroupOperationView | undefined>;
  /** Ask the operation's own workflow to end; one that has ended is fine. */
  cancel(groupId: string, operationId: string): Promise<void>;
}

export interface GroupOperationView {
  readonly state: "running" | "done" | "failed" | "cancelled";
  /** A test failover: its machines run and its lease has begun. */
  readonly up: boolean;
  /** The step that runs now. */
  readonly step?: string;
  readonly waitsFor?: string;
  readonly fault?: FaultJson;
  readonly machines: readonly {
    readonly name: string;
    readonly site: string;
    readonly forwards: readonly { readonly guestPort: number; readonly hostPort: number }[];
  }[];
  readonly pointId?: string;
  readonly pointCutAtMs?: number;
  /** Of its last step: why a test ended. */
  readonly detail?: string;
}
