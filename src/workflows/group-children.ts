/**
 * The operations that a group starts as workflows of their own, and what their end means for the group.
 *
 * Invariants:
 * - they outlive a new run of the group (ABANDON) and tell it by signal how they stand; a report of an operation that has ended is a
 *   repeat and changes nothing;
 * - one that ends without a word (terminated from outside) is heard of by its janitor, or by its failure while this run lasts.
 */
import {
  getExternalWorkflowHandle,
  log,
  ParentClosePolicy,
  startChild,
  WorkflowIdReusePolicy,
} from "@temporalio/workflow";
import { CONDITIONS } from "#model/group-phase.ts";
import { nextPhase } from "#model/phase-events.ts";
import { Fault } from "#model/fault.ts";
import { PRIORITY } from "./act.ts";
import { failover } from "./failover.ts";
import { nextOrder } from "./group-order.ts";
import {
  expectConnection,
  FAILOVER_CONDITIONS,
  operationOf,
  putOperation,
  setCondition,
  type GroupRecord,
} from "./group-record.ts";
import { applyChangePoint, applyRetry, applyUndo, lostChange, lostUndo, newReplica } from "./group-moves.ts";
import { applyReprotect, lostReprotect, tellReseed } from "./group-reprotect.ts";
import { startJanitor } from "./guard.ts";
import {
  CONTROL_QUEUE,
  groupWorkflowId,
  type FailoverRequest,
  type OperationState,
  type TestCleanupRequest,
  type TestFailoverRequest,
} from "./messages.ts";
import { begun, childAttributes } from "./operation-view.ts";
import { cleanUp, type FailoverOutcome, type OperationEnd } from "./signals.ts";
import { testFailover } from "./test-failover.ts";
import { now } from "./workflow-time.ts";

/** Synchronous up to the start of the child: phase, epoch and order are settled before anybody else gets a turn. */
export async function beginFailover(
  record: GroupRecord,
  request: FailoverRequest,
  workflowId: string,
  answerMs: number | undefined,
  lost: () => void,
): Promise<void> {
  const stopOrder = nextOrder(record, "stopped");
  record.phaseBefore = record.phase;
  record.phase = nextPhase(record.phase, "failover");
  if (request.afterwards !== undefined) record.afterwards = request.afterwards;
  putOperation(record, begun(record, request, "failover", workflowId));
  const child = await startChild(failover, {
    workflowId,
    args: [
      {
        groupId: record.groupId,
        groupName: record.name,
        operationId: request.operationId,
        workflowId,
        by: request.by,
        mode: request.mode,
        point: request.point,
        sourceLost: request.sourceLost,
        sourceSeen: record.progress?.connected === true && record.targetFault === undefined,
        sourceSite: record.sourceSite,
        targetSite: record.targetSite,
        machines: record.machines,
        stopOrder,
        ...(answerMs === undefined ? {} : { answerMs }),
      },
    ],
    taskQueue: CONTROL_QUEUE,
    parentClosePolicy: ParentClosePolicy.ABANDON,
    workflowIdReusePolicy: WorkflowIdReusePolicy.REJECT_DUPLICATE,
    priority: { priorityKey: PRIORITY.failover },
    staticSummary: `${record.name}: ${request.mode} failover ${record.sourceSite} → ${record.targetSite}, point ${request.point}`,
    memo: {
      by: request.by,
      sourceLost: request.sourceLost,
      ...(request.note === undefined ? {} : { note: request.note }),
    },
    typedSearchAttributes: childAttributes("failover", record.name, record.targetSite),
  });
  // Its own report comes first and ends the operation here; without one this is all we hear.
  child.result().catch(lost);
  await tellReseed(record, { instead: "a failover of the group began" });
}

export async function beginTest(
  record: GroupRecord,
  request: TestFailoverRequest,
  workflowId: string,
  answerMs: number | undefined,
): Promise<void> {
  record.test = { operationId: request.operationId, workflowId };
  setCondition(record, CONDITIONS.testing, true);
  putOperation(record, begun(record, request, "testFailover", workflowId));
  const child = await startChild(testFailover, {
    workflowId,
    args: [
      {
        groupId: record.groupId,
        groupName: record.name,
        operationId: request.operationId,
        workflowId,
        by: request.by,
        point: request.point,
        leaseMs: request.leaseMs,
        site: record.targetSite,
        ...(record.branch === "" ? {} : { branch: record.branch }),
        machines: record.machines,
        ...(answerMs === undefined ? {} : { answerMs }),
      },
    ],
    taskQueue: CONTROL_QUEUE,
    parentClosePolicy: ParentClosePolicy.ABANDON,
    workflowIdReusePolicy: WorkflowIdReusePolicy.REJECT_DUPLICATE,
    priority: { priorityKey: PRIORITY.test },
    staticSummary: `${record.name}: test failover at ${record.targetSite}, point ${request.point}`,
    memo: { by: request.by },
    typedSearchAttributes: childAttributes("testFailover", record.name, record.targetSite),
  });
  // It reports by signal, or its janitor does.
  child.result().catch(() => undefined);
}

/** A clean-up that a person asked for: the test ends itself if it still runs, a janitor works otherwise. */
export async function beginCleanup(record: GroupRecord, request: TestCleanupRequest): Promise<void> {
  const { test } = record;
  if (test === undefined) throw new RangeError("Clean-up without a test; the validator let it pass");
  const running = operationOf(record, test.operationId)?.state === "running";
  putOperation(record, begun(record, request, "cleanup", test.workflowId));
  if (running && (await askToEnd(test.workflowId, `asked by ${request.by}`)) && !request.force) return;
  if (!running) {
    await startJanitor(
      { groupId: record.groupId, groupName: record.name, site: record.targetSite, operationId: test.operationId },
      `${test.workflowId}/cleanup/${request.operationId}`,
    );
  }
  if (request.force) forgetTest(record, test.operationId, undefined);
}

/** A real failover needs the room. It does not wait for the test to be gone. */
export async function preemptTest(record: GroupRecord): Promise<void> {
  if (record.test !== undefined) await askToEnd(record.test.workflowId, "a failover of the group began");
}

async function askToEnd(workflowId: string, reason: string): Promise<boolean> {
  try {
    await getExternalWorkflowHandle(workflowId).signal(cleanUp, { reason });
    return true;
  } catch (error) {
    // It ended in the meantime: its report, or its janitor's, is on the way.
    log.warn("The test failover could not be told to end", { workflowId, error: String(error) });
    return false;
  }
}

export function applyEnd(record: GroupRecord, end: OperationEnd): void {
  const { operationId } = end.operation;
  if (operationOf(record, operationId)?.state !== "running") return;
  putOperation(record, end.operation);
  if (end.failover !== undefined) applyFailover(record, end.operation, end.failover);
  if (end.changePoint !== undefined) applyChangePoint(record, end.operation, end.changePoint);
  if (end.undo !== undefined) applyUndo(record, end.operation, end.undo);
  if (end.reprotect !== undefined) applyReprotect(record, end.reprotect);
  if (end.retry !== undefined) applyRetry(record, end.operation, end.retry);
  if (end.test !== undefined) {
    if (end.test.cleanupFailed) {
      setCondition(record, CONDITIONS.testing, false);
      setCondition(record, CONDITIONS.testCleanupFailed, true);
      endCleanups(record, end.operation.fault);
    } else forgetTest(record, operationId, undefined);
  }
}

function applyFailover(record: GroupRecord, operation: OperationState, outcome: FailoverOutcome): void {
  for (const condition of FAILOVER_CONDITIONS) setCondition(record, condition, false);
  if (outcome.epoch !== undefined) record.epoch = outcome.epoch;
  setCondition(record, CONDITIONS.sourceMayRun, outcome.booted && outcome.sourceMayRun);
  if (outcome.booted) {
    record.phase = nextPhase(record.phase, "booted");
    record.activeSite = record.targetSite;
    const sourceBranch = record.branch;
    if (outcome.branch !== undefined) record.branch = outcome.branch;
    setCondition(record, CONDITIONS.paused, false);
    setCondition(record, CONDITIONS.partial, outcome.partial);
    setCondition(record, CONDITIONS.notAnswering, !outcome.answering);
    delete record.targetFault;
    const { afterwards } = record;
    record.replica = {
      ...newReplica(operation, sourceBranch),
      ...(afterwards === undefined
        ? {}
        : { due: { move: afterwards.move, atMs: (operation.endedAtMs ?? now()) + afterwards.afterMs } }),
    };
    delete record.afterwards;
    return;
  }
  delete record.afterwards;
  record.phase = nextPhase(record.phase, "failover-undone", record.phaseBefore);
  setCondition(record, CONDITIONS.sourceFenced, outcome.sourceFenced);
  // Epoch and branch may have changed since the last order: it is made anew, from what the target then says.
  record.orderDue = !outcome.sourceFenced;
  expectConnection(record, now());
}

/** An operation's workflow ended without a report. What it had reported before decides what is assumed. */
export function applyLoss(record: GroupRecord, operationId: string): void {
  const operation = operationOf(record, operationId);
  if (operation?.state !== "running") return;
  const { details: _details, ...fault } = new Fault("INTERRUPTED", "Its workflow was ended from outside", {
    hint: "Look at the group's health, then repeat the command",
  }).toJSON();
  const ended: OperationState = { ...operation, state: "failed", endedAtMs: now(), fault };
  const booted = (operation.machines ?? []).length > 0;
  const fenced = operation.steps.some((step) => step.name === "fence" && step.state !== "waiting");
  if (operation.kind === "failover") {
    applyEnd(record, {
      operation: ended,
      failover: {
        booted,
        sourceFenced: fenced,
        partial: false,
        answering: false,
        sourceMayRun: false,
      },
    });
  } else if (operation.kind === "changePoint")
    applyEnd(record, { operation: ended, changePoint: lostChange(operation) });
  else if (operation.kind === "retry") applyEnd(record, { operation: ended, retry: { answering: false } });
  else if (operation.kind === "undo") applyEnd(record, { operation: ended, undo: lostUndo(operation) });
  else if (operation.kind === "reprotect")
    applyEnd(record, { operation: ended, reprotect: lostReprotect(record, operation) });
  else if (operation.kind === "testFailover") applyEnd(record, { operation: ended, test: { cleanupFailed: true } });
  else putOperation(record, ended);
}

/** Everything of a test is gone. */
export function forgetTest(record: GroupRecord, operationId: string, fault: OperationState["fault"]): void {
  if (record.test?.operationId !== operationId) return;
  delete record.test;
  setCondition(record, CONDITIONS.testing, false);
  setCondition(record, CONDITIONS.testCleanupFailed, false);
  endCleanups(record, fault);
}

function endCleanups(record: GroupRecord, fault: OperationState["fault"]): void {
  for (const operation of record.operations) {
    if (operation.kind !== "cleanup" || operation.state !== "running") continue;
    const { waitsFor: _waitsFor, ...rest } = operation;
    const failed = fault !== undefined;
    putOperation(record, {
      ...rest,
      state: failed ? "failed" : "done",
      endedAtMs: now(),
      steps: [
        { name: "clean up", state: failed ? "failed" : "done", startedAtMs: operation.startedAtMs, endedAtMs: now() },
      ],
      ...(failed ? { fault } : {}),
    });
  }
}

/** Ids of the workflows that a group starts. */
export function childWorkflowId(
  groupId: string,
  kind: "failover" | "change-point" | "undo" | "reprotect" | "retry" | "test",
  operationId: string,
): string {
  return `${groupWorkflowId(groupId)}/${kind}/${operationId}`;
}
