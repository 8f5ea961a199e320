/**
 * A reprotect as its group sees it: what it is told when it begins, the swap of the group's sites in its middle, and what its end means.
 * See group-children.ts.
 *
 * Invariants:
 * - until the sites are swapped the group is committed, watches its replica as before, and refuses other moves;
 * - the swap happens in one step, when the store at the new target says that it is done; from then on the group replicates by itself, and the
 *   workflow that began it only waits to say so;
 * - a reprotect that ended without a word is undone by the group, as far as it is known to have come.
 */
import { getExternalWorkflowHandle, log, startChild } from "@temporalio/workflow";
import { CONDITIONS } from "#model/group-phase.ts";
import { nextPhase } from "#model/phase-events.ts";
import { act, PRIORITY } from "./act.ts";
import { childOptions } from "./group-moves.ts";
import { putOrder } from "./group-protect.ts";
import { currentOrder, groupDisks } from "./group-order.ts";
import {
  FAILOVER_CONDITIONS,
  homeSiteOf,
  operationOf,
  putOperation,
  setCondition,
  type GroupRecord,
} from "./group-record.ts";
import type { OperationState, ProtectedMachine, ReprotectRequest } from "./messages.ts";
import { begun, childAttributes } from "./operation-view.ts";
import { ORDERS, reprotect, type ReprotectInput } from "./reprotect.ts";
import { reseeded, type ReprotectOutcome, type Turned } from "./signals.ts";

/** Synchronous up to the start of the child. */
export async function beginReprotect(
  record: GroupRecord,
  request: ReprotectRequest,
  workflowId: string,
  lost: () => void,
): Promise<void> {
  const input = reprotectInput(record, request, workflowId);
  record.order = { version: record.order.version + ORDERS, state: "stopped" };
  delete record.unwind;
  setCondition(record, CONDITIONS.reprotecting, true);
  putOperation(record, begun(record, request, "reprotect", workflowId));
  const child = await startChild(reprotect, {
    ...childOptions(request, workflowId),
    priority: { priorityKey: PRIORITY.watch },
    args: [input],
    staticSummary: `${record.name}: reprotect, ${input.from} → ${input.to}`,
    typedSearchAttributes: childAttributes("reprotect", record.name, input.from),
  });
  child.result().catch(lost);
}

function reprotectInput(record: GroupRecord, request: ReprotectRequest, workflowId: string): ReprotectInput {
  const { replica, targetSite: from, sourceSite: to } = record;
  if (replica === undefined) throw new RangeError("Committed without a replica");
  const isHome = from === homeSiteOf(record);
  const machines = (isHome ? (record.home?.machines ?? []) : record.machines).map(
    ({ agent, machineId: _old, ...machine }): ProtectedMachine => {
      const running = replica.machines.find(({ name }) => name === machine.name);
      return {
        ...machine,
        ...(isHome && agent !== undefined ? { agent } : {}),
        ...(running === undefined ? {} : { machineId: running.machineId }),
      };
    },
  );
  return {
    groupId: record.groupId,
    groupName: record.name,
    operationId: request.operationId,
    workflowId,
    by: request.by,
    from,
    to,
    replicaOperationId: replica.operationId,
    oldMachines: record.machines,
    machines,
    isHome,
    ...(request.agent === undefined ? {} : { agent: request.agent }),
    withoutOldDisks: request.withoutOldDisks ?? false,
    disks: groupDisks(record),
    record: JSON.stringify({
      name: record.name,
      policy: record.policy,
      sourceSite: from,
      targetSite: to,
      homeSite: homeSiteOf(record),
      machines,
    }),
    epoch: record.epoch,
    order: {
      ...currentOrder(record),
      version: record.order.version + 1,
      target: { site: to, host: "", port: 0 },
    },
  };
}

/** The sites are swapped: what was the source is the target. A report of an operation that is over, or of one that has told before, changes nothing. */
export function applyTurned(record: GroupRecord, turned: Turned): void {
  const operation = operationOf(record, turned.operationId);
  if (operation?.state !== "running" || record.phase !== "committed") return;
  const { sourceSite, targetSite, replica } = record;
  record.phase = nextPhase(record.phase, "turned");
  record.shown = ""; // The memo says the direction too.
  record.home ??= { site: sourceSite, machines: record.machines };
  record.sourceSite = targetSite;
  record.targetSite = sourceSite;
  record.machines = turned.machines;
  record.branch = turned.branch;
  record.epoch = turned.epoch;
  record.target = turned.target;
  record.protectOperationId = turned.operationId;
  record.reseed = {
    workflowId: operation.workflowId,
    afterBarrier: turned.afterBarrier,
    pointCutAtMs: turned.pointCutAtMs,
  };
  if (replica !== undefined) record.exportDue = { site: targetSite, operationId: replica.operationId };
  record.orderDue = true;
  record.cursor = "";
  for (const condition of [...FAILOVER_CONDITIONS, CONDITIONS.reprotecting, CONDITIONS.disksMoved] as const)
    setCondition(record, condition, false);
  delete record.replica;
  delete record.progress;
  delete record.targetFault;
  record.connectionUnknown = true;
}

/** Done or not: what it did to the group was told before, except that it did nothing. */
export function applyReprotect(record: GroupRecord, outcome: ReprotectOutcome): void {
  setCondition(record, CONDITIONS.reprotecting, false);
  if (record.phase === "committed" && outcome.moved > 0) setCondition(record, CONDITIONS.disksMoved, true);
}

/** What a reprotect that ended without a report is assumed to have done: its disks may have moved, its orders may stand. */
export function lostReprotect(record: GroupRecord, operation: OperationState): ReprotectOutcome {
  const turned = record.phase !== "committed";
  const began = (name: string): boolean =>
    operation.steps.some((step) => step.name === name && step.state !== "waiting" && step.state !== "skipped");
  if (!turned && began("prepare target")) {
    const { targetSite: from, sourceSite: to } = record;
    const order = { ...currentOrder(record), state: "stopped" as const, target: { site: to, host: "", port: 0 } };
    record.unwind = {
      site: to,
      operationId: operation.operationId,
      stops: [
        ...(began("serve disks") ? [{ ...order, sourceSite: from, members: [] }] : []),
        ...(began("sweep old disks") ? [{ ...order, sourceSite: to }] : []),
      ],
    };
  }
  return { turned, moved: !turned && began("move disks") ? 1 : 0 };
}

/** Orders of a lost reprotect are stopped, and its target released. Throws what could not be reached: tried again by the caller. */
export async function unwindReprotect(record: GroupRecord): Promise<void> {
  const { unwind } = record;
  if (unwind === undefined) return;
  const at = record.activeSite;
  for (const stop of unwind.stops) {
    record.order = { version: record.order.version + 1, state: "stopped" };
    const order = { ...stop, version: record.order.version };
    await putOrder(order, at, `stop what a lost reprotect ordered at ${stop.sourceSite}`);
  }
  const { site, operationId } = unwind;
  await act(
    "releaseGroup",
    { site, groupId: record.groupId, operationId },
    { at, summary: `release ${site} from a lost reprotect` },
  );
  // A new one may have begun meanwhile.
  if (record.unwind === unwind) delete record.unwind;
}

/** The first point of the new state is there. */
export async function endReseed(record: GroupRecord): Promise<void> {
  record.phase = nextPhase(record.phase, "reseeded");
  await tellReseed(record, {});
  delete record.reseed;
}

/** The reprotect that waits is told; it may have ended before. */
export async function tellReseed(record: GroupRecord, how: { readonly instead?: string }): Promise<void> {
  if (record.reseed === undefined) return;
  try {
    await getExternalWorkflowHandle(record.reseed.workflowId).signal(reseeded, how);
  } catch (error) {
    log.warn("The reprotect could not be told", { workflowId: record.reseed.workflowId, error: String(error) });
  }
}

/** The export that the machines have left is closed; its branch has everything. */
export async function leaveExport(record: GroupRecord): Promise<void> {
  const { exportDue } = record;
  if (exportDue === undefined) return;
  const { site, operationId } = exportDue;
  await act(
    "closeExport",
    { site, operationId, discard: true },
    { at: site, summary: `close the export that the machines have left at ${site}`, budgetMs: 60_000 },
  );
  delete record.exportDue;
}
