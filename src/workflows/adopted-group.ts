/**
 * The record with which a group begins after its workflow was lost: from the catalog, the claims and what runs at the target.
 *
 * Where it stands is decided in #model/adoption.ts. Here that becomes the same record that the lost workflow would have had after a move was
 * interrupted, so that everything afterwards (bringing disks back, a failover again, resume, clean-up) is what it is otherwise.
 *
 * Invariants:
 * - order versions go on above anything that the lost workflow can have issued;
 * - an operation that was running is over, and says so; protecting and ending protection go on, for all their steps can be taken again.
 */
import { adoptionFacts, planAdoption } from "#model/adoption.ts";
import { Fault, type FaultJson } from "#model/fault.ts";
import { CONDITIONS } from "#model/group-phase.ts";
import {
  emptyRecord,
  FAILOVER_CONDITIONS,
  hasCondition,
  setCondition,
  type GroupRecord,
  type ReplicaRecord,
} from "./group-record.ts";
import { reopening } from "./leave-replica.ts";
import { RECORD_VERSION, type AdoptedGroup, type OperationState } from "./messages.ts";

/** More orders than can have been given after the catalog was last written. */
const ORDER_LEAP = 1_000;

/** `leftOver`: operations whose machines and exports are to be removed. Throws RangeError for what the API should have refused. */
export function adoptedRecord(
  adopted: AdoptedGroup,
  nowMs: number,
): { readonly record: GroupRecord; readonly leftOver: readonly string[] } {
  const record = keptRecord(adopted, nowMs);
  const { standing, leftOver } = planAdoption(adoptionFacts(adopted.record, adopted));
  const lost = record.replica;
  const phaseBefore = record.phase;
  if (adopted.claim !== undefined) record.epoch = adopted.claim.groupEpoch;
  delete record.afterwards;
  switch (standing.at) {
    case "source":
      record.phase = standing.phase;
      leaveTarget(record);
      record.activeSite = record.sourceSite;
      if (adopted.disk !== undefined) record.branch = adopted.disk.branch;
      // Its order is sent anew, with this control's term; a group that is still seeding does that by itself.
      record.orderDue = standing.phase !== "seeding";
      break;
    case "nowhere":
      record.phase = "protected";
      record.branch = lost?.sourceBranch ?? record.branch;
      leaveTarget(record);
      record.activeSite = record.sourceSite;
      setCondition(record, CONDITIONS.sourceFenced, true);
      break;
    case "target":
      record.phase = standing.phase;
      record.activeSite = record.targetSite;
      // Machines that are off are taken to have died with the control plane: whoever watches starts them again.
      record.replica = { ...replicaOf(record, adopted, standing.replica, nowMs), fault: lostSight() };
      if (standing.interrupted)
        record.replica.reopen = reopening(interruptedMove(record) ?? `adopt-${adopted.revision}`);
      if (adopted.disk !== undefined) record.branch = adopted.disk.branch;
      for (const condition of [
        CONDITIONS.paused,
        CONDITIONS.sourceFenced,
        CONDITIONS.retrying,
        CONDITIONS.reprotecting,
      ] as const)
        setCondition(record, condition, false);
      setCondition(record, CONDITIONS.partial, isPartial(record, standing.replica, lost));
      break;
    case "ended":
    case "elsewhere":
      throw new RangeError(`Group "${record.groupId}" is ${standing.at} and cannot be adopted`);
  }
  record.operations = record.operations.map((operation) => interrupted(record, operation, { phaseBefore, nowMs }));
  return { record, leftOver };
}

function keptRecord(adopted: AdoptedGroup, nowMs: number): GroupRecord {
  const kept = adopted.record as unknown as GroupRecord; // Its version says that it is one.
  if (kept.version !== RECORD_VERSION)
    throw new RangeError(`Group record of version ${JSON.stringify(kept.version)}, this code knows ${RECORD_VERSION}`);
  const { newest } = adopted;
  const record: GroupRecord = {
    ...emptyRecord(kept.groupId),
    ...kept,
    order: { ...kept.order, version: Math.max(kept.order.version + ORDER_LEAP, nowMs) },
    operations: kept.operations.map((operation) => ({ ...operation, steps: [] })),
    catalog: { revision: adopted.revision, mark: "", sites: [kept.targetSite] },
    syncMovedAtMs: nowMs,
    connectionUnknown: true,
  };
  if (kept.replica !== undefined) record.replica = { ...kept.replica, machinesOff: [], uncommittedSinceMs: 0 };
  if (newest !== undefined) {
    record.progress = {
      groupId: kept.groupId,
      state: "waiting",
      connected: false,
      disks: [],
      currentAsOfMs: newest.cutAtMs,
      barrier: newest.barrier,
      barrierCutAtMs: newest.cutAtMs,
      barrierCommittedAtMs: newest.cutAtMs,
      commits: 0,
      shippedBytes: 0,
      storedBytes: 0,
      syncBytesPerSecond: 0,
      backlogBytes: 0,
      writtenBytes: 0,
      observedAtMs: nowMs,
    };
  }
  return record;
}

function leaveTarget(record: GroupRecord): void {
  delete record.replica;
  for (const condition of [...FAILOVER_CONDITIONS, CONDITIONS.undoUnfinished, CONDITIONS.retrying] as const)
    setCondition(record, condition, false);
}

/** As it was recorded; or, of a move whose end was not, as it is seen now. */
function replicaOf(record: GroupRecord, adopted: AdoptedGroup, operationId: string, nowMs: number): ReplicaRecord {
  const known = record.replica;
  if (known?.operationId === operationId) return known;
  const operation = record.operations.find((one) => one.operationId === operationId);
  const seen = adopted.exports.find((one) => one.operationId === operationId);
  return {
    operationId,
    pointId: seen?.pointId ?? operation?.pointId ?? "",
    machines: adopted.machines
      .filter((machine) => machine.operationId === operationId)
      .map(({ id, name }) => ({ name, machineId: id })),
    machinesOff: [],
    uncommittedSinceMs: 0,
    startedAtMs: nowMs,
    sourceBranch: known?.sourceBranch ?? record.branch,
  };
}

function isPartial(record: GroupRecord, operationId: string, lost: ReplicaRecord | undefined): boolean {
  // Who skipped a missing machine is not reminded of it.
  if (lost?.operationId === operationId) return hasCondition(record, CONDITIONS.partial);
  return record.machines.some(({ name }) => !record.replica?.machines.some((one) => one.name === name));
}

function lostSight(): FaultJson {
  return new Fault(
    "PEER_UNREACHABLE",
    "The control plane was lost, and nobody has looked at the machines since",
  ).toJSON();
}

function interruptedMove(record: GroupRecord): string | undefined {
  return record.operations.find(({ kind, state }) => state === "running" && (kind === "undo" || kind === "changePoint"))
    ?.operationId;
}

function interrupted(
  record: GroupRecord,
  operation: OperationState,
  { phaseBefore, nowMs }: { readonly phaseBefore: GroupRecord["phase"]; readonly nowMs: number },
): OperationState {
  if (operation.state !== "running") return operation;
  const goesOn =
    (operation.kind === "protect" && phaseBefore === "seeding" && record.phase === "seeding") ||
    (operation.kind === "unprotect" && hasCondition(record, CONDITIONS.unprotecting));
  if (goesOn) return operation;
  const { details: _details, ...fault } = new Fault("INTERRUPTED", "The control plane was lost while it ran", {
    hint: "Look at the group's phase and health, then repeat the command if it is still wanted",
  }).toJSON();
  return { ...operation, state: "failed", endedAtMs: nowMs, fault };
}
