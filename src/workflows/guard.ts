/** Starting and releasing the janitor of the current workflow. */
import {
  CancellationScope,
  ParentClosePolicy,
  startChild,
  workflowInfo,
  type ChildWorkflowHandle,
} from "@temporalio/workflow";
import { CONTROL_QUEUE } from "./messages.ts";
import { janitor, type JanitorInput } from "./janitor.ts";
import { childAttributes } from "./operation-view.ts";
import { release } from "./signals.ts";

export interface Guard {
  /** Nothing is left to clean up, or it must not be: the janitor ends. Repeatable. */
  release(): Promise<void>;
}

/** `name` tells two guards of one workflow apart. */
export async function startGuard(input: Omit<JanitorInput, "watches">, name = "janitor"): Promise<Guard> {
  const { workflowId, runId } = workflowInfo();
  const started: ChildWorkflowHandle<typeof janitor> = await CancellationScope.nonCancellable(
    async () => await startJanitor({ ...input, watches: { workflowId, runId } }, `${workflowId}/${name}`),
  );
  let released = false;
  return {
    async release() {
      if (released) return;
      released = true;
      await CancellationScope.nonCancellable(async () => await started.signal(release));
    },
  };
}

export async function startJanitor(
  input: JanitorInput,
  workflowId: string,
): Promise<ChildWorkflowHandle<typeof janitor>> {
  return await startChild(janitor, {
    workflowId,
    args: [input],
    taskQueue: CONTROL_QUEUE,
    parentClosePolicy: ParentClosePolicy.ABANDON,
    staticSummary: `${input.groupName}: clean-up of ${input.operationId}`,
    typedSearchAttributes: childAttributes("janitor", input.groupName, input.site),
  });
}
