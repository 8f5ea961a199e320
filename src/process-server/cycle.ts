/** One cycle of a group on its way: what was counted, what the cut said, and where its frames are. */
import type { Fault } from "#model/fault.ts";
import type { OpenCycle } from "#model/cycle-rules.ts";
import type { Statement } from "#model/repeat-filter.ts";
import type { AgentDisk } from "#ports/source-link.ts";
import type { SpoolCycle } from "./spool.ts";

export interface Cycle {
  readonly number: number;
  readonly spool: SpoolCycle;
  readonly counts: ReadonlyMap<string, DiskCount>;
  cutAtMs: number;
  point: boolean;
  /** The disks right after the cut's release. */
  disks: readonly AgentDisk[];
  /** Cut and shipped: it can be committed. */
  complete: boolean;
  commitSent: boolean;
  /** Why it was given up. Frames that still come for it are dropped. */
  fault: Fault | undefined;
}

export interface DiskCount {
  /** Records on their way or sent, as far as the mover must wait for them. */
  sweepRecords: number;
  deltaRecords: number;
  /** Swept blocks may be left out, because the target has them: the commit rests on what was there before it. */
  compared: boolean;
  /** What the deltas say, for the site's cache; undefined once there is too much of it, or a sweep says something too. */
  said: Statement[] | undefined;
}

const STATEMENTS_MAX = 50_000;

export function addStatements(count: DiskCount, said: readonly Statement[]): void {
  if (count.said === undefined) return;
  if (count.said.length + said.length > STATEMENTS_MAX) count.said = undefined;
  else for (const statement of said) count.said.push(statement);
}

export function newCycle(number: number, spool: SpoolCycle, diskIds: readonly string[]): Cycle {
  const counts = new Map(
    diskIds.map((diskId) => [diskId, { sweepRecords: 0, deltaRecords: 0, compared: false, said: [] }]),
  );
  return {
    number,
    spool,
    counts,
    cutAtMs: 0,
    point: false,
    disks: [],
    complete: false,
    commitSent: false,
    fault: undefined,
  };
}

export function isSwept(cycle: Cycle): boolean {
  return [...cycle.counts.values()].some((count) => count.sweepRecords > 0 || count.compared);
}

export function recordsOf(cycle: Cycle, diskId: string): number {
  const count = cycle.counts.get(diskId);
  return count === undefined ? 0 : count.sweepRecords + count.deltaRecords;
}

export function hasRecords(cycle: Cycle): boolean {
  return [...cycle.counts.keys()].some((diskId) => recordsOf(cycle, diskId) > 0);
}

/**
 * Swept frames are nowhere but on the wire, and what was compared was compared on one stream; a cycle that is still being cut has not
 * been cut.
 */
export function asOpenCycle(cycle: Cycle): OpenCycle {
  const disks = [...cycle.counts]
    .filter(([diskId, count]) => count.compared || recordsOf(cycle, diskId) > 0)
    .map(([diskId, count]) => ({
      diskId,
      resendable: count.sweepRecords === 0 && !count.compared && cycle.spool.resendable,
    }));
  return { cycle: cycle.number, commitSent: cycle.commitSent, disks };
}
