/** Groups as Temporal has them; what is odd about asking it ends in temporal-calls.ts. */
import {
  WithStartWorkflowOperation,
  WorkflowExecutionAlreadyStartedError,
  type Client,
  type Workflow,
} from "@temporalio/client";
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
import { temporalCalls, type Called } from "./temporal-calls.ts";

const UPDATE_MS = 30_000;
/** These answer only when their work is done, or the source was asked. */
const WAITING_MS = { bookmark: 120_000, pause: 60_000, resume: 60_000, undo: 60_000 } as const;
const QUERY_MS = 7_000;
const LOOK_MS = 2_000;

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
  const { insist, list, cancel, isReachable } = temporalCalls({ client, clock, address });
  const called = (name: string): Called => ({ kind: "group", name, list: "leeward group list" });

  return {
    protect: (request) =>
      insist(called(request.groupId), UPDATE_MS, async () => {
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
      insist(called(groupId), UPDATE_MS, async () => {
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
      insist(
        called(groupId),
        name in WAITING_MS ? WAITING_MS[name as keyof typeof WAITING_MS] : UPDATE_MS,
        async () => {
          const handle = client.workflow.getHandle(groupWorkflowId(groupId));
          return await handle.executeUpdate<UpdateResults[typeof name], [Operation]>(UPDATES[name], {
            updateId: request.operationId,
            args: [request],
          });
        },
      ),

    state: (groupId) =>
      insist(
        called(groupId),
        QUERY_MS,
        async () => await client.workflow.getHandle(groupWorkflowId(groupId)).query<GroupState>(QUERIES.state),
      ),

    groupIds: () =>
      list(QUERY_MS, async () => {
        const ids = new Set<string>();
        const prefix = groupWorkflowId("");
        const query = `WorkflowType = '${WORKFLOWS.protectionGroup}' AND ExecutionStatus = 'Running'`;
        for await (const { workflowId } of client.workflow.list({ query })) {
          if (workflowId.startsWith(prefix)) ids.add(workflowId.slice(prefix.length));
        }
        return [...ids];
      }),

    cancel: (workflowId) => cancel(workflowId, called(workflowId), UPDATE_MS),

    reachable: () => isReachable(LOOK_MS),
  };
}
