/**
 * What the HTTP API says and hears, as types: the CLI, the console and the demo are written against this. `client.ts` implements `ApiClient`
 * over HTTP; `server.ts` (with its routes) answers it. All plain JSON; bytes, milliseconds, RFC 3339 times.
 *
 * Source: docs/surface.md. Add to it, do not break it.
 */
import type { JsonObject } from "#model/json.ts";
import type { PlanChange } from "#model/plan/plan-changes.ts";
import type { PlanMode } from "#model/plan/recovery-plan.ts";
import type { ResolvedPlan } from "#model/plan/resolved-plan.ts";
import type { Machine, MachineConfig, MachineDisk, MachineNetwork } from "#ports/hypervisor.ts";
import type { ExportStatus } from "#ports/master-target.ts";
import type { DiskReport, RecoveryPoint } from "#ports/replication.ts";
import type {
  Afterwards,
  GroupPhase,
  HealthReason,
  LeaveStarted,
  OperationStarted,
  OperationState,
  ReplicationPolicy,
  SetAside,
} from "../workflows/messages.ts";
import type { Decision } from "../workflows/plan-messages.ts";

// What the CLI and the demo read of an answer; they know the API only.
export type { LeaveStarted, OperationState, RecoveryPoint };

export interface RoleView {
  readonly site: string;
  readonly role: string;
  readonly name: string;
  readonly connected: boolean;
  readonly connectedAt?: string;
  /** When its newest certificate ends; it is renewed long before. */
  readonly certificateUntil?: string;
}

export interface StatusView {
  readonly version: string;
  /** Agents are listed here too (role "agent"), as their process server sees them. */
  readonly roles: readonly RoleView[];
  readonly temporal: { readonly reachable: boolean; readonly uiUrl?: string };
  readonly redis: { readonly reachable: boolean };
  readonly groups: readonly GroupView[];
  /** Which control answers, by its term. */
  readonly control?: { readonly id: string; readonly epoch: number; readonly adoption?: AdoptionView };
  /** Why the list of groups may not be what there is: Temporal or the worker does not answer. Empty when all is well. */
  readonly problems: readonly { readonly code: string; readonly message: string; readonly hint?: string }[];
}

export interface GroupDiskView {
  readonly id: string;
  readonly machine: string;
  readonly sizeBytes: number;
  readonly source: string;
  readonly tapUrl?: string;
}

/** Groups of a store that came back with `leeward control adopt`. */
export interface AdoptionView {
  readonly storeId: string;
  /** `rebuilding`: the master target, Temporal or both are still waited for. */
  readonly state: "rebuilding" | "done";
  readonly waitsFor?: string;
  readonly groups: readonly AdoptedGroupView[];
}

export interface AdoptedGroupView {
  readonly group: string;
  /** `there`: its workflow was never lost; `ended`: its protection had ended; `elsewhere`: it is kept in another site's store. */
  readonly outcome: "rebuilt" | "there" | "ended" | "elsewhere" | "failed";
  readonly detail: string;
}

/** `group show --json`. */
export interface GroupView {
  readonly name: string;
  readonly phase: GroupPhase;
  readonly conditions: readonly string[];
  readonly health: readonly HealthReason[];
  readonly sourceSite: string;
  readonly targetSite: string;
  readonly activeSite: string;
  /** The site that its machines are from. */
  readonly homeSite: string;
  /** They run, or are replicated from, the other one; `failback` brings them home. */
  readonly reversed: boolean;
  readonly epoch: number;
  /** The line of history that the active site writes. */
  readonly branch: string;
  readonly policy: ReplicationPolicy;
  /** Age of the newest restorable state; null while there is none. */
  readonly rpoMs: number | null;
  readonly lagMs: number | null;
  readonly backlogBytes: number;
  /** Until the initial sync or the backlog is through; null when unknown or nothing is waiting. */
  readonly etaMs: number | null;
  readonly syncRemainingBytes: number;
  readonly syncTotalBytes: number;
  readonly syncBytesPerSecond: number;
  /** Of what the running or the last sync read: what was compared with the replica, and what the replica had already, so that it was not shipped. */
  readonly comparedBytes: number;
  readonly sameBytes: number;
  readonly writtenBytes: number;
  readonly shippedBytes: number;
  readonly storedBytes: number;
  readonly allowedOperations: readonly string[];
  readonly disks: readonly GroupDiskView[];
  readonly newestPoint?: RecoveryPoint;
  /** After a failover: the point that its machines were started from. */
  readonly runsOn?: { readonly pointId: string; readonly cutAt: string };
  /** After a failover: the move that the group makes by itself, and when. */
  readonly due?: { readonly move: Afterwards["move"]; readonly at: string };
  readonly operations: readonly OperationState[];
}

export interface ProtectBody {
  readonly name: string;
  /** Name of the agent that has the disks. */
  readonly machine?: string;
  readonly disks: readonly string[];
  readonly site?: string;
  readonly policy?: Partial<ReplicationPolicy>;
  readonly config?: Partial<MachineConfig>;
  readonly forwards?: readonly { readonly guestPort: number; readonly hostPort: number }[];
}

export interface FailoverBody {
  readonly mode: "unplanned" | "planned";
  readonly point?: string;
  readonly sourceLost?: boolean;
  readonly note?: string;
  /** What the group does by itself when nobody has decided by then. */
  readonly afterwards?: Afterwards;
}

/** Undo, commit. */
export interface MoveBody {
  readonly note?: string;
}

export interface ReprotectBody extends MoveBody {
  /** Whose agent at the machines' site is to have their disks; left out: the one that is connected there. */
  readonly agent?: string;
  /** The old disks at the other site are gone. */
  readonly withoutOldDisks?: boolean;
}

/** A planned failover to the site that the machines are from; to an older point, an unplanned one that shuts them down first if it can. */
export interface FailbackBody extends MoveBody {
  readonly point?: string;
}

export interface ChangePointBody extends MoveBody {
  readonly point: string;
}

export interface UnprotectBody extends MoveBody {
  /** A committed group's machines are shut down and removed; what they wrote stays in the store. */
  readonly stopReplica?: boolean;
}

export interface DryRunBody {
  readonly move:
    | "failover"
    | "planned-failover"
    | "failback"
    | "reprotect"
    | "change-point"
    | "commit"
    | "undo"
    | "test-failover"
    | "unprotect";
  readonly point?: string;
  readonly sourceLost?: boolean;
  readonly stopReplica?: boolean;
}

/** What a move would do now. */
export interface DryRun {
  readonly group: string;
  readonly move: DryRunBody["move"];
  readonly phase: GroupPhase;
  /** Why it is not allowed now; absent when it is. */
  readonly refusal?: { readonly message: string; readonly hint: string };
  /** As they will be shown while it runs. */
  readonly steps: readonly string[];
  /** The point that it would take. */
  readonly point?: {
    readonly id: string;
    readonly cutAt: string;
    readonly ageMs: number;
    readonly branch: string;
    readonly consistency: string;
    readonly grade: string;
  };
  /** A failover: how much of what was written is lost; null when that is not known. */
  readonly lossMs?: number | null;
  readonly setsAside?: SetAside;
  /** What a person should know before saying yes. */
  readonly warnings: readonly string[];
}

/** `leeward failover` alone. */
export interface FailoverCandidate {
  readonly group: string;
  readonly phase: GroupPhase;
  readonly points: readonly {
    readonly selector: string;
    readonly pointId: string;
    readonly cutAt: string;
    readonly ageMs: number;
    readonly grade: string;
  }[];
  readonly blockers: readonly string[];
  readonly command: string;
  /** Every move that is allowed now, as it is typed; `command` first where that is one. */
  readonly commands: readonly string[];
}

/** A version of a recovery plan, as the store at control's site keeps it. */
export interface PlanView {
  readonly name: string;
  readonly version: number;
  readonly appliedAt: string;
  readonly by: string;
  readonly note?: string;
  /** The YAML. */
  readonly source: string;
  readonly objectives: { readonly rtoMs?: number; readonly rpoMs?: number };
  /** Boot groups in order, each with its protection groups. */
  readonly boot: readonly { readonly name: string; readonly groups: readonly string[] }[];
  readonly versions: readonly number[];
  /** Since the version before; none for the first. */
  readonly changes: readonly PlanChange[];
}

export interface PlanSummary {
  readonly name: string;
  readonly version: number;
  readonly appliedAt: string;
  readonly by: string;
  readonly groups: readonly string[];
  /** Why it could not be run as it stands: a group that is gone, a version that cannot be read. */
  readonly problem?: string;
}

export interface ApplyPlanBody {
  readonly source: string;
  readonly note?: string;
  /** Only look whether it would be taken. */
  readonly dryRun?: boolean;
}

export interface AppliedPlan extends PlanView {
  /** False: nothing differs from the newest version, or it was a dry run. */
  readonly stored: boolean;
}

export interface RunPlanBody {
  readonly mode: PlanMode;
  /** For `unplanned`: a person says that the source is lost. */
  readonly sourceLost?: boolean;
  /** Left out: the newest. */
  readonly version?: number;
  readonly note?: string;
  /** Although something blocks it. */
  readonly force?: boolean;
}

export interface ScheduleDrillBody {
  /** Five fields, UTC unless `timeZone` says otherwise. */
  readonly cron: string;
  readonly timeZone?: string;
  readonly jitterMs?: number;
  /** How late a drill may still be made up for. */
  readonly catchUpMs?: number;
  readonly pauseOnFailure?: boolean;
  /** It begins a drill at once, too; unless one still runs. */
  readonly now?: boolean;
}

export interface DrillSchedule {
  readonly plan: string;
  readonly cron: string;
  readonly paused: boolean;
  readonly nextAt?: string;
}

/** What became of a run, as it is kept; `record` is a RunRecord (#model/plan/run-report.ts), whole, for its digest. */
export interface RunEntry {
  readonly number: number;
  readonly writtenAt: string;
  readonly record: JsonObject;
}

export interface DecideBody {
  readonly decision: Decision;
  /** May be left out when only one step asks for that. */
  readonly step?: string;
  readonly note?: string;
}

export interface AgentView {
  readonly machine: string;
  readonly site: string;
  readonly connected: boolean;
  readonly disks: readonly DiskReport[];
}

/** Every method throws the Fault that the server answered, or PEER_UNREACHABLE. `operationId` makes a repeated call the same call. */
export interface ApiClient {
  status(): Promise<StatusView>;
  groups(): Promise<readonly GroupView[]>;
  group(name: string): Promise<GroupView>;
  protect(
    body: ProtectBody & { readonly operationId?: string },
  ): Promise<OperationStarted & { readonly group: GroupView }>;
  points(group: string): Promise<readonly RecoveryPoint[]>;
  bookmark(group: string, name: string): Promise<RecoveryPoint>;
  pause(group: string): Promise<GroupView>;
  resume(group: string): Promise<GroupView>;
  unprotect(group: string, body?: UnprotectBody & { readonly operationId?: string }): Promise<OperationStarted>;
  /** Changes nothing. */
  dryRun(group: string, body: DryRunBody): Promise<DryRun>;
  failover(group: string, body: FailoverBody & { readonly operationId?: string }): Promise<OperationStarted>;
  /** What ran since the failover becomes a kept branch, and the group goes on from the other point. */
  changePoint(group: string, body: ChangePointBody & { readonly operationId?: string }): Promise<LeaveStarted>;
  /** Ends the right to undo and to change the point; deletes nothing. */
  commit(group: string, body?: MoveBody & { readonly operationId?: string }): Promise<GroupView>;
  /** Back to the source, which must be connected (REFUSED); what ran at the target becomes a kept branch. */
  undo(group: string, body?: MoveBody & { readonly operationId?: string }): Promise<LeaveStarted>;
  /** After a committed failover: replicate what runs here to the site that it came from. */
  reprotect(group: string, body?: ReprotectBody & { readonly operationId?: string }): Promise<OperationStarted>;
  /** Home: only for a reversed group (REFUSED). */
  failback(group: string, body?: FailbackBody & { readonly operationId?: string }): Promise<OperationStarted>;
  startTestFailover(
    group: string,
    body: { readonly point?: string; readonly leaseMs?: number; readonly operationId?: string },
  ): Promise<OperationStarted>;
  listTestFailovers(group: string): Promise<readonly OperationState[]>;
  cleanUpTestFailover(
    group: string,
    operationId: string,
    options?: { readonly force?: boolean },
  ): Promise<OperationStarted>;
  operations(): Promise<readonly OperationState[]>;
  /** With `waitMs`, answers when the operation ended or after that time, whichever is first. */
  operation(operationId: string, options?: { readonly waitMs?: number }): Promise<OperationState>;
  cancelOperation(operationId: string): Promise<OperationState>;
  /** Start the machines that did not start in that failover or change of point; all, or one of them; with `point` from another point than the others. */
  retryOperation(
    replicaOperationId: string,
    body?: { readonly machine?: string; readonly point?: string; readonly operationId?: string },
  ): Promise<OperationStarted>;
  /** Go on without them. */
  skipOperation(replicaOperationId: string, body?: { readonly operationId?: string }): Promise<OperationState>;
  openExport(group: string, body: { readonly point?: string; readonly writable?: boolean }): Promise<ExportStatus>;
  closeExport(operationId: string): Promise<void>;
  failoverCandidates(): Promise<readonly FailoverCandidate[]>;
  /** Throws PLAN_INVALID. */
  /** The very steps that a run would execute, and what blocks them. Changes nothing. */
  resolvePlan(name: string, body: RunPlanBody): Promise<ResolvedPlan>;
  /** REFUSED when something blocks it. */
  runPlan(name: string, body: RunPlanBody & { readonly operationId?: string }): Promise<OperationState>;
  /** What a person decides about a step that asks. REFUSED when nobody is asked that. */
  decide(operationId: string, body: DecideBody & { readonly operationId?: string }): Promise<OperationState>;
  /** In test mode, with nobody to ask. */
  runDrill(plan: string, body: { readonly note?: string; readonly operationId?: string }): Promise<OperationState>;
  scheduleDrill(plan: string, body: ScheduleDrillBody): Promise<DrillSchedule>;
  unscheduleDrill(plan: string): Promise<void>;
  drillSchedules(): Promise<readonly DrillSchedule[]>;
  /** Records of a plan's runs, newest first. */
  planRuns(plan: string): Promise<readonly RunEntry[]>;
  applyPlan(body: ApplyPlanBody): Promise<AppliedPlan>;
  plans(): Promise<readonly PlanSummary[]>;
  /** The newest version, or that one. */
  plan(name: string, options?: { readonly version?: number }): Promise<PlanView>;
  agents(): Promise<readonly AgentView[]>;
  /** A one-time enrolment token for a role at a site. */
  enrolmentToken(body: {
    readonly site: string;
    readonly role: string;
    readonly name: string;
  }): Promise<{ readonly token: string; readonly expiresAt: string; readonly caFingerprint: string }>;
  /** Machines that the site's hypervisor runs: used by the embedded installation to run its protected machine. */
  createMachine(
    site: string,
    body: {
      readonly operationId: string;
      readonly name: string;
      readonly config: MachineConfig;
      readonly disks: readonly MachineDisk[];
      readonly network: MachineNetwork;
      readonly start: boolean;
    },
  ): Promise<Machine>;
  machines(site: string): Promise<readonly Machine[]>;
  shutdownMachine(site: string, machineId: string, options: { readonly timeoutMs: number }): Promise<Machine>;
  powerOffMachine(site: string, machineId: string): Promise<Machine>;
}
