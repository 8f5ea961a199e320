/** What a process server says to the mover, checked. Source: docs/protocol.md, "Process server and master target". */
import type { BlockRun } from "#model/block-set.ts";
import { Fault } from "#model/fault.ts";
import {
  readBase64,
  readBoolean,
  readList,
  readName,
  readNumber,
  readObject,
  readText,
  readWhole,
  type Fields,
} from "#model/json-reader.ts";

export interface StreamOpen {
  readonly groupId: string;
  readonly branch: string;
  readonly groupEpoch: number;
  readonly sourceSite: string;
  readonly orderVersion: number;
  /** 8 hex digits, random: one life of the process server. Cycle numbers of different lives may be the same. */
  readonly sourceLife: string;
  readonly disks: readonly { readonly diskId: string; readonly sizeBytes: number }[];
}

/** Last commit of a disk. `cycle` 0: none of a cycle yet. */
export interface DiskTail {
  readonly diskId: string;
  readonly epoch: number;
  readonly seq: number;
  readonly commitHash: string;
  readonly cycle: number;
  /** For which life of a process server that cycle was committed; "" when there is none. */
  readonly sourceLife: string;
  /** The branch has data of this disk: a sweep may be compared with it. */
  readonly stored: boolean;
}

export interface StreamOpened {
  readonly streamId: string;
  /** What a source tracks is relative to one store. */
  readonly storeId: string;
  /** Highest number of a barrier or cycle that the store knows of the group: the source numbers on from there. */
  readonly barrier: number;
  readonly disks: readonly DiskTail[];
}

export interface FramesHead {
  readonly streamId: string;
  readonly diskId: string;
  readonly cycle: number;
}

/** `digests`: 16 bytes for each 64 KiB piece of the run. */
export interface CompareRun extends FramesHead {
  readonly run: BlockRun;
  readonly digests: Uint8Array;
}

export interface CycleCommit {
  readonly streamId: string;
  readonly cycle: number;
  readonly cutAtMs: number;
  readonly consistent: boolean;
  readonly point: boolean;
  readonly syncTotalBytes: number;
  readonly disks: readonly CycleDisk[];
  readonly backlogBytes: number;
  readonly writtenBytes: number;
}

export interface CycleDisk {
  readonly diskId: string;
  /** Frame records sent for this cycle, over all connections. */
  readonly records: number;
  readonly syncRemainingBytes: number;
  readonly tracker: { readonly bootId: string; readonly generation: string };
}

export interface CycleCommitted {
  /** The disks with a commit of this cycle. */
  readonly committed: readonly {
    readonly diskId: string;
    readonly epoch: number;
    readonly seq: number;
    readonly commitHash: string;
  }[];
  /** There is a barrier of exactly this state: this cycle's, or an earlier one when nothing changed since. */
  readonly barrier: boolean;
  /** Its number; 0 without one. */
  readonly barrierNumber: number;
  /** When the barrier's state was cut. */
  readonly barrierCutAtMs: number;
}

export function readStreamOpen(params: Fields): StreamOpen {
  return {
    groupId: readName(params, "groupId"),
    branch: readName(params, "branch"),
    groupEpoch: readWhole(params, "groupEpoch"),
    sourceSite: readName(params, "sourceSite"),
    orderVersion: readWhole(params, "orderVersion"),
    sourceLife: readLife(params),
    disks: readList(params, "disks", (disk) => ({
      diskId: readName(disk, "diskId"),
      sizeBytes: readWhole(disk, "sizeBytes"),
    })),
  };
}

function readLife(params: Fields): string {
  const life = readText(params, "sourceLife");
  if (/^[0-9a-f]{8}$/.test(life)) return life;
  throw new Fault("PROTOCOL_INVALID", `Expected 8 hex digits as "sourceLife", got "${life}"`);
}

export function readFramesHead(params: Fields): FramesHead {
  return {
    streamId: readText(params, "streamId"),
    diskId: readName(params, "diskId"),
    cycle: readWhole(params, "cycle"),
  };
}

export function readCompareRun(params: Fields): CompareRun {
  return {
    ...readFramesHead(params),
    run: { start: readWhole(params, "first"), count: readWhole(params, "count") },
    digests: Buffer.from(readBase64(params, "digests"), "base64"),
  };
}

export function readCycleCommit(params: Fields): CycleCommit {
  const stats = readObject(params["stats"] ?? {}, "stats");
  return {
    streamId: readText(params, "streamId"),
    cycle: readWhole(params, "cycle"),
    cutAtMs: readWhole(params, "cutAtMs"),
    consistent: readBoolean(params, "consistent"),
    point: readBoolean(params, "point"),
    syncTotalBytes: readNumber(params, "syncTotalBytes"),
    disks: readList(params, "disks", (disk) => {
      const tracker = readObject(disk["tracker"] ?? {}, "tracker");
      return {
        diskId: readName(disk, "diskId"),
        records: readWhole(disk, "records"),
        syncRemainingBytes: readNumber(disk, "syncRemainingBytes"),
        tracker: { bootId: String(tracker["bootId"] ?? ""), generation: String(tracker["generation"] ?? "") },
      };
    }),
    backlogBytes: stats["backlogBytes"] === undefined ? 0 : readNumber(stats, "backlogBytes"),
    writtenBytes: stats["writtenBytes"] === undefined ? 0 : readNumber(stats, "writtenBytes"),
  };
}
