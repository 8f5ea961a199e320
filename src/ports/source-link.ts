/**
 * What an agent and its process server say to each other over a link. Plain JSON; docs/protocol.md, "Agent and process server".
 *
 * ```
 *  agent ──dials──► process server     control connection: hello, reports; the process server calls back over it
 *  agent ──dials──► process server     lanes (one for delta frames, one for each sweeping thread): lane.join, frames…, lane.flush
 * ```
 *
 * A lane never carries anything that someone waits for within a hold: its notices are slowed down by the WAN.
 */
import type { DiskReport, DiskSpec, ReplicationOrder } from "./replication.ts";

/** A group as far as one machine is concerned. */
export interface GroupTask {
  readonly groupId: string;
  readonly state: ReplicationOrder["state"];
  readonly compressAt: ReplicationOrder["compressAt"];
  readonly disks: readonly DiskSpec[];
}

/** agent → process server, first call on the control connection. `sessionId` is random, one per connection. */
export interface AgentHello {
  readonly machine: string;
  readonly sessionId: string;
  /** /proc/sys/kernel/random/boot_id */
  readonly bootId: string;
  readonly version: string;
}

/** A tapped disk, as of now. */
export interface AgentDisk extends DiskReport {
  readonly groupId: string;
  /** Which life of the tracker: another one means that the tap lost track of what is dirty, and sweeps what its write intent names. */
  readonly tracker: { readonly bootId: string; readonly generation: number };
  /** Cycles that are open: their cut is kept by the tap, or what was swept in them is not committed. Ascending. */
  readonly openCycles: readonly number[];
  /** Unsynced bytes that no open cycle has swept yet. */
  readonly remainingBytes: number;
  /** Why the disk cannot be tapped; its other figures are then empty. */
  readonly fault?: { readonly code: string; readonly message: string; readonly hint?: string };
}

/**
 * process server → agent: `agent.sweep {groupId, cycle, life, boundMs, compare}`: all frames were sent over the lanes, and flushed.
 *
 * `compare`: the disks of which the target has something, with the stripes that it has (a bit each, base64). What is swept of these stripes is compared first.
 */
export interface SweepResult {
  readonly disks: readonly SweptDisk[];
}

export interface SweptDisk {
  readonly diskId: string;
  readonly sweptBytes: number;
  /** Of them, those that were compared, and those that the target had already. */
  readonly comparedBytes: number;
  readonly sameBytes: number;
}

/** agent → process server → mover: `lane.compare`, `compare.run`: how the replica's pieces differ from those of this run. */
export interface CompareQuestion {
  readonly diskId: string;
  readonly cycle: number;
  readonly first: number;
  readonly count: number;
  /** 16 bytes for each piece of the run, base64. */
  readonly digests: string;
}

/** A `Comparison` (src/model/comparison.ts), each part base64. */
export interface CompareAnswer {
  readonly pieces: string;
  readonly salt: string;
  readonly marks: string;
}

/**
 * process server → agent: `agent.release {groupId, cycle}`. `held` is false when a tap released by itself before. The disks as they are
 * right after the release.
 */
export interface ReleaseResult {
  readonly held: boolean;
  readonly holdMs: number;
  readonly disks: readonly AgentDisk[];
}

/** process server → agent: `agent.ship {groupId, cycle}`: all frames of the cut were sent over the delta lane, and flushed. */
export interface ShipResult {
  readonly disks: readonly { readonly diskId: string; readonly plainBytes: number }[];
}

/**
 * process server → agent, before anything else after a (re)connection: `agent.settle`. Of the open cycles, those that were made for this `life` of
 * a process server (`agent.sweep`, `agent.mark`) and are named in `committed` are committed, those named in `keep` stay open. All others are
 * discarded, which is always right: their blocks are shipped again.
 */
export interface Settlement {
  readonly groupId: string;
  /** 8 hex digits. */
  readonly life: string;
  readonly keep: readonly number[];
  readonly committed: readonly number[];
}
