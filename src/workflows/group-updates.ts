/**
 * What people ask of a group: validators and handlers of its updates.
 *
 * Invariants:
 * - validators are synchronous and change nothing; a repeat of a known operation always passes them, whatever the phase is by now;
 * - a handler looks its operation id up first, and settles all that others could decide on (phase, order version, memory of the
 *   answer) before its first await;
 * - after an await a handler looks again: a failover may have begun.
 */
import { CancellationScope, defineUpdate, setHandler } from "@temporalio/workflow";
import { CONDITIONS, refusalOf, type GroupOperation, type MoveOptions, type Refusal } from "#model/group-phase.ts";
import { nextPhase } from "#model/phase-events.ts";
import { Fault } from "#model/fault.ts";
import { failoverFault } from "./failover-request.ts";
import { failureOf, faultOf } from "./failures.ts";
import { giveBack } from "./give-back.ts";
import { bookmark } from "./group-bookmark.ts";
import { beginCleanup, beginFailover, beginTest, childWorkflowId, applyLoss, preemptTest } from "./group-children.ts";
import { nextOrder } from "./group-order.ts";
import {
  expectConnection,
  factsOf,
  hasCondition,
  putOperation,
  remember,
  resultOf,
  setCondition,
  started,
  takeRequest,
  type GroupRecord,
} from "./group-record.ts";
import {
  beginChangePoint,
  beginRetry,
  beginUndo,
  commitFailover,
  retryFault,
  setsAside,
  skipMissing,
} from "./group-moves.ts";
import { putOrder } from "./group-protect.ts";
import { beginReprotect } from "./group-reprotect.ts";
import {
  groupWorkflowId,
  UPDATES,
  type BookmarkRequest,
  type ChangePointRequest,
  type FailoverRequest,
  type LeaveStarted,
  type MoveRequest,
  type Operation,
  type OperationDone,
  type ProtectRequest,
  type ReprotectRequest,
  type RetryRequest,
  type TestCleanupRequest,
  type TestFailoverRequest,
  type UnprotectRequest,
  type UpdateResults,
} from "./messages.ts";
import { protectFault } from "./protect-request.ts";
import { assertSourceAnswers } from "./undo.ts";
import { now } from "./workflow-time.ts";

const LEASE_MS_MIN = 1_000;

/** What handlers share with the group's main loop. */
export interface Group {
  readonly record: GroupRecord;
  /** Set when this run must end soon and updates keep it from it. */
  draining: boolean;
  /** The replica is being given back to its source: no failover may slip in between. */
  givingBack: boolean;
  /** For tests; see GroupStart. */
  readonly answerMs: number | undefined;
  /** Wake the main loop: what it waits for no longer holds. */
  interrupt(): void;
  /** Show the record as it is now. */
  show(): void;
}

export function handleUpdates(group: Group): void {
  const { record } = group;
  const { groupId } = record;
  const workflowId = groupWorkflowId(groupId);

  on<ProtectRequest, "protect">(group, "protect", {
    operation: "protect",
    check: (request) => protectFault(request, groupId),
    handle: async (request) => {
      takeRequest(record, request, now());
      record.phase = nextPhase(record.phase, "protect");
      putOperation(record, {
        operationId: request.operationId,
        kind: "protect",
        workflowId,
        groupId,
        by: request.by,
        state: "running",
        startedAtMs: now(),
        waitsFor: "its first step",
        steps: [],
      });
      group.interrupt();
      return started(record, request.operationId, workflowId);
    },
  });

  on<UnprotectRequest, "unprotect">(group, "unprotect", {
    operation: "unprotect",
    options: (request) => ({ stopReplica: request.stopReplica === true }),
    handle: async (request) => {
      setCondition(record, CONDITIONS.unprotecting, true);
      putOperation(record, {
        operationId: request.operationId,
        kind: "unprotect",
        workflowId,
        groupId,
        by: request.by,
        state: "running",
        startedAtMs: now(),
        waitsFor: "its first step",
        steps: [],
      });
      group.interrupt();
      return started(record, request.operationId, workflowId);
    },
  });

  on<Operation, "pause">(group, "pause", {
    operation: "pause",
    handle: async (request) => {
      // The version is taken now; a failover that begins meanwhile takes a higher one, and this order is then ignored.
      await putOrder(nextOrder(record, "paused"), record.targetSite, "pause replication");
      if (record.phase === "protected") setCondition(record, CONDITIONS.paused, true);
      return done(record, request);
    },
  });

  on<Operation, "resume">(group, "resume", {
    operation: "resume",
    handle: async (request) => {
      if (hasCondition(record, CONDITIONS.sourceFenced)) await giveBack(group, request);
      else await putOrder(nextOrder(record, "active"), record.targetSite, "resume replication");
      expectConnection(record, now());
      if (record.phase === "protected") setCondition(record, CONDITIONS.paused, false);
      group.interrupt();
      return done(record, request);
    },
  });

  on<BookmarkRequest, "bookmark">(group, "bookmark", {
    operation: "bookmark",
    check: (request) =>
      request.name === ""
        ? new Fault("USAGE", `Name "${request.name}" is empty, expected a name for the bookmark`)
        : undefined,
    handle: async (request) => await bookmark(group, request),
  });

  on<FailoverRequest, "failover">(group, "failover", {
    operation: (request) =>
      request.failback === true ? "failback" : request.mode === "planned" ? "planned-failover" : "failover",
    options: (request) => ({ sourceLost: request.sourceLost }),
    check: (request) => failoverFault(group, request),
    handle: async (request) => {
      const child = childWorkflowId(groupId, "failover", request.operationId);
      const answer = started(record, request.operationId, child, record.epoch + 1);
      await launch(group, request, async (lost) => await beginFailover(record, request, child, group.answerMs, lost));
      await preemptTest(record);
      return answer;
    },
  });

  on<ChangePointRequest, "changePoint">(group, "changePoint", {
    operation: "change-point",
    check: (request) =>
      request.point === ""
        ? new Fault("USAGE", `Point "${request.point}" is empty, expected which point to go on from`)
        : undefined,
    handle: async (request) =>
      await beginMove(group, request, "change-point", async (child, lost) => {
        await beginChangePoint(record, request, child, { answerMs: group.answerMs, lost });
      }),
  });

  on<MoveRequest, "commit">(group, "commit", {
    operation: "commit",
    handle: async (request) => {
      commitFailover(record, request, workflowId);
      return done(record, request);
    },
  });

  on<MoveRequest, "undo">(group, "undo", {
    operation: "undo",
    handle: async (request) => {
      await assertSourceAnswers({ ...record, groupName: record.name });
      // Somebody else may have begun a move meanwhile.
      const refusal = refusalOf(factsOf(record), "undo");
      if (refusal !== undefined) throw refused(record, refusal);
      return await beginMove(group, request, "undo", async (child, lost) => {
        await beginUndo(record, request, child, lost);
      });
    },
  });

  on<ReprotectRequest, "reprotect">(group, "reprotect", {
    operation: "reprotect",
    handle: async (request) => {
      const child = childWorkflowId(groupId, "reprotect", request.operationId);
      const answer = started(record, request.operationId, child);
      await launch(group, request, async (lost) => await beginReprotect(record, request, child, lost));
      return answer;
    },
  });

  on<RetryRequest, "retryMembers">(group, "retryMembers", {
    operation: "retry-member",
    check: (request) => retryFault(record, request),
    handle: async (request) => {
      const child = childWorkflowId(groupId, "retry", request.operationId);
      const answer = started(record, request.operationId, child);
      await launch(group, request, async (lost) => {
        await beginRetry(record, request, child, { answerMs: group.answerMs, lost });
      });
      return answer;
    },
  });

  on<MoveRequest, "skipMembers">(group, "skipMembers", {
    operation: "skip-member",
    handle: async (request) => {
      skipMissing(record, request, workflowId);
      return done(record, request);
    },
  });

  on<TestFailoverRequest, "testFailoverStart">(group, "testFailoverStart", {
    operation: "test-failover",
    check: (request) =>
      request.leaseMs >= LEASE_MS_MIN
        ? undefined
        : new Fault("USAGE", `Lease of ${request.leaseMs} ms, expected at least ${LEASE_MS_MIN}`),
    handle: async (request) => {
      const child = childWorkflowId(groupId, "test", request.operationId);
      const answer = started(record, request.operationId, child);
      await beginTest(record, request, child, group.answerMs);
      return answer;
    },
  });

  on<TestCleanupRequest, "testFailoverCleanup">(group, "testFailoverCleanup", {
    operation: "test-failover-cleanup",
    check: (request) =>
      record.test?.operationId === request.testOperationId
        ? undefined
        : new Fault("NOT_FOUND", `Group "${record.name}" has no test failover "${request.testOperationId}"`, {
            hint: `There is ${record.test === undefined ? "none" : `"${record.test.operationId}"`}`,
          }),
    handle: async (request) => {
      const answer = started(record, request.operationId, record.test?.workflowId ?? workflowId);
      await beginCleanup(record, request);
      return answer;
    },
  });
}

interface UpdateRule<Request extends Operation, Name extends keyof UpdateResults> {
  readonly operation: GroupOperation | ((request: Request) => GroupOperation);
  readonly options?: (request: Request) => MoveOptions;
  /** What is wrong with the request itself. */
  readonly check?: (request: Request) => Fault | undefined;
  readonly handle: (request: Request) => Promise<UpdateResults[Name]>;
}

function on<Request extends Operation, Name extends keyof UpdateResults>(
  group: Group,
  name: Name,
  rule: UpdateRule<Request, Name>,
): void {
  const { record } = group;
  setHandler(
    defineUpdate<UpdateResults[Name], [Request]>(UPDATES[name]),
    async (request) => {
      const known = resultOf<UpdateResults[Name]>(record, request.operationId);
      if (known !== undefined) return known;
      try {
        // Not under a cancellation of the group's workflow: see protection-group.ts.
        return await CancellationScope.nonCancellable(async () => await rule.handle(request));
      } catch (error) {
        throw failureOf(faultOf(error));
      } finally {
        group.show();
      }
    },
    {
      validator: (request) => {
        if (resultOf(record, request.operationId) !== undefined) return;
        if (group.draining)
          throw failureOf(
            new Fault("DRAINING", "The group is about to start a new run of its workflow", {
              hint: "Send the same request again",
            }),
          );
        const operation = typeof rule.operation === "string" ? rule.operation : rule.operation(request);
        const refusal = refusalOf(factsOf(record), operation, rule.options?.(request));
        if (refusal !== undefined) throw failureOf(refused(record, refusal));
        const fault = rule.check?.(request);
        if (fault !== undefined) throw failureOf(fault);
      },
    },
  );
}

export function refused(record: GroupRecord, { message, hint }: Refusal): Fault {
  return new Fault("REFUSED", message, { hint, details: { phase: record.phase } });
}

/** Start a child that moves the group away from its replica, and answer with what that sets aside. */
export async function beginMove(
  group: Group,
  request: MoveRequest,
  kind: "change-point" | "undo",
  begin: (workflowId: string, lost: () => void) => Promise<void>,
): Promise<LeaveStarted> {
  const { record } = group;
  const { operationId } = request;
  const child = childWorkflowId(record.groupId, kind, operationId);
  const epoch = kind === "undo" ? record.epoch + 1 : record.epoch;
  const answer = remember(record, operationId, {
    ...started(record, operationId, child, epoch),
    setsAside: setsAside(record),
  });
  await launch(group, request, async (lost) => await begin(child, lost));
  return answer;
}

/** Begin a child that ends the group's turn; one that cannot be started was lost. */
async function launch(
  group: Group,
  { operationId }: Operation,
  begin: (lost: () => void) => Promise<void>,
): Promise<void> {
  const lost = (): void => {
    applyLoss(group.record, operationId);
    group.show();
  };
  const beginning = begin(lost);
  group.interrupt();
  try {
    await beginning;
  } catch (error) {
    lost();
    throw error;
  }
}

function done(record: GroupRecord, request: Operation): OperationDone {
  return remember(record, request.operationId, { operationId: request.operationId, doneAtMs: now() });
}
