/**
 * Which commits of a branch count. One rule for writers, openers and readers; if they had two, they would have two histories.
 *
 * A branch is a row of slots, numbered from 1; each holds at most one object for ever, because every PUT is create-only.
 * Walking up from a known position:
 * - a commit *counts* when its epoch is not lower and its chain is the hash of the last one that counts;
 * - it is *stale* when its epoch is lower: a fenced writer got a slot that nobody will count (and was never acknowledged);
 * - anything else is *broken*: corrupt is not missing, and neither is skipped.
 *
 * Source: docs/replication.md, "Which commits count".
 */
import { Fault } from "#model/fault.ts";
import type { CommitHeader } from "./commit-codec.ts";

/** A position on a branch: its state after commit `seq`. Seq 0 is where the branch begins. */
export interface Position {
  readonly epoch: number;
  readonly seq: number;
  /** 32 hex digits; what the next commit's chain must be. */
  readonly commitHash: string;
}

/** The newest commit that counts, and the newest with data (both 0 at the start of a branch). */
export interface Tail extends Position {
  readonly data: DataPosition;
}

export interface DataPosition extends Position {
  readonly cycle: number;
  readonly cutAtMs: number;
  /** 16 hex digits; see CommitPlace. */
  readonly writerId: string;
}

/** A position that somebody vouches for: the commits up to it need not be read. */
export type Checkpoint = Tail;

export type Verdict = "counts" | "stale" | "broken";

export function judge(last: Position, next: Pick<CommitHeader, "epoch" | "chain">): Verdict {
  if (next.epoch < last.epoch) return "stale";
  return next.chain === last.commitHash ? "counts" : "broken";
}

/** The tail after `next`, which counts. */
export function advance(last: Tail, next: CommitHeader): Tail {
  const position = { epoch: next.epoch, seq: next.seq, commitHash: next.commitHash };
  if (next.kind === "fence") return { ...position, data: last.data };
  return { ...position, data: { ...position, cycle: next.cycle, cutAtMs: next.cutAtMs, writerId: next.writerId } };
}

export function chainBroken(diskId: string, branch: string, seq: number, what: string): Fault {
  return new Fault("CHAIN_BROKEN", `Commit ${seq} of disk "${diskId}", branch "${branch}", ${what}`, {
    details: { diskId, branch, seq },
    hint: "Points before this commit can still be recovered; a resync is needed before newer ones are offered.",
  });
}
