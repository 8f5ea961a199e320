/** Runs of recovery plans as Temporal has them. */
import { WorkflowExecutionAlreadyStartedError, type Client } from "@temporalio/client";
import { isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import { CONTROL_QUEUE, QUERIES, type OperationDone, type OperationState } from "../../workflows/messages.ts";
import {
  PLAN_UPDATES,
  PLAN_WORKFLOWS,
  planSummary,
  planWorkflowId,
  type DecideRequest,
  type PlanStart,
} from "../../workflows/plan-messages.ts";
import { temporalCalls, type Called } from "../temporal-calls.ts";

const ASK_MS = 30_000;
const QUERY_MS = 7_000;
const SHOWN = 20;

export interface PlanRuns {
  /** Idempotent by operation id. */
  start(start: PlanStart): Promise<void>;
  /** Throws NOT_FOUND. */
  state(plan: string, operationId: string): Promise<OperationState>;
  decide(plan: string, runId: string, request: DecideRequest): Promise<OperationDone>;
  cancel(plan: string, operationId: string): Promise<void>;
  /** The newest 20, of all plans; without those that cannot be asked, for they must not hide the others. */
  list(): Promise<readonly OperationState[]>;
}

export function createPlanRuns(deps: {
  readonly client: Client;
  readonly clock: Clock;
  readonly address: string;
}): PlanRuns {
  const { client } = deps;
  const calls = temporalCalls(deps);
  const called = (name: string): Called => ({ kind: "plan run", name, list: "leeward operation list" });

  const state = async (workflowId: string, name: string): Promise<OperationState> =>
    await calls.insist(
      called(name),
      QUERY_MS,
      async () => await client.workflow.getHandle(workflowId).query<OperationState>(QUERIES.state),
    );

  return {
    start: (start) =>
      calls.insist(called(start.operationId), ASK_MS, async () => {
        try {
          await client.workflow.start(PLAN_WORKFLOWS.recoveryPlan, {
            workflowId: planWorkflowId(start.plan.plan, start.operationId),
            taskQueue: CONTROL_QUEUE,
            args: [start],
            workflowIdReusePolicy: "REJECT_DUPLICATE",
            staticSummary: planSummary(start.plan),
            memo: { by: start.by, ...(start.note === undefined ? {} : { note: start.note }) },
          });
        } catch (error) {
          // A repeat: it began.
          if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
        }
      }),

    state: (plan, operationId) => state(planWorkflowId(plan, operationId), operationId),

    decide: (plan, runId, request) =>
      calls.insist(
        called(runId),
        ASK_MS,
        async () =>
          await client.workflow
            .getHandle(planWorkflowId(plan, runId))
            .executeUpdate<OperationDone, [DecideRequest]>(PLAN_UPDATES.decide, {
              updateId: request.operationId,
              args: [request],
            }),
      ),

    cancel: (plan, operationId) => calls.cancel(planWorkflowId(plan, operationId), called(operationId), ASK_MS),

    async list() {
      const ids = await calls.list(QUERY_MS, async () => {
        const found: string[] = [];
        for await (const { workflowId } of client.workflow.list({
          query: `WorkflowType = '${PLAN_WORKFLOWS.recoveryPlan}'`,
        })) {
          found.push(workflowId);
          if (found.length >= SHOWN) break;
        }
        return found;
      });
      const states = await Promise.all(
        ids.map(async (id) => {
          try {
            return await state(id, id);
          } catch (error) {
            if (isFault(error, "NOT_FOUND") || isFault(error, "OPERATION_FAILED")) return undefined;
            throw error;
          }
        }),
      );
      return states.filter((one) => one !== undefined);
    },
  };
}
