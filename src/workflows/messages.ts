/**
 * The names and shapes of everything one can say to our workflows: a contract with the API, the CLI and old histories.
 * Plain JSON only. Extend; never change the meaning of a field.
 */
import type { GroupPhase } from "#model/group-phase.ts";
import type { HealthLevel, HealthReason } from "#model/health.ts";
import type { JsonObject } from "#model/json.ts";
import type { RetentionPolicy } from "#model/retention/policy.ts";
import type { MachineConfig } from "#ports/hypervisor.ts";
import type { ExportStatus } from "#ports/master-target.ts";
import type { GroupProgress, RecoveryPoint } from "#ports/replication.ts";

export type { GroupPhase, HealthLevel, HealthReason };

/** Task queues. Workers run at the recovery site only. */
export const CONTROL_QUEUE = "control";
export const moverQueue = (site: string): string => `site-${site}-mover`;
export const targetQueue = (site: string): string => `site-${site}-target`;

export const groupWorkflowId = (groupId: string): string => `group/${groupId}`;

/** Names of our workflow types. `protectionGroup` is started from outside, `retention` by a Schedule; the others are children of a group. */
export const WORKFLOWS = {
  protectionGroup: "protectionGroup",
  initialSync: "initialSync",
  failover: "failover",
  changePoint: "changePoint",
  undo: "undo",
  reprotect: "reprotect",
  retryMembers: "retryMembers",
  testFailover: "testFailover",
  janitor: "janitor",
  retention: "retention",
} as const;

/** Of the Schedule, and of the workflows that it starts (with the time behind it). */
export const retentionId = (site: string): string => `retention/${site}`;

export interface RetentionInput {
  /** Whose master target lets points go. */
  readonly site: string;
}

/**
 * The argument of `protectionGroup`: start it with the `protect` update in one call (update-with-start, conflict policy USE_EXISTING),
 * with the operation id as update id. `state` is carried by continue-as-new and left out by everybody else.
 */
export interface GroupStart {
  readonly groupId: string;
  readonly state?: unknown;
  /** Instead of a protect: the group goes on after its workflow was lost. */
  readonly adopted?: AdoptedGroup;
  /** Shorter than usual, for tests: length of a window, windows in one run, how long to wait for machines to answer. */
  readonly limits?: { readonly windowMs?: number; readonly windowsPerRun?: number; readonly answerMs?: number };
}

/** Version of what a group carries from run to run, and of its record in the catalog. */
export const RECORD_VERSION = 1;

/** A group whose workflow is lost: what the catalog, the claims and the target site say of it. See adopted-group.ts. */
export interface AdoptedGroup {
  readonly revision: number;
  /** The lost workflow's record, as group-catalog.ts wrote it. */
  readonly record: JsonObject;
  readonly claim?: { readonly groupEpoch: number; readonly activeSite: string };
  readonly disk?: { readonly branch: string; readonly moving: boolean };
  readonly newest?: { readonly barrier: number; readonly cutAtMs: number };
  readonly exports: readonly Pick<ExportStatus, "operationId" | "mode" | "branch" | "pointId">[];
  /** At the target. */
  readonly machines: readonly {
    readonly id: string;
    readonly name: string;
    readonly operationId: string;
    readonly running: boolean;
    readonly started: boolean;
  }[];
}

/** The one line that says what a group's workflow is; given as `staticSummary` when it is started. */
export function groupSummary(
  group: Pick<ProtectRequest, "name" | "sourceSite" | "targetSite" | "policy"> & { readonly homeSite?: string },
): string {
  return `${group.name}: ${direction(group)}, RPO ${group.policy.rpoThresholdMs / 1_000} s`;
}

/** "primary → secondary"; and when the group is from the site that it is replicated to, "secondary → primary (reversed)". */
export function direction(group: {
  readonly sourceSite: string;
  readonly targetSite: string;
  readonly homeSite?: string;
}): string {
  const { sourceSite, targetSite, homeSite = sourceSite } = group;
  return `${sourceSite} → ${targetSite}${homeSite === sourceSite ? "" : " (reversed)"}`;
}

/** Search attributes and their types, as the server must know them (temporal/search-attributes.json says the same; a test compares). */
export const SEARCH_ATTRIBUTES = {
  LeewardKind: "Keyword",
  LeewardPhase: "Keyword",
  LeewardHealth: "Keyword",
  LeewardGroup: "Keyword",
  LeewardPlan: "Keyword",
  LeewardSite: "Keyword",
  LeewardNeedsApproval: "Bool",
  LeewardRpoBreach: "Bool",
  LeewardLastPoint: "Datetime",
  LeewardEpoch: "Int",
} as const;

export const UPDATES = {
  protect: "protect",
  pause: "pause",
  resume: "resume",
  unprotect: "unprotect",
  bookmark: "bookmark",
  failover: "failover",
  changePoint: "changePoint",
  commit: "commit",
  undo: "undo",
  reprotect: "reprotect",
  retryMembers: "retryMembers",
  skipMembers: "skipMembers",
  testFailoverStart: "testFailoverStart",
  testFailoverCleanup: "testFailoverCleanup",
} as const;
/**
 * What each update answers. All of `started` answer at once and go on; follow them in `GroupState.operations`. A refusal is an
 * ApplicationFailure whose type is a fault code and whose first detail is the fault (`faultOfFailure` of #model/failure.ts finds it).
 * DRAINING: send the same update with the same id again.
 */
export interface UpdateResults {
  readonly protect: OperationStarted;
  readonly pause: OperationDone;
  readonly resume: OperationDone;
  readonly unprotect: OperationStarted;
  readonly bookmark: RecoveryPoint;
  readonly failover: OperationStarted;
  readonly changePoint: LeaveStarted;
  readonly commit: OperationDone;
  /** REFUSED also when the source's process server does not answer: it is asked first. */
  readonly undo: LeaveStarted;
  readonly reprotect: OperationStarted;
  readonly retryMembers: OperationStarted;
  readonly skipMembers: OperationDone;
  readonly testFailoverStart: OperationStarted;
  readonly testFailoverCleanup: OperationStarted;
}
export const QUERIES = { state: "state" } as const;

/** On every update: makes it idempotent over retries, continue-as-new and restarts. Also the Temporal update id. */
export interface Operation {
  readonly operationId: string;
  /** Who asked; stamped by the API. */
  readonly by: string;
}

export interface ProtectedDisk {
  readonly diskId: string;
  /** `tap:PATH`; or, at the site that a group was recovered to, `replica:NAME`: an image that the agent there has made. */
  readonly source: string;
  readonly sizeBytes: number;
  readonly sectorBytes: number;
  readonly bootIndex?: number;
  /** Where the machine attaches the disk; known once its agent has the order. */
  readonly tapUrl?: string;
}

export interface ProtectedMachine {
  readonly name: string;
  /** Whose agent has its disks; left out: the one of its own name. */
  readonly agent?: string;
  /** As the source's hypervisor knows it, where that was seen; otherwise it is found by its disks, or by its name. */
  readonly machineId?: string;
  readonly config: MachineConfig;
  readonly disks: readonly ProtectedDisk[];
  /** Guest ports to publish on the replica machine, and on the source machine if our hypervisor runs it. */
  readonly forwards: readonly { readonly guestPort: number; readonly hostPort: number }[];
}

export interface ReplicationPolicy {
  readonly intervalMs: number;
  readonly rpoThresholdMs: number;
  readonly compressAt: "agent" | "process-server";
  /** How long points are kept. Left out: nothing ever expires. */
  readonly retention?: RetentionPolicy;
}
export const DEFAULT_POLICY: ReplicationPolicy = { intervalMs: 5_000, rpoThresholdMs: 60_000, compressAt: "agent" };

export interface ProtectRequest extends Operation {
  readonly groupId: string;
  readonly name: string;
  readonly policy: ReplicationPolicy;
  readonly sourceSite: string;
  readonly targetSite: string;
  readonly machines: readonly ProtectedMachine[];
}

export interface BookmarkRequest extends Operation {
  readonly name: string;
}

export interface FailoverRequest extends Operation {
  readonly mode: "unplanned" | "planned";
  /** A selector of docs/surface.md: latest, @name, an RFC 3339 time, a point id. */
  readonly point: string;
  /** Decided by a person before the first step; required for unplanned when the source does not answer. */
  readonly sourceLost: boolean;
  readonly note?: string;
  /** What the group does by itself when nobody has decided by then; left out: nothing. */
  readonly afterwards?: Afterwards;
  /** Only to the site that the group is from. */
  readonly failback?: boolean;
}

export interface Afterwards {
  readonly move: "commit" | "undo";
  /** After the machines were started. */
  readonly afterMs: number;
}

/** Undo, commit: nothing but who asks, and why. */
export interface MoveRequest extends Operation {
  readonly note?: string;
}

export interface UnprotectRequest extends MoveRequest {
  /** A committed group's machines are shut down and lose their disks; what they wrote stays in the store. */
  readonly stopReplica?: boolean;
}

/** Replicate to the other site what runs here since a committed failover. */
export interface ReprotectRequest extends MoveRequest {
  /** Whose agent at the machines' site is to have their disks; left out: the one that is connected there. Not asked for at home: there they have their own. */
  readonly agent?: string;
  /** The disks that the machines once had at the other site are gone: they are not looked for, and everything crosses the WAN. */
  readonly withoutOldDisks?: boolean;
}

/** Start the machines that did not start or are off, at the point that the others run on. */
export interface RetryRequest extends MoveRequest {
  /** Left out: all that are missing or off. */
  readonly machine?: string;
  /** They go on from this one, as for a change of point; left out: from where the others do, or from what a retry before could not finish taking. */
  readonly point?: string;
}

export interface ChangePointRequest extends MoveRequest {
  /** As for a failover. `latest` and times look along what the source wrote; an id or a bookmark may be on any branch. */
  readonly point: string;
}

export interface TestFailoverRequest extends Operation {
  readonly point: string;
  readonly leaseMs: number;
}

export interface TestCleanupRequest extends Operation {
  readonly testOperationId: string;
  readonly force: boolean;
}

/** What an update that starts a longer operation answers at once. */
export interface OperationStarted {
  readonly operationId: string;
  readonly workflowId: string;
  readonly epoch: number;
}

/** Undo and change point: what they are about to set aside, as it was last seen. It stays, as a branch whose points can be exported. */
export interface LeaveStarted extends OperationStarted {
  readonly setsAside: SetAside;
}

export interface SetAside {
  readonly branch: string;
  /** How long the machines have run on it; undefined when that was not recorded. */
  readonly ranMs?: number;
  /** Blocks that the branch has and its parent has not, as the local overlay holds them; 0 when nothing was seen of it yet. */
  readonly bytes: number;
}

/** What an update that waits for its work answers. */
export interface OperationDone {
  readonly operationId: string;
  readonly doneAtMs: number;
}

export interface OperationStep {
  readonly name: string;
  readonly state: "waiting" | "running" | "done" | "failed" | "skipped" | "undone";
  readonly startedAtMs?: number;
  readonly endedAtMs?: number;
  readonly detail?: string;
  /** Of a plan's run: what a person may decide about it now. */
  readonly choices?: readonly string[];
  readonly expectedMs?: number;
}

export interface OperationState {
  readonly operationId: string;
  readonly kind:
    | "protect"
    | "failover"
    | "changePoint"
    | "commit"
    | "undo"
    | "reprotect"
    | "retry"
    | "skip"
    | "testFailover"
    | "cleanup"
    | "bookmark"
    | "unprotect"
    | "plan";
  readonly workflowId: string;
  readonly groupId: string;
  readonly state: "running" | "done" | "failed" | "cancelled";
  readonly startedAtMs: number;
  readonly endedAtMs?: number;
  readonly by?: string;
  readonly waitsFor?: string;
  /** Until when it waits, if that is bounded: the end of a step's budget, of a lease. */
  readonly waitsUntilMs?: number;
  readonly steps: readonly OperationStep[];
  readonly fault?: { readonly code: string; readonly message: string; readonly hint?: string };
  /** failover, changePoint, testFailover: where the replica machines answer. */
  readonly machines?: readonly ReplicaMachine[];
  readonly pointId?: string;
  readonly pointCutAtMs?: number;
  /** retry: by machine, the id of the point that it goes on from, where that is not the others'. */
  readonly otherPoints?: Readonly<Record<string, string>>;
  /** changePoint, undo: what they set aside. */
  readonly setAside?: SetAside;
  /** Of kind `plan`, whose `groupId` is empty. */
  readonly plan?: { readonly name: string; readonly version: number; readonly mode: string };
}

export interface ReplicaMachine {
  readonly name: string;
  readonly machineId: string;
  readonly site: string;
  readonly forwards: readonly { readonly guestPort: number; readonly hostPort: number }[];
}

export interface DueMove {
  readonly move: Afterwards["move"];
  readonly atMs: number;
}

/** Answer of the `state` query; `group show --json` is made from it. */
export interface GroupState {
  readonly groupId: string;
  readonly name: string;
  readonly phase: GroupPhase;
  readonly conditions: readonly string[];
  readonly health: readonly HealthReason[];
  readonly sourceSite: string;
  readonly targetSite: string;
  readonly activeSite: string;
  /** The site that its machines are from. Another one than the source site: reversed. */
  readonly homeSite: string;
  /** Their disks there, once they have been replicated from elsewhere. */
  readonly homeMachines?: readonly ProtectedMachine[];
  readonly epoch: number;
  readonly branch: string;
  readonly policy: ReplicationPolicy;
  readonly machines: readonly ProtectedMachine[];
  readonly progress: GroupProgress | undefined;
  readonly operations: readonly OperationState[];
  readonly allowedOperations: readonly string[];
  readonly newestPoint?: RecoveryPoint;
  readonly healthLevel: "healthy" | HealthLevel;
  /** How old `progress` is on the workflow's clock. A window lasts up to a minute: ask the master target for what is newer. */
  readonly observedAtMs: number;
  readonly orderVersion: number;
  /** After a failover: the export the machines run on, as last observed. */
  readonly replica?: ExportStatus;
  /** After a failover: the machines at the target, as last observed. */
  readonly replicaMachines?: ReplicaMachines;
  /** After a failover: the move that the group makes by itself, and when. */
  readonly due?: DueMove;
}

export interface ReplicaMachines {
  readonly running: readonly string[];
  readonly off: readonly string[];
  /** Since when writes of theirs wait for a commit; zero when none did at the last look. */
  readonly uncommittedSinceMs: number;
  readonly startedAtMs?: number;
  /** What the source wrote until the failover. */
  readonly sourceBranch?: string;
}
