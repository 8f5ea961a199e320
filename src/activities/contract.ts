/**
 * What workflows can ask for. Types only: workflows import this file, never the code behind it.
 *
 * Invariants of every activity:
 * - one side effect, idempotent: run twice with the same input it leaves the same world and gives an equal answer;
 * - a Fault leaves as an ApplicationFailure with the fault's code as type and its JSON as first detail (faults.ts);
 * - it heartbeats while it works, so that a killed worker is noticed within seconds;
 * - input and result are plain JSON, ids and counts, never bulk data.
 */
import type { FaultJson } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { Machine, MachineConfig, MachineDisk, MachineNetwork } from "#ports/hypervisor.ts";
import type {
  ExportMode,
  ExportStatus,
  FenceResult,
  GroupDisk,
  GroupExpiry,
  TakenPoint,
  TurnResult,
} from "#ports/master-target.ts";
import type { DiskReport, GroupProgress, RecoveryPoint, ReplicationOrder } from "#ports/replication.ts";

export interface Activities {
  // Protection
  /** Sizes of a machine's disks, as its agent sees them. */
  inspectDisks(input: {
    readonly site: string;
    readonly groupId: string;
    readonly machine: string;
    readonly sources: readonly string[];
  }): Promise<readonly InspectedDisk[]>;
  probeStore(input: { readonly site: string }): Promise<{ readonly storeId: string; readonly endpoint: string }>;
  prepareGroup(input: PrepareInput): Promise<PreparedGroup>;
  /** Keep the group's record in the catalog of a site's store. `newest`: the highest revision there. */
  recordGroup(input: {
    readonly site: string;
    readonly groupId: string;
    readonly revision: number;
    readonly record: JsonObject;
  }): Promise<{ readonly newest: number }>;
  /** Signed and sent by control, now or when the process server connects (`delivered` says which). */
  putOrder(input: {
    readonly order: ReplicationOrder;
  }): Promise<{ readonly version: number; readonly delivered: boolean }>;
  /** Waits until the source's agents serve every disk. AGENT_UNREACHABLE names those that are missing at the end. */
  awaitTaps(input: {
    readonly site: string;
    readonly groupId: string;
    readonly diskIds: readonly string[];
    readonly timeoutMs: number;
  }): Promise<readonly DiskReport[]>;
  /** Is the source's process server reachable? Never a fault: `fault` says why not. */
  sourceState(input: {
    readonly site: string;
    readonly groupId: string;
    readonly timeoutMs: number;
  }): Promise<{ readonly reachable: boolean; readonly fault?: FaultJson }>;
  /** What the site's agents say of the group's disks; none when its process server does not know the group. */
  sourceDisks(input: { readonly site: string; readonly groupId: string }): Promise<readonly DiskReport[]>;
  /** Names of the agents that are connected at a site. */
  connectedAgents(input: { readonly site: string }): Promise<readonly string[]>;
  /** The site's store is written by another site's process server from now on. */
  turn(input: {
    readonly site: string;
    readonly groupId: string;
    readonly operationId: string;
    readonly activeSite: string;
    readonly atLeastEpoch: number;
  }): Promise<TurnResult>;
  releaseGroup(input: { readonly site: string; readonly groupId: string; readonly operationId: string }): Promise<void>;

  // Watching
  watchGroup(input: WatchInput): Promise<WatchResult>;
  watchReplica(input: WatchReplicaInput): Promise<WatchReplicaResult>;

  // Points
  cutNow(input: {
    readonly site: string;
    readonly groupId: string;
    readonly operationId: string;
    readonly timeoutMs: number;
    readonly detached?: boolean;
  }): Promise<{ readonly barrier: number; readonly cutAtMs: number }>;
  bookmark(input: {
    readonly site: string;
    readonly groupId: string;
    readonly operationId: string;
    readonly barrier: number;
    readonly name: string;
  }): Promise<RecoveryPoint>;
  /** The point that a selector means now. POINT_NOT_FOUND, NO_POINT, USAGE. */
  choosePoint(input: {
    readonly site: string;
    readonly groupId: string;
    readonly selector: string;
    /** The line that `latest` and times look along: this branch and what it came from. Ids and bookmarks may be on any branch. */
    readonly branch?: string;
  }): Promise<RecoveryPoint>;

  /** Let points of the site's groups expire, and delete what nothing needs, for at most `budgetMs`. See `MasterTarget.expirePoints`. */
  expirePoints(input: { readonly site: string; readonly budgetMs: number }): Promise<readonly GroupExpiry[]>;

  // Recovery
  fence(input: {
    readonly site: string;
    readonly groupId: string;
    readonly operationId: string;
    readonly activeSite: string;
    /** The branch that goes on afterwards; left out, the one that was ended. */
    readonly resume?: string;
  }): Promise<FenceResult>;
  openExport(input: {
    readonly site: string;
    readonly groupId: string;
    readonly operationId: string;
    readonly point: string;
    readonly mode: ExportMode;
    readonly reason?: "failover" | "changed-point";
    /** Open it although it was closed, for this operation; with everything that was written. */
    readonly reopen?: string;
  }): Promise<ExportStatus>;
  /** A machine's disks as at another point; asked again until `done`. Nobody may be attached to them. */
  takePoint(input: {
    readonly site: string;
    readonly operationId: string;
    readonly requestId: string;
    readonly machine: string;
    readonly point: string;
    readonly waitMs: number;
  }): Promise<TakenPoint>;
  /** Serve no more. Without `discard` a read-write export's last writes are in the store when this returns, and its overlay stays. */
  closeExport(input: { readonly site: string; readonly operationId: string; readonly discard: boolean }): Promise<void>;
  createMachine(input: CreateMachineInput): Promise<Machine>;
  startMachine(input: { readonly site: string; readonly machineId: string }): Promise<Machine>;
  destroyMachine(input: { readonly site: string; readonly machineId: string }): Promise<void>;
  /** Waits until the machine runs and, where it publishes ports, answers on one. Never a fault for not answering. */
  awaitReady(input: {
    readonly site: string;
    readonly machineId: string;
    readonly timeoutMs: number;
  }): Promise<{ readonly ready: boolean; readonly running: boolean; readonly detail: string }>;
  /**
   * Machines as a site's hypervisor knows them, one for each name: by id, by the taps that their disks are attached to, else by name; `unknown`: it has
   * none. `tapUrls` and `machineIds` ("" for one that is not known) go with `names`.
   */
  findMachines(input: {
    readonly site: string;
    readonly names: readonly string[];
    readonly tapUrls?: readonly (readonly string[])[];
    readonly machineIds?: readonly string[];
  }): Promise<readonly FoundMachine[]>;
  /** Ask the guests to shut down, beside each other. Those that still run after `timeoutMs` are named, not powered off. */
  shutdownMachines(input: {
    readonly site: string;
    readonly machineIds: readonly string[];
    readonly timeoutMs: number;
  }): Promise<{ readonly stillRunning: readonly string[] }>;
  /**
   * All machines of an operation off, proven: guests are asked first, and powered off after `timeoutMs`; the hypervisor then says of
   * each that it does not run. `forced` has the names of those that had to be.
   */
  stopMachines(input: {
    readonly site: string;
    readonly operationId: string;
    readonly timeoutMs: number;
  }): Promise<{ readonly forced: readonly string[] }>;
  startMachines(input: { readonly site: string; readonly machineIds: readonly string[] }): Promise<void>;
  /**
   * Disks of an operation's running machines go to other block servers, without a restart. It returns when all are there or the window ends:
   * `done` says which. Asked again, it goes on. With the URL that a disk has, whatever move of it is under way is given up.
   */
  moveDisks(input: MoveDisksInput): Promise<MoveDisksResult>;
  /** None of these disks is being moved any more; each stays at the URL that it has. */
  giveUpMoves(input: Omit<MoveDisksInput, "windowMs">): Promise<void>;
  /** Everything that an operation made at a site: its machines destroyed, its export closed. */
  removeOperation(input: {
    readonly site: string;
    readonly operationId: string;
    readonly discard: boolean;
  }): Promise<{ readonly machines: number }>;

  // Workflows
  /** Waits until that run is closed, or an hour. */
  awaitWorkflowEnd(input: {
    readonly workflowId: string;
    readonly runId: string;
  }): Promise<{ readonly closed: boolean }>;
}

export interface InspectedDisk {
  readonly source: string;
  readonly sizeBytes: number;
  readonly sectorBytes: number;
}

export interface PrepareInput {
  readonly site: string;
  readonly groupId: string;
  readonly operationId: string;
  readonly groupName: string;
  readonly sourceSite: string;
  readonly disks: readonly GroupDisk[];
  readonly record: string;
  /** The site once had the group, or may have: see the port. */
  readonly atLeastEpoch?: number;
}

export interface PreparedGroup {
  readonly host: string;
  readonly port: number;
  readonly branch: string;
  readonly groupEpoch: number;
}

/** A window of watching. It ends early when something changes that a person or the workflow must know at once. */
export interface WatchInput {
  readonly site: string;
  readonly groupId: string;
  readonly cursor: string;
  readonly windowMs: number;
  /** What the workflow knows: another state, connection or fault ends the window. */
  readonly known: WatchedFacts;
  readonly rpoThresholdMs: number;
  /** `point`: also ends when the first point exists and nothing is left to sync. */
  readonly until: "window" | "point";
  /** Only a point of this line of history that is newer than that barrier counts as the first. */
  readonly line?: { readonly branch: string; readonly afterBarrier: number };
}

export interface WatchedFacts {
  readonly state: string;
  readonly connected: boolean;
  readonly faultCode: string;
  readonly rpoBreached: boolean;
}

export interface WatchResult {
  readonly endedBy: "window" | "changed" | "point" | "unreachable";
  readonly cursor: string;
  /** The last observation; undefined when there was none. */
  readonly progress?: GroupProgress;
  /** Barriers that were completed in this window, and the largest lag seen. */
  readonly barriers: number;
  readonly lagMsMax: number;
  /** For `unreachable`: why. */
  readonly fault?: FaultJson;
}

export interface WatchReplicaInput {
  readonly site: string;
  readonly operationId: string;
  readonly machines: readonly { readonly name: string; readonly machineId: string }[];
  readonly windowMs: number;
  readonly known: { readonly machinesOff: readonly string[]; readonly faultCode: string };
  /** Carried from the last window; zero when nothing waited. */
  readonly uncommittedSinceMs: number;
  readonly writtenBytes: number;
  readonly barrier: number;
}

export interface WatchReplicaResult {
  readonly export?: ExportStatus;
  readonly machinesOff: readonly string[];
  /** Those of them whose process died; absent while the hypervisor could not be asked, or cannot tell. */
  readonly machinesDied?: readonly string[];
  readonly uncommittedSinceMs: number;
  readonly fault?: FaultJson;
}

export interface CreateMachineInput {
  readonly site: string;
  readonly operationId: string;
  readonly name: string;
  readonly config: MachineConfig;
  readonly disks: readonly MachineDisk[];
  readonly network: MachineNetwork;
}

export interface MoveDisksInput {
  readonly site: string;
  /** Whose machines they are. */
  readonly operationId: string;
  readonly disks: readonly { readonly diskId: string; readonly url: string; readonly sizeBytes: number }[];
  readonly windowMs: number;
}

export interface MoveDisksResult {
  readonly done: boolean;
  /** Of all disks together. */
  readonly copiedBytes: number;
  readonly totalBytes: number;
}

export interface FoundMachine {
  readonly name: string;
  readonly machineId?: string;
  readonly power: "off" | "running" | "paused" | "unknown";
}
