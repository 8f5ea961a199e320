/**
 * The moves after a failover as the group sees them: what each is told when it begins, and what its end means. See group-children.ts.
 *
 * Invariant: a move that was not carried through leaves the group failed over, and says what is true then: machines that were stopped
 * are brought back by whoever watches (`replica.reopen`), or, when the replica may have been given back, only another undo goes on.
 */
import { ParentClosePolicy, startChild, WorkflowIdReusePolicy } from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import { CONDITIONS } from "#model/group-phase.ts";
import { nextPhase } from "#model/phase-events.ts";
import { PRIORITY } from "./act.ts";
import { changePoint } from "./change-point.ts";
import {
  expectConnection,
  FAILOVER_CONDITIONS,
  hasCondition,
  missingMachines,
  putOperation,
  setCondition,
  type GroupRecord,
  type ReplicaRecord,
} from "./group-record.ts";
import { reopening, type LeaveInput } from "./leave-replica.ts";
import {
  CONTROL_QUEUE,
  type ChangePointRequest,
  type MoveRequest,
  type OperationState,
  type ProtectedMachine,
  type RetryRequest,
  type SetAside,
} from "./messages.ts";
import { begun, childAttributes } from "./operation-view.ts";
import { retryMembers } from "./retry-members.ts";
import type { ChangePointOutcome, RetryOutcome, UndoOutcome } from "./signals.ts";
import { undo } from "./undo.ts";
import { now } from "./workflow-time.ts";

/** Groups that failed over before this was recorded had never left it. */
const FIRST_BRANCH = "root";

export function setsAside(record: GroupRecord): SetAside {
  const { startedAtMs, export: seen } = replicaOf(record);
  return {
    branch: record.branch,
    ...(startedAtMs === undefined ? {} : { ranMs: now() - startedAtMs }),
    bytes: seen?.overlayBytes ?? 0,
  };
}

/** Synchronous up to the start of the child; so is `beginChangePoint`. */
export async function beginUndo(
  record: GroupRecord,
  request: MoveRequest,
  workflowId: string,
  lost: () => void,
): Promise<void> {
  const input = {
    ...leavingReplica(record, request, workflowId),
    sourceSite: record.sourceSite,
    sourceBranch: replicaOf(record).sourceBranch ?? FIRST_BRANCH,
    machines: record.machines.map(({ name, machineId, disks }) => ({
      name,
      ...(machineId === undefined ? {} : { machineId }),
      tapUrls: disks.flatMap(({ tapUrl }) => (tapUrl === undefined ? [] : [tapUrl])),
    })),
  };
  record.phase = nextPhase(record.phase, "undo");
  putOperation(record, begun(record, request, "undo", workflowId));
  const child = await startChild(undo, {
    ...childOptions(request, workflowId),
    args: [input],
    staticSummary: `${record.name}: undo, ${record.targetSite} → ${record.sourceSite}`,
    typedSearchAttributes: childAttributes("undo", record.name, record.targetSite),
  });
  child.result().catch(lost);
}

export async function beginChangePoint(
  record: GroupRecord,
  request: ChangePointRequest,
  workflowId: string,
  options: { readonly answerMs: number | undefined; readonly lost: () => void },
): Promise<void> {
  const { answerMs, lost } = options;
  const input = {
    ...leavingReplica(record, request, workflowId),
    point: request.point,
    sourceBranch: replicaOf(record).sourceBranch ?? FIRST_BRANCH,
    machines: record.machines,
    ...(answerMs === undefined ? {} : { answerMs }),
  };
  record.phase = nextPhase(record.phase, "change-point");
  putOperation(record, begun(record, request, "changePoint", workflowId));
  const child = await startChild(changePoint, {
    ...childOptions(request, workflowId),
    args: [input],
    staticSummary: `${record.name}: change point to ${request.point}`,
    typedSearchAttributes: childAttributes("changePoint", record.name, record.targetSite),
  });
  child.result().catch(lost);
}

/** NOT_FOUND for a machine that is not missing and not off. */
export function retryFault(record: GroupRecord, { machine }: RetryRequest): Fault | undefined {
  const names = machinesToStart(record).map(({ name }) => name);
  if (machine === undefined || names.includes(machine)) return undefined;
  return new Fault("NOT_FOUND", `No machine "${machine}" of group "${record.name}" is missing or off`, {
    hint: `Missing or off: ${names.join(", ")}`,
  });
}

export async function beginRetry(
  record: GroupRecord,
  request: RetryRequest,
  workflowId: string,
  options: { readonly answerMs: number | undefined; readonly lost: () => void },
): Promise<void> {
  const { operationId, pointId, sourceBranch } = replicaOf(record);
  const { answerMs, lost } = options;
  const machines = machinesToStart(record).filter(
    ({ name }) => request.machine === undefined || name === request.machine,
  );
  const points = pointsOfRetry(record, request, machines);
  const input = {
    groupId: record.groupId,
    groupName: record.name,
    operationId: request.operationId,
    workflowId,
    by: request.by,
    targetSite: record.targetSite,
    replica: { operationId, pointId },
    machines,
    ...(points === undefined ? {} : { points, sourceBranch: sourceBranch ?? FIRST_BRANCH }),
    ...(answerMs === undefined ? {} : { answerMs }),
  };
  // Their machines are taken away while their disks change: until they run they are missing, and nobody else starts them.
  if (points !== undefined) forgetMachines(record, Object.keys(points));
  setCondition(record, CONDITIONS.retrying, true);
  putOperation(record, begun(record, request, "retry", workflowId));
  const child = await startChild(retryMembers, {
    ...childOptions(request, workflowId),
    args: [input],
    staticSummary: `${record.name}: start ${input.machines.map(({ name }) => name).join(", ")} at ${record.targetSite}`,
    typedSearchAttributes: childAttributes("retry", record.name, record.targetSite),
  });
  child.result().catch(lost);
}

/** What a person said, or what an earlier retry could not finish; undefined when all go on where the others are. */
function pointsOfRetry(
  record: GroupRecord,
  { point }: RetryRequest,
  machines: readonly ProtectedMachine[],
): Readonly<Record<string, string>> | undefined {
  const known = replicaOf(record).otherPoints ?? {};
  const points = machines.flatMap(({ name }) => {
    const half = known[name]?.taken === false ? known[name].pointId : undefined;
    const wanted = point ?? half;
    return wanted === undefined ? [] : [[name, wanted] as const];
  });
  return points.length === 0 ? undefined : Object.fromEntries(points);
}

function forgetMachines(record: GroupRecord, names: readonly string[]): void {
  const replica = replicaOf(record);
  const restarts = Object.entries(replica.restarts ?? {}).filter(([name]) => !names.includes(name));
  record.replica = {
    ...replica,
    machines: replica.machines.filter(({ name }) => !names.includes(name)),
    machinesOff: replica.machinesOff.filter((name) => !names.includes(name)),
    restarts: Object.fromEntries(restarts),
  };
}

/** Those that run are in the operation, also when others failed again. */
export function applyRetry(record: GroupRecord, operation: OperationState, outcome: RetryOutcome): void {
  const replica = replicaOf(record);
  const started = (operation.machines ?? []).map(({ name, machineId }) => ({ name, machineId }));
  const others = replica.machines.filter(({ name }) => !started.some((one) => one.name === name));
  const restarts = Object.entries(replica.restarts ?? {}).filter(([name]) => !started.some((one) => one.name === name));
  const { otherPoints } = operation;
  const taken = stepOf(operation, "take point") === "done";
  const points = Object.entries(otherPoints ?? {}).map(([name, pointId]) => [name, { pointId, taken }] as const);
  record.replica = {
    ...replica,
    ...(points.length === 0 ? {} : { otherPoints: { ...replica.otherPoints, ...Object.fromEntries(points) } }),
    restarts: Object.fromEntries(restarts),
    machines: [...others, ...started],
    machinesOff: replica.machinesOff.filter((name) => !started.some((one) => one.name === name)),
  };
  setCondition(record, CONDITIONS.retrying, false);
  setCondition(record, CONDITIONS.partial, missingMachines(record).length > 0);
  if (started.length > 0 && !outcome.answering) setCondition(record, CONDITIONS.notAnswering, true);
}

/** Those that never started, and those that ran and are off. */
function machinesToStart(record: GroupRecord): readonly ProtectedMachine[] {
  const { machinesOff } = replicaOf(record);
  const missing = missingMachines(record);
  return record.machines.filter((one) => missing.includes(one) || machinesOff.includes(one.name));
}

/** The group goes on without them: a person has decided, and is reminded no more. */
export function skipMissing(record: GroupRecord, request: MoveRequest, workflowId: string): void {
  const names = missingMachines(record).map(({ name }) => name);
  putDone(record, request, { kind: "skip", workflowId, detail: names.join(", ") });
  setCondition(record, CONDITIONS.partial, false);
}

/** Nothing in the world changes: the group merely forgets the way back. */
export function commitFailover(record: GroupRecord, request: MoveRequest, workflowId: string): void {
  record.phase = nextPhase(record.phase, "commit");
  // The right to go on where that stood ends too.
  delete record.reseed;
  putDone(record, request, { kind: "commit", workflowId, detail: `on branch ${record.branch}` });
}

function putDone(
  record: GroupRecord,
  request: MoveRequest,
  {
    kind,
    workflowId,
    detail,
  }: { readonly kind: "commit" | "skip"; readonly workflowId: string; readonly detail: string },
): void {
  const { waitsFor: _waitsFor, ...operation } = begun(record, request, kind, workflowId);
  const atMs = now();
  putOperation(record, {
    ...operation,
    state: "done",
    endedAtMs: atMs,
    steps: [{ name: kind, state: "done", startedAtMs: atMs, endedAtMs: atMs, detail }],
  });
}

export function applyUndo(record: GroupRecord, operation: OperationState, outcome: UndoOutcome): void {
  if (!outcome.undone) {
    record.phase = nextPhase(record.phase, "undo-failed");
    // Once unknown it stays so, until an undo has been carried through.
    if (outcome.unknown) setCondition(record, CONDITIONS.undoUnfinished, true);
    else if (outcome.stopped) reopenLater(record, operation);
    return;
  }
  record.phase = nextPhase(record.phase, "undone", record.reseed === undefined ? "protected" : "reseeding");
  for (const condition of [...FAILOVER_CONDITIONS, CONDITIONS.undoUnfinished] as const)
    setCondition(record, condition, false);
  record.activeSite = record.sourceSite;
  record.branch = replicaOf(record).sourceBranch ?? FIRST_BRANCH;
  if (outcome.epoch !== undefined) record.epoch = outcome.epoch;
  delete record.replica;
  // The source replicates again once it has the order, under the epoch and on the branch that the target then says.
  record.orderDue = true;
  expectConnection(record, now());
}

export function applyChangePoint(record: GroupRecord, operation: OperationState, outcome: ChangePointOutcome): void {
  record.phase = nextPhase(record.phase, "point-settled");
  if (!outcome.changed) {
    if (outcome.stopped) reopenLater(record, operation);
    return;
  }
  const { sourceBranch } = replicaOf(record);
  if (outcome.branch !== undefined) record.branch = outcome.branch;
  setCondition(record, CONDITIONS.partial, outcome.partial);
  setCondition(record, CONDITIONS.notAnswering, !outcome.answering);
  record.replica = newReplica(operation, sourceBranch);
}

export function newReplica(operation: OperationState, sourceBranch: string | undefined): ReplicaRecord {
  return {
    operationId: operation.operationId,
    pointId: operation.pointId ?? "",
    machines: (operation.machines ?? []).map(({ name, machineId }) => ({ name, machineId })),
    machinesOff: [],
    uncommittedSinceMs: 0,
    startedAtMs: now(),
    ...(sourceBranch === undefined ? {} : { sourceBranch }),
  };
}

/** What an undo that ended without a report is assumed to have done. */
export function lostUndo(operation: OperationState): UndoOutcome {
  const giveBack = stepOf(operation, "give back");
  const undone = giveBack === "done";
  const unknown = !undone && giveBack !== "waiting" && giveBack !== "skipped";
  return { undone, unknown, stopped: stepOf(operation, "stop machines") !== "waiting" };
}

/** Once the new machines were being started they count: two sets of machines would be worse than none. */
export function lostChange(operation: OperationState): ChangePointOutcome {
  const changed = stepOf(operation, "start machines") !== "waiting" && (operation.machines ?? []).length > 0;
  const stopped = !changed && stepOf(operation, "stop machines") !== "waiting";
  return { changed, stopped, partial: false, answering: false };
}

function stepOf(operation: OperationState, name: string): string {
  return operation.steps.find((step) => step.name === name)?.state ?? "waiting";
}

/** Machines that a move stopped are brought back by whoever watches. */
export function reopenLater(record: GroupRecord, operation: OperationState): void {
  record.replica = { ...replicaOf(record), reopen: reopening(operation.operationId) };
}

/** What a move is told that leaves the replica. */
export function leavingReplica(record: GroupRecord, request: MoveRequest, workflowId: string): LeaveInput {
  const { operationId, pointId, machines, machinesOff } = replicaOf(record);
  return {
    groupId: record.groupId,
    groupName: record.name,
    operationId: request.operationId,
    workflowId,
    by: request.by,
    targetSite: record.targetSite,
    replica: {
      operationId,
      pointId,
      branch: record.branch,
      machines: machines.filter(({ name }) => !machinesOff.includes(name)),
    },
    setsAside: setsAside(record),
    comesBack: !hasCondition(record, CONDITIONS.undoUnfinished),
  };
}

export function childOptions(request: MoveRequest, workflowId: string) {
  return {
    workflowId,
    taskQueue: CONTROL_QUEUE,
    parentClosePolicy: ParentClosePolicy.ABANDON,
    workflowIdReusePolicy: WorkflowIdReusePolicy.REJECT_DUPLICATE,
    priority: { priorityKey: PRIORITY.failover },
    memo: { by: request.by, ...(request.note === undefined ? {} : { note: request.note }) },
  };
}

function replicaOf(record: GroupRecord): ReplicaRecord {
  if (record.replica === undefined) throw new RangeError("Failed over without a replica");
  return record.replica;
}
