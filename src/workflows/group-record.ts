/**
 * The state of a protection group: what its entity workflow carries from run to run. Its only writer is that workflow.
 *
 * Invariants:
 * - plain JSON with a version; a run that gets a version it does not know stops (a bug in the deployment), it never guesses;
 * - `results` remembers the answers of the last 200 operations: an update id deduplicates within one run only, this does it for ever;
 * - `order.version` only grows; whoever wants to change the order takes the next number synchronously (group-order.ts).
 */
import {
  allowedOperations,
  CONDITIONS,
  runsAtTarget,
  type GroupCondition,
  type GroupFacts,
} from "#model/group-phase.ts";
import { assessHealth, healthLevel, isConnecting, isRpoBreach, type HealthFacts } from "#model/health.ts";
import type { ExportStatus } from "#ports/master-target.ts";
import type { GroupProgress, ReplicationOrder } from "#ports/replication.ts";
import type { FaultJson } from "#model/fault.ts";
import { RECORD_VERSION } from "./messages.ts";
import type {
  Afterwards,
  DueMove,
  GroupPhase,
  GroupState,
  OperationState,
  OperationStarted,
  ProtectedMachine,
  ProtectRequest,
  ReplicaMachines,
  ReplicationPolicy,
} from "./messages.ts";

const RESULTS_MAX = 200;
const OPERATIONS_MAX = 20;

export interface GroupRecord {
  version: typeof RECORD_VERSION;
  groupId: string;
  name: string;
  policy: ReplicationPolicy;
  sourceSite: string;
  targetSite: string;
  activeSite: string;
  /** The machines at the source site. */
  machines: readonly ProtectedMachine[];
  /** Where the group is from, with its machines as they are there; absent until its sites were swapped for the first time. */
  home?: { readonly site: string; readonly machines: readonly ProtectedMachine[] };
  phase: GroupPhase;
  phaseBefore: GroupPhase;
  conditions: readonly string[];
  epoch: number;
  branch: string;
  /** The operation that protected it: prepares the group again under the same id if the target forgot it. */
  protectOperationId: string;
  target: { host: string; port: number };
  order: { version: number; state: ReplicationOrder["state"] };
  /** The order must be sent once more before watching goes on. */
  orderDue?: boolean;
  cursor: string;
  progress?: GroupProgress;
  observedAtMs: number;
  /** Since the last look something was done that makes what it saw of the connection worthless. */
  connectionUnknown?: boolean;
  /** Since when the source is expected to connect: after a start of the target, or of its order. Absent once it has. */
  connectingSinceMs?: number;
  /** This run gives the source its time to connect. Runs that began before there was such a thing go on without. */
  connectGrace?: boolean;
  syncMovedAtMs: number;
  targetFault?: FaultJson;
  /** The failover whose machines run at the target. */
  replica?: ReplicaRecord;
  /** Its sites were swapped, and what runs at the source has no complete point at the target yet. */
  reseed?: ReseedRecord;
  /** The export that the machines have left by a reprotect: it is to be closed after its last commit. */
  exportDue?: { readonly site: string; readonly operationId: string };
  /** What a reprotect left behind whose workflow was ended from outside. */
  unwind?: Unwind;
  /** What a running failover is to be followed by. */
  afterwards?: Afterwards;
  test?: { operationId: string; workflowId: string };
  /** What of this record is in the catalog; see group-catalog.ts. */
  catalog?: CatalogState;
  operations: readonly OperationState[];
  results: readonly RememberedResult[];
  /** What lists were told last: attributes are changed only with it. */
  shown: string;
}

export interface CatalogState {
  /** Newest number that was given out. */
  readonly revision: number;
  /** Tells whether the record is as it was written; "" when that is not known. */
  readonly mark: string;
  /** Sites whose stores have entries of this group. */
  readonly sites: readonly string[];
  readonly fault?: FaultJson;
  readonly retryAtMs?: number;
}

export interface ReplicaRecord {
  operationId: string;
  pointId: string;
  machines: readonly { readonly name: string; readonly machineId: string }[];
  export?: ExportStatus;
  machinesOff: readonly string[];
  uncommittedSinceMs: number;
  fault?: FaultJson;
  /** Machines that died, by name; see replica-restarts.ts. */
  restarts?: Readonly<Record<string, MachineRestart>>;
  /** When its machines had started. */
  startedAtMs?: number;
  /** What the source wrote until the failover, and goes on with after an undo. */
  sourceBranch?: string;
  /** By name: machines whose disks were told to go on from another point. Not `taken`: they are of no point until a retry has finished that. */
  otherPoints?: Readonly<Record<string, { readonly pointId: string; readonly taken: boolean }>>;
  /** A move stopped it and was not carried through: it is to be opened again, for this operation. */
  reopen?: string;
  /** A move that nobody has to order. Tried once. */
  due?: DueMove;
}

export interface MachineRestart {
  /** How often it was started again. */
  readonly tries: number;
  readonly nextAtMs: number;
  /** Why the last try failed. */
  readonly fault?: { readonly code: string; readonly message: string; readonly hint?: string };
}

export interface ReseedRecord {
  /** The reprotect that waits for its end. */
  readonly workflowId: string;
  /** Points after this one are of the new state; 0 when there is none of the old one. */
  readonly afterBarrier: number;
  /** Its cut: what a failover goes back to until then. */
  readonly pointCutAtMs: number;
}

export interface Unwind {
  readonly site: string;
  readonly operationId: string;
  /** To be given new versions. */
  readonly stops: readonly ReplicationOrder[];
}

export interface RememberedResult {
  readonly id: string;
  readonly result: unknown;
}

export function emptyRecord(groupId: string): GroupRecord {
  return {
    version: RECORD_VERSION,
    groupId,
    name: groupId,
    policy: { intervalMs: 0, rpoThresholdMs: 0, compressAt: "agent" },
    sourceSite: "",
    targetSite: "",
    activeSite: "",
    machines: [],
    phase: "unprotected",
    phaseBefore: "unprotected",
    conditions: [],
    epoch: 0,
    branch: "",
    protectOperationId: "",
    target: { host: "", port: 0 },
    order: { version: 0, state: "stopped" },
    cursor: "",
    observedAtMs: 0,
    syncMovedAtMs: 0,
    operations: [],
    results: [],
    shown: "",
  };
}

/** What continue-as-new carried. Throws RangeError for another version: this code must not run that group. */
export function restoredRecord(state: unknown): GroupRecord {
  const { version } = state as { readonly version?: unknown };
  if (version !== RECORD_VERSION)
    throw new RangeError(`Group record of version ${JSON.stringify(version)}, this code knows ${RECORD_VERSION}`);
  return state as GroupRecord;
}

export function takeRequest(record: GroupRecord, request: ProtectRequest, nowMs: number): void {
  record.name = request.name;
  record.policy = request.policy;
  record.sourceSite = request.sourceSite;
  record.targetSite = request.targetSite;
  record.activeSite = request.sourceSite;
  record.machines = request.machines;
  record.protectOperationId = request.operationId;
  record.syncMovedAtMs = nowMs;
  // Versions grow over the life of a group's name, not of this workflow: who protects again must not start below what was kept.
  record.order = { version: nowMs, state: "stopped" };
}

export function resultOf<T>(record: GroupRecord, operationId: string): T | undefined {
  return record.results.find((one) => one.id === operationId)?.result as T | undefined;
}

export function remember<T>(record: GroupRecord, operationId: string, result: T): T {
  record.results = [...record.results.filter((one) => one.id !== operationId), { id: operationId, result }].slice(
    -RESULTS_MAX,
  );
  return result;
}

export function started(
  record: GroupRecord,
  operationId: string,
  workflowId: string,
  epoch = record.epoch,
): OperationStarted {
  return remember(record, operationId, { operationId, workflowId, epoch });
}

/** Insert or replace; running operations are never dropped. */
export function putOperation(record: GroupRecord, operation: OperationState): void {
  const others = record.operations.filter((one) => one.operationId !== operation.operationId);
  const all = [...others, operation];
  const surplus = all.length - OPERATIONS_MAX;
  let dropped = 0;
  record.operations = surplus <= 0 ? all : all.filter((one) => one.state === "running" || dropped++ >= surplus);
}

export function operationOf(record: GroupRecord, operationId: string): OperationState | undefined {
  return record.operations.find((one) => one.operationId === operationId);
}

export function hasCondition(record: GroupRecord, condition: GroupCondition): boolean {
  return record.conditions.includes(condition);
}

export function setCondition(record: GroupRecord, condition: GroupCondition, on: boolean): void {
  const others = record.conditions.filter((one) => one !== condition);
  record.conditions = on ? [...others, condition] : others;
}

export function homeSiteOf(record: GroupRecord): string {
  return record.home?.site ?? record.sourceSite;
}

/** Machines of the group that were not started at the target, or not yet. */
export function missingMachines({ machines, replica }: GroupRecord): readonly ProtectedMachine[] {
  if (replica === undefined) return [];
  return machines.filter(({ name }) => !replica.machines.some((one) => one.name === name));
}

export function takeProgress(record: GroupRecord, progress: GroupProgress, cursor: string, nowMs: number): void {
  const remaining = (of: GroupProgress | undefined): number =>
    of === undefined ? Infinity : of.disks.reduce((sum, disk) => sum + disk.syncRemainingBytes, 0);
  if (remaining(progress) < remaining(record.progress)) record.syncMovedAtMs = nowMs;
  record.progress = progress;
  record.cursor = cursor;
  record.observedAtMs = nowMs;
  if (progress.connected) delete record.connectingSinceMs;
  // Not heard of since the target started: it is on its way. One that was there and is gone is another matter.
  else if (progress.state === "waiting" && record.connectGrace === true) record.connectingSinceMs ??= nowMs;
  delete record.targetFault;
  delete record.connectionUnknown;
}

/** Something was done after which the source must connect anew. */
export function expectConnection(record: GroupRecord, nowMs: number): void {
  record.connectionUnknown = true;
  if (record.connectGrace === true) record.connectingSinceMs = nowMs;
}

export function factsOf(record: GroupRecord): GroupFacts {
  const { replica } = record;
  const connectionUnknown =
    record.connectionUnknown === true || isConnecting(record.connectingSinceMs, record.observedAtMs);
  return {
    name: record.name,
    phase: record.phase,
    conditions: record.conditions,
    hasPoint: (record.progress?.barrier ?? 0) > 0 || (record.reseed?.afterBarrier ?? 0) > 0,
    reversed: homeSiteOf(record) !== record.sourceSite,
    missing: missingMachines(record).length > 0,
    // After a failover nobody watches the source's connection: it is asked when it matters.
    sourceConnected:
      !runsAtTarget(record.phase) && record.targetFault === undefined && !connectionUnknown
        ? record.progress?.connected
        : undefined,
    ...(replica === undefined ? {} : { replica: replicaMachines(replica) }),
  };
}

function replicaMachines({
  machines,
  machinesOff,
  uncommittedSinceMs,
  startedAtMs,
  sourceBranch,
}: ReplicaRecord): ReplicaMachines {
  return {
    running: machines.map(({ name }) => name).filter((name) => !machinesOff.includes(name)),
    off: machinesOff,
    uncommittedSinceMs,
    ...(startedAtMs === undefined ? {} : { startedAtMs }),
    ...(sourceBranch === undefined ? {} : { sourceBranch }),
  };
}

export function healthFactsOf(record: GroupRecord, nowMs: number): HealthFacts {
  const { progress, targetFault, replica } = record;
  return {
    name: record.name,
    phase: record.phase,
    conditions: record.conditions,
    sourceSite: record.sourceSite,
    targetSite: record.targetSite,
    nowMs,
    rpoThresholdMs: record.policy.rpoThresholdMs,
    syncMovedAtMs: record.syncMovedAtMs,
    ...(record.connectingSinceMs === undefined ? {} : { connectingSinceMs: record.connectingSinceMs }),
    ...(progress === undefined ? {} : { progress }),
    ...(targetFault === undefined ? {} : { targetFault }),
    ...(record.catalog?.fault === undefined ? {} : { catalogFault: record.catalog.fault }),
    ...(record.reseed === undefined ? {} : { reseedPointCutAtMs: record.reseed.pointCutAtMs }),
    ...(replica === undefined
      ? {}
      : {
          replica: {
            operationId: replica.operationId,
            uncommittedSinceMs: replica.uncommittedSinceMs,
            machinesOff: replica.machinesOff,
            restarts: replica.restarts ?? {},
            ...(replica.fault === undefined ? {} : { fault: replica.fault }),
          },
        }),
  };
}

/** The answer of the `state` query. Health is as of the last observation: between two of them nothing new is known. */
export function stateOf(record: GroupRecord): GroupState {
  const health = assessHealth(healthFactsOf(record, record.observedAtMs));
  return {
    groupId: record.groupId,
    name: record.name,
    phase: record.phase,
    conditions: record.conditions,
    health,
    healthLevel: healthLevel(health),
    sourceSite: record.sourceSite,
    targetSite: record.targetSite,
    activeSite: record.activeSite,
    homeSite: homeSiteOf(record),
    ...(record.home === undefined ? {} : { homeMachines: record.home.machines }),
    epoch: record.epoch,
    branch: record.branch,
    policy: record.policy,
    machines: record.machines,
    progress: record.progress,
    operations: record.operations.toReversed(),
    allowedOperations: allowedOperations(factsOf(record)),
    observedAtMs: record.observedAtMs,
    orderVersion: record.order.version,
    ...(record.replica?.export === undefined ? {} : { replica: record.replica.export }),
    ...(record.replica === undefined ? {} : { replicaMachines: replicaMachines(record.replica) }),
    ...(record.replica?.due === undefined ? {} : { due: record.replica.due }),
  };
}

export function rpoBreached(record: GroupRecord, nowMs: number): boolean {
  return isRpoBreach(assessHealth(healthFactsOf(record, nowMs)));
}

/** Conditions that belong to one failover and end with the next move. */
export const FAILOVER_CONDITIONS: readonly GroupCondition[] = [
  CONDITIONS.partial,
  CONDITIONS.notAnswering,
  CONDITIONS.sourceMayRun,
  CONDITIONS.sourceFenced,
];
