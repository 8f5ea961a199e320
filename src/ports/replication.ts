/**
 * The plain-JSON vocabulary of replication that several roles share: orders, progress, points. Times are ms since 1970.
 */

/** What the process server of the source site is told to do, signed by `control`, kept on its disk, obeyed until replaced. */
export interface ReplicationOrder {
  readonly groupId: string;
  readonly groupName: string;
  /** Grows with each change of the order; a lower one is ignored. */
  readonly version: number;
  /** The term of the control that gives it; stamped when it is signed. It counts before the version: left out, 0. */
  readonly controlEpoch?: number;
  /** `stopped`: cut nothing, ship nothing, keep the taps serving. `paused`: taps track, nothing is shipped. */
  readonly state: "active" | "paused" | "stopped";
  readonly branch: string;
  readonly groupEpoch: number;
  readonly sourceSite: string;
  /** The mover that receives this group's stream. */
  readonly target: { readonly site: string; readonly host: string; readonly port: number };
  readonly intervalMs: number;
  readonly compressAt: "agent" | "process-server";
  readonly members: readonly { readonly machine: string; readonly disks: readonly DiskSpec[] }[];
}

export interface SignedOrder {
  /** JSON of a ReplicationOrder, exactly as signed. */
  readonly order: string;
  /** Ed25519 over the UTF-8 bytes of `order`, base64. */
  readonly signature: string;
}

export interface DiskSpec {
  readonly diskId: string;
  /** Where the disk comes from: `tap:PATH`; or `replica:NAME`, an image of the agent's own, which it makes. */
  readonly source: string;
  /** What a `replica:NAME` is made with; only there it is needed. */
  readonly sizeBytes?: number;
  readonly bootIndex?: number;
}

/** What an agent knows of a disk. `tapUrl` is where the machine attaches it. */
export interface DiskReport {
  readonly diskId: string;
  readonly source: string;
  readonly sizeBytes: number;
  readonly sectorBytes: number;
  readonly tapUrl?: string;
  /** Clients that have the disk attached at the tap; undefined when its agent is too old to say. */
  readonly clients?: number;
  /** Bytes that the sweep (initial sync, resync) has still to read. */
  readonly unsyncedBytes: number;
  readonly dirtyBytes: number;
  readonly writtenBytes: number;
  /** Longest hold of acknowledgements since the last report, ms. */
  readonly holdMsMax: number;
  /** Why a sweep is running, or "" when none is. */
  readonly sweepReason: string;
}

export interface DiskProgress {
  readonly diskId: string;
  readonly sizeBytes: number;
  readonly epoch: number;
  readonly seq: number;
  /** Last cycle of the source that is committed. */
  readonly cycle: number;
  readonly syncRemainingBytes: number;
  readonly syncTotalBytes: number;
}

/** What the master target has seen of a group. */
export interface GroupProgress {
  readonly groupId: string;
  readonly state: "waiting" | "seeding" | "live" | "fenced" | "failed";
  readonly connected: boolean;
  readonly fault?: { readonly code: string; readonly message: string; readonly hint?: string };
  readonly disks: readonly DiskProgress[];
  /** The replica was last known to equal the source as of this time: newest barrier, or a later cut that found nothing changed. */
  readonly currentAsOfMs: number;
  /** Newest complete barrier. Zero: none yet. */
  readonly barrier: number;
  readonly barrierCutAtMs: number;
  readonly barrierCommittedAtMs: number;
  /** Commits and bytes since this mover started. */
  readonly commits: number;
  readonly shippedBytes: number;
  readonly storedBytes: number;
  readonly syncBytesPerSecond: number;
  /** What the source reported last: waiting in its spool, dirty and not yet cut, and the sum of what was written. */
  readonly backlogBytes: number;
  readonly writtenBytes: number;
  readonly observedAtMs: number;
}

export type PointKind = "recovery" | "bookmark";
export type Consistency = "crash" | "app";

export interface RecoveryPoint {
  /** `{cutMs:013d}-{barrier:016x}` */
  readonly id: string;
  readonly groupId: string;
  readonly barrier: number;
  readonly cutAtMs: number;
  readonly kind: PointKind;
  readonly name?: string;
  readonly consistency: Consistency;
  /** What is known of it: `committed` = every member's commit is in the store, chained and complete. */
  readonly grade: "committed" | "verified";
  readonly reasonKept: string;
  readonly members: readonly PointMember[];
}

export interface PointMember {
  readonly diskId: string;
  readonly branch: string;
  readonly epoch: number;
  readonly seq: number;
  /** First 16 bytes of SHA-256 over header and index of that commit, hex: what the next commit's chain would be. */
  readonly commitHash: string;
}
