/**
 * The last step of moving a disk: the guest leaves one disk for the other, and so does the machine's record. Pure: what is seen in, the next
 * step out, so that whoever comes after a crash goes on from whatever is there.
 *
 * ```
 *  ready ──stop──► guest held ──complete──► pending ──record──► ──finalize──► at the target ──resume──► ──dismiss──► ──forget──►
 *                                 both disks are equal, the target has been flushed,
 *                                 and QEMU lets no request through
 * ```
 *
 * Invariants (test/adapters/qemu/pivot-plan.test.ts, against a model that loses its power anywhere):
 * - the record names a disk that has every write that the guest was told is done: until `record` that is the old one, since each write went to it
 *   first; from then on both are equal, until `resume` lets the guest write to the one that the record names;
 * - the guest goes on only when it is attached to the disk that the record names. If QEMU will not hand over after all, the record is taken back first;
 * - while QEMU answers and the record can be written, following the steps ends with a guest that runs and nothing left over.
 *
 * Source: QEMU 7.2, block/mirror.c (mirror_run: with `auto-finalize` off a job that was told to complete drains the source, flushes the target
 * and then waits as `pending`), qapi/job.json (JobStatus).
 */

export interface PivotFacts {
  /** Does the guest's processor run? */
  readonly guestRuns: boolean;
  /** The guest's device is attached to the target. */
  readonly atTarget: boolean;
  /** Status of the mirror as QEMU says it; undefined: there is none. */
  readonly job: string | undefined;
  /** `complete` was asked for by this very process, and shows only later. */
  readonly asked: boolean;
  /** Which end the machine's record names. */
  readonly recorded: "from" | "to";
}

export type PivotStep =
  "stop" | "complete" | "wait" | "record" | "finalize" | "take-back" | "resume" | "dismiss" | "forget";

export function nextPivotStep(seen: PivotFacts): PivotStep {
  if (seen.atTarget) {
    if (seen.recorded === "from") return seen.guestRuns ? "stop" : "record";
    return afterwards(seen);
  }
  switch (seen.job) {
    case "pending":
      // It may run although it cannot reach this disk: a pause of ours that took too long was ended.
      if (seen.guestRuns) return "stop";
      return seen.recorded === "from" ? "record" : "finalize";
    case "ready":
      if (seen.recorded === "to") return "take-back";
      if (seen.guestRuns) return "stop";
      return seen.asked ? "wait" : "complete";
    case "waiting":
      return "wait";
    default:
      // No mirror, or one that came to an end, or that copies again: the guest stays where it is.
      if (seen.recorded === "to") return seen.guestRuns ? "stop" : "take-back";
      return afterwards(seen);
  }
}

function afterwards({ guestRuns, job }: PivotFacts): PivotStep {
  if (!guestRuns) return "resume";
  return job === "concluded" ? "dismiss" : "forget";
}
