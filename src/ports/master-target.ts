/**
 * What the target site does for a group, as others ask it: the worker through `control`, the CLI through `control`.
 *
 * Every method is idempotent by (groupId, operationId): called twice it finds what it made. All parameters and results are plain
 * JSON. Errors are Faults; those of the store pass through (STORE_…, FENCED, KEY_…).
 */
import type { KeptCollection } from "#model/format/kept-record.ts";
import type { FaultJson } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { GroupProgress, RecoveryPoint } from "./replication.ts";

export interface GroupDisk {
  readonly diskId: string;
  readonly machine: string;
  readonly sizeBytes: number;
  readonly sectorBytes: number;
  readonly bootIndex?: number;
}

export interface ExportedDisk {
  readonly diskId: string;
  readonly machine: string;
  /** nbd+unix:///NAME?socket=PATH */
  readonly url: string;
  readonly sizeBytes: number;
  readonly bootIndex?: number;
}

export interface ExportStatus {
  readonly operationId: string;
  readonly groupId: string;
  readonly pointId: string;
  readonly mode: ExportMode;
  readonly disks: readonly ExportedDisk[];
  /** For `read-write`: the branch, and what of it is in the store. Zero barrier: nothing yet. */
  readonly branch?: string;
  /** By machine: the point that its disks are half-way to; nobody may start it. See `takePoint`. */
  readonly taking?: Readonly<Record<string, string>>;
  readonly barrier: number;
  readonly barrierCutAtMs: number;
  readonly overlayBytes: number;
  readonly writtenBytes: number;
  /** Why what is written is not committed at the moment. */
  readonly fault?: { readonly code: string; readonly message: string; readonly hint?: string };
}

/**
 * read-only: no overlay. throw-away: writable on a local overlay that is deleted on close. read-write: writable on a local overlay, whose
 * writes are committed to a new branch every few seconds.
 */
export type ExportMode = "read-only" | "throw-away" | "read-write";

export interface TakenPoint {
  readonly done: boolean;
  readonly comparedBytes: number;
  readonly totalBytes: number;
  /** What differed, and was written. */
  readonly writtenBytes: number;
}

export interface FenceResult {
  readonly groupEpoch: number;
  /** Newest barrier that is complete once all disks are fenced. */
  readonly newestPoint: RecoveryPoint | undefined;
}

export interface TurnResult {
  readonly branch: string;
  readonly groupEpoch: number;
  readonly host: string;
  readonly port: number;
  /** Where the branch begins: what a failover can go to until the group's new state is here. */
  readonly newestPoint: RecoveryPoint | undefined;
}

/** What one pass of expiry did to a group. */
export interface GroupExpiry {
  readonly groupId: string;
  /** Why nothing was changed; empty when something could be. */
  readonly stopped: readonly string[];
  readonly pointsKept: number;
  /** Points that the plan lets go; they may stay readable until an anchor lies behind them. */
  readonly pointsLeaving: number;
  /** Objects that will be deleted after their grace, and those that were. */
  readonly condemned: number;
  readonly deleted: number;
  readonly deletedBytes: number;
  readonly barriersDeleted: number;
  /** The time was up, or a move began: the next pass goes on. */
  readonly interrupted?: boolean;
  readonly fault?: FaultJson;
}

/** A group as the catalog has it, with what its claims say: enough for another control plane to go on with it. */
export interface CatalogedGroup {
  readonly groupId: string;
  /** Left out when no entry can be read. */
  readonly entry?: { readonly revision: number; readonly writtenAtMs: number; readonly record: JsonObject };
  readonly claim?: { readonly groupEpoch: number; readonly activeSite: string; readonly operation: string };
  /** Of the group's first disk: the branch that is written now; `moving`: by nobody. */
  readonly disk?: { readonly branch: string; readonly moving: boolean };
  readonly newest?: { readonly barrier: number; readonly cutAtMs: number };
  /** Newer entries that cannot be read, with why. */
  readonly damaged: readonly { readonly key: string; readonly message: string }[];
}

/** Records of one name in a collection of the catalog. */
export interface KeptSeries {
  readonly name: string;
  /** All that are there, lowest first. */
  readonly numbers: readonly number[];
  /** Newest first. */
  readonly records: readonly { readonly number: number; readonly writtenAtMs: number; readonly record: JsonObject }[];
  readonly damaged: readonly { readonly key: string; readonly message: string }[];
}

/** See `SealedKeysRecord` (#model/format/control-records.ts); a master target cannot open it. */
export interface SealedControlKeys {
  readonly controlId: string;
  readonly controlEpoch: number;
  readonly createdAtMs: number;
  readonly mark: string;
  readonly cipher: "aes-256-gcm";
  readonly salt: string;
  readonly nonce: string;
  readonly sealed: string;
}

export interface MasterTarget {
  /** The store's conditional PUT and range reads behave: STORE_UNSAFE or STORE_DENIED otherwise. Cached for a day. */
  probeStore(
    params: Record<string, never>,
  ): Promise<{ readonly storeId: string; readonly checkedAtMs: number; readonly endpoint: string }>;

  /**
   * Make the group receivable: store.json, per disk root branch, data key and canary, first claim (activeSite = sourceSite), catalog record;
   * then listen for its process server. Returns the address that process servers dial.
   *
   * With `atLeastEpoch` the store may have the disks already: what it has is fenced, and a new branch begins at its newest point, for
   * `sourceSite`. The group's epoch is above that number then.
   */
  prepareGroup(params: {
    readonly groupId: string;
    readonly operationId: string;
    readonly groupName: string;
    readonly sourceSite: string;
    readonly disks: readonly GroupDisk[];
    /** Kept with the group in the catalog; opaque here. */
    readonly record: string;
    readonly atLeastEpoch?: number;
  }): Promise<{ readonly host: string; readonly port: number; readonly branch: string; readonly groupEpoch: number }>;

  /**
   * From now on the process server of `activeSite` replicates the group to here: what was written so far is ended (fenced), and a branch for
   * that site begins at the newest point there is. Without a point the branch goes on. Resumable, like `fence`. NOT_FOUND for a group that was never prepared here.
   */
  turn(params: {
    readonly groupId: string;
    readonly operationId: string;
    readonly activeSite: string;
    readonly atLeastEpoch: number;
  }): Promise<TurnResult>;

  /**
   * Waits until something changed since `cursor` (an earlier answer's), or `waitMs` passed. The group's progress, with the new cursor.
   */
  observeGroup(params: {
    readonly groupId: string;
    readonly cursor: string;
    readonly waitMs: number;
  }): Promise<GroupProgress & { readonly cursor: string }>;

  /** Newest first. With `branch` only points on it, or on its parents before it left them; without, those of all branches. */
  listPoints(params: {
    readonly groupId: string;
    readonly limit?: number;
    readonly branch?: string;
  }): Promise<readonly RecoveryPoint[]>;

  /**
   * Expire the points of every group that has a retention policy, and collect what nothing needs, for at most `budgetMs`. A group of which nothing may
   * expire now, or whose store fails, is in the answer with why. Called while a pass runs, it joins it.
   */
  expirePoints(params: { readonly budgetMs: number }): Promise<readonly GroupExpiry[]>;

  /** Keep a barrier under a name. The same name twice with the same barrier is no error, with another one REFUSED. */
  bookmark(params: {
    readonly groupId: string;
    readonly operationId: string;
    readonly barrier: number;
    readonly name: string;
  }): Promise<RecoveryPoint>;

  /**
   * Take the group for `activeSite`: claim the group's next epoch, fence every disk on its branch, complete the barriers that are
   * durable on all members. After it returns no commit of an older epoch counts. Resumable; the same operation gets the same epoch.
   * `resume` is the branch that goes on afterwards: for an undo the one that the source wrote; left out, the one that was ended.
   */
  fence(params: {
    readonly groupId: string;
    readonly operationId: string;
    readonly activeSite: string;
    readonly resume?: string;
  }): Promise<FenceResult>;

  /**
   * A point as NBD devices. A read-write one begins a branch of its own. One that was closed is REFUSED, unless `reopen` names the
   * operation that wants it back: then it goes on where it was, with all that was written, if nobody has moved the group since (FENCED).
   */
  openExport(params: {
    readonly groupId: string;
    readonly operationId: string;
    /** A point id, or "latest". */
    readonly point: string;
    readonly mode: ExportMode;
    /** Why a read-write export begins its branch; default "failover". */
    readonly reason?: "failover" | "changed-point";
    readonly reopen?: string;
  }): Promise<ExportStatus>;
  /**
   * One machine's disks of a read-write export read as at another point afterwards; those of the others are left alone. Blocks that differ are written like
   * any write, so the export's branch has them too; what was written before stays in its older points. Begins or looks, and answers after `waitMs` at the
   * latest: asked again until it is done. Done once for a `requestId`: a late repeat changes nothing.
   *
   * REFUSED while somebody is attached to such a disk; half-way it is of no point, and nobody may start the machine.
   */
  takePoint(params: {
    readonly operationId: string;
    readonly requestId: string;
    readonly machine: string;
    readonly point: string;
    readonly waitMs: number;
  }): Promise<TakenPoint>;
  exportStatus(params: { readonly operationId: string }): Promise<ExportStatus>;
  /** Close, and with `discard` delete the overlay. A read-write export commits what it has first. */
  closeExport(params: { readonly operationId: string; readonly discard: boolean }): Promise<void>;
  listExports(params: { readonly groupId?: string }): Promise<readonly ExportStatus[]>;

  /**
   * Keep what the group's workflow knows, under a revision of its own. The answer is the newest revision in the store: when it is higher, the writer
   * goes on above it.
   */
  recordGroup(params: {
    readonly groupId: string;
    readonly revision: number;
    readonly record: JsonObject;
  }): Promise<{ readonly newest: number }>;

  /** Every group of this site's store that has a record. Throws NOT_FOUND when there is no store yet. */
  readCatalog(
    params: Record<string, never>,
  ): Promise<{ readonly storeId: string; readonly groups: readonly CatalogedGroup[] }>;

  /**
   * Keep a numbered record of a series in the catalog: create-only. `kept` is false when the number holds something else; a repeat of the same is true.
   */
  keepRecord(params: {
    readonly collection: KeptCollection;
    readonly name: string;
    readonly number: number;
    readonly record: JsonObject;
  }): Promise<{ readonly kept: boolean }>;

  /** The series of a collection, or the one of that name, each with its `newest` records of a number up to `upTo`. */
  readRecords(params: {
    readonly collection: KeptCollection;
    readonly newest: number;
    readonly name?: string;
    readonly upTo?: number;
  }): Promise<readonly KeptSeries[]>;

  /** Keep a sealed copy of control's keys, unless the newest one has the same content. Its number. */
  keepControlKeys(params: { readonly keys: SealedControlKeys }): Promise<{ readonly number: number }>;

  /** Stop receiving and forget (the store keeps everything). */
  releaseGroup(params: { readonly groupId: string; readonly operationId: string }): Promise<void>;
}
