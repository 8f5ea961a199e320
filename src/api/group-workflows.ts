/**
 * Groups as Temporal has them. Everything that is odd about being a client of Temporal ends here:
 *
 * - a command is an update whose id is the operation id; a lost reply is repeated with the same id, and the workflow knows it. That an update
 *   is "not found" means that the workflow went on as a new run in between: repeated too, and so is DRAINING;
 * - a refusal of the workflow's validator is the Fault inside the failure;
 * - our own time-out means that the outcome is unknown, and says so;
 * - no connection is PEER_UNREACHABLE, with what to do.
 */
import {
  isGrpcServiceError,
  QueryNotRegisteredError,
  WithStartWorkflowOperation,
  WorkflowExecutionAlreadyStartedError,
  WorkflowNotFoundError,
  WorkflowUpdateRPCTimeoutOrCancelledError,
  type Client,
  type Workflow,
} from "@temporalio/client";
import { faultOfFailure, messageOfFailure } from "#model/failure.ts";
import { Fault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import {
  CONTROL_QUEUE,
  groupSummary,
  groupWorkflowId,
  QUERIES,
  UPDATES,
  WORKFLOWS,
  type AdoptedGroup,
  type GroupStart,
  type GroupState,
  type Operation,
  type OperationStarted,
  type ProtectRequest,
  type UpdateResults,
} from "../workflows/messages.ts";

const UPDATE_MS = 30_000;
/** These answer only when their work is done, or the source was asked. */
const WAITING_MS = { bookmark: 120_000, pause: 60_000, resume: 60_000, undo: 60_000 } as const;
const QUERY_MS = 7_000;
const LOOK_MS = 2_000;
/** A server that is being restarted is back by then; afterwards a time-out means the worker, not the server. */
const COMMAND_LOOK_MS = 5_000;

export interface GroupWorkflows {
  protect(request: ProtectRequest): Promise<OperationStarted>;
  /** Begin the workflow of a group whose own was lost. False: it is there already. */
  adopt(groupId: string, adopted: AdoptedGroup): Promise<boolean>;
  /** NOT_FOUND when there is no such group. */
  update<Name extends keyof UpdateResults>(
    groupId: string,
    name: Name,
    request: Operation,
  ): Promise<UpdateResults[Name]>;
  /** NOT_FOUND when there is no such group. */
  state(groupId: string): Promise<GroupState>;
  groupIds(): Promise<readonly string[]>;
  cancel(workflowId: string): Promise<void>;
  reachable(): Promise<boolean>;
}

export function createGroupWorkflows({
  client,
  clock,
  address,
}: {
  readonly client: Client;
  readonly clock: Clock;
  readonly address: string;
}): GroupWorkflows {
  async function within<T>(boundMs: number, work: () => Promise<T>): Promise<T> {
    return await client.withDeadline(clock.now() + boundMs, work);
  }

  async function isReachable(boundMs: number): Promise<boolean> {
    try {
      await within(boundMs, async () => await client.workflowService.getSystemInfo({}));
      return true;
    } catch (error) {
      if (grpcCode(error) !== undefined) return false;
      throw error;
    }
  }

  /** Repeats `attempt`, which must be safe to repeat, until it is answered. */
  async function insist<T>(group: string, boundMs: number, attempt: () => Promise<T>): Promise<T> {
    const deadline = clock.monotonic() + boundMs;
    if (!(await isReachable(COMMAND_LOOK_MS))) throw unreachable(address);
    for (let pauseMs = 50; ; pauseMs = Math.min(pauseMs * 2, 1_000)) {
      try {
        return await within(Math.max(deadline - clock.monotonic(), 1), attempt);
      } catch (error) {
        if (!isWorthRepeating(error) || clock.monotonic() + pauseMs > deadline) throw translate(error, group, address);
      }
      await clock.sleep(pauseMs);
    }
  }

  return {
    protect: (request) =>
      insist(request.groupId, UPDATE_MS, async () => {
        const start: GroupStart = { groupId: request.groupId };
        return await client.workflow.executeUpdateWithStart<Workflow, OperationStarted, [ProtectRequest]>(
          UPDATES.protect,
          {
            updateId: request.operationId,
            args: [request],
            startWorkflowOperation: new WithStartWorkflowOperation(WORKFLOWS.protectionGroup, {
              workflowId: groupWorkflowId(request.groupId),
              taskQueue: CONTROL_QUEUE,
              args: [start],
              workflowIdConflictPolicy: "USE_EXISTING",
              staticSummary: groupSummary(request),
            }),
          },
        );
      }),

    adopt: (groupId, adopted) =>
      insist(groupId, UPDATE_MS, async () => {
        const start: GroupStart = { groupId, adopted };
        try {
          await client.workflow.start(WORKFLOWS.protectionGroup, {
            workflowId: groupWorkflowId(groupId),
            taskQueue: CONTROL_QUEUE,
            args: [start],
            // What a workflow of ours wrote has all of a request in it.
            staticSummary: groupSummary(adopted.record as unknown as ProtectRequest),
          });
          return true;
        } catch (error) {
          if (error instanceof WorkflowExecutionAlreadyStartedError) return false;
          throw error;
        }
      }),

    update: (groupId, name, request) =>
      insist(groupId, name in WAITING_MS ? WAITING_MS[name as keyof typeof WAITING_MS] : UPDATE_MS, async () => {
        const handle = client.workflow.getHandle(groupWorkflowId(groupId));
        return await handle.executeUpdate<UpdateResults[typeof name], [Operation]>(UPDATES[name], {
          updateId: request.operationId,
          args: [request],
        });
      }),

    state: (groupId) =>
      insist(
        groupId,
        QUERY_MS,
        async () => await client.workflow.getHandle(groupWorkflowId(groupId)).query<GroupState>(QUERIES.state),
      ),

    async groupIds() {
      if (!(await isReachable(COMMAND_LOOK_MS))) throw unreachable(address);
      const ids = new Set<string>();
      const prefix = groupWorkflowId("");
      try {
        await within(QUERY_MS, async () => {
          const query = `WorkflowType = '${WORKFLOWS.protectionGroup}' AND ExecutionStatus = 'Running'`;
          for await (const { workflowId } of client.workflow.list({ query })) {
            if (workflowId.startsWith(prefix)) ids.add(workflowId.slice(prefix.length));
          }
        });
      } catch (error) {
        throw translate(error, "", address);
      }
      return [...ids];
    },

    async cancel(workflowId) {
      try {
        await within(UPDATE_MS, async () => await client.workflow.getHandle(workflowId).cancel());
      } catch (error) {
        if (error instanceof WorkflowNotFoundError) return; // It has ended meanwhile: the caller looks at its outcome.
        throw translate(error, workflowId, address);
      }
    },

    reachable: () => isReachable(LOOK_MS),
  };
}

/** UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED: the server is away, or busy for a moment. */
const REPEATED_GRPC = new Set([14, 10, 8]);

function isWorthRepeating(error: unknown): boolean {
  const fault = faultOfFailure(error);
  if (fault !== undefined) return fault.code === "DRAINING";
  if (error instanceof WorkflowNotFoundError) return /update .*not found/i.test(error.message);
  if (error instanceof WorkflowExecutionAlreadyStartedError) return true; // The run ended between start and update.
  const grpc = grpcCode(error);
  return grpc !== undefined && REPEATED_GRPC.has(grpc);
}

function translate(error: unknown, group: string, address: string): unknown {
  const fault = faultOfFailure(error);
  if (fault !== undefined) return fault;
  if (error instanceof WorkflowNotFoundError) {
    return new Fault("NOT_FOUND", `No group "${group}"`, { details: { group }, hint: "See `leeward group list`" });
  }
  if (error instanceof WorkflowUpdateRPCTimeoutOrCancelledError || grpcCode(error) === 4) {
    return new Fault(
      "TIMED_OUT",
      `No answer from the workflow of "${group}" in time; whether it was heard is not known`,
      {
        details: { group },
        hint: "Is the worker running? Look with `leeward status` and `leeward operation list`; the same call again does nothing twice",
        cause: error,
      },
    );
  }
  // A workflow that cannot be replayed answers so: its handlers were never set.
  if (error instanceof QueryNotRegisteredError) {
    return new Fault("OPERATION_FAILED", `The workflow of "${group}" cannot go on: ${error.message}`, {
      details: { group },
      hint: `Replication goes on without it. Its run in the Temporal Web UI says where it stands; "temporal workflow reset" takes it back to before that`,
      cause: error,
    });
  }
  // FAILED_PRECONDITION on a query: nobody polls the queue of this workflow.
  if (grpcCode(error) === 9) {
    return new Fault("PEER_UNREACHABLE", "No worker answers for the workflows", {
      hint: "Start the worker: `leeward worker`",
      cause: error,
    });
  }
  return grpcCode(error) === undefined ? error : unreachable(address, error);
}

function unreachable(address: string, cause?: unknown): Fault {
  return new Fault(
    "PEER_UNREACHABLE",
    `Temporal does not answer at "${address}"${cause === undefined ? "" : `: ${messageOfFailure(cause)}`}`,
    {
      hint: "Start it, or look into its log; replication itself goes on without it",
      ...(cause === undefined ? {} : { cause }),
    },
  );
}

/** The status code of the first gRPC error in the chain of causes. */
function grpcCode(error: unknown): number | undefined {
  for (let at = error, depth = 0; at instanceof Error && depth < 10; at = at.cause, depth += 1) {
    if (isGrpcServiceError(at)) return at.code;
  }
  return undefined;
}
