/** What a mover tells of a group, from what it knows. Pure. */
import type { Fault } from "#model/fault.ts";
import type { BarrierRecord } from "#model/format/records.ts";
import type { GroupProgress } from "#ports/replication.ts";
import type { MoverDisk } from "./mover-disk.ts";

export interface ProgressFacts {
  readonly state: GroupProgress["state"];
  readonly fault: Fault | undefined;
  /** What each disk had still to sync at its last cycle, in bytes. Empty until the first. */
  readonly reported: ReadonlyMap<string, number>;
  readonly syncTotalBytes: number;
  readonly currentAsOfMs: number;
  readonly barrierCommittedAtMs: number;
  readonly commits: number;
  readonly shippedBytes: number;
  readonly backlogBytes: number;
  readonly writtenBytes: number;
}

export function progressOf(
  facts: ProgressFacts,
  now: {
    readonly groupId: string;
    readonly connected: boolean;
    readonly disks: readonly Pick<MoverDisk, "diskId" | "sizeBytes" | "epoch" | "storedBytes" | "lastData">[];
    readonly newestBarrier: BarrierRecord | undefined;
    readonly syncBytesPerSecond: number;
    readonly nowMs: number;
  },
): GroupProgress {
  const { fault } = facts;
  const { newestBarrier } = now;
  const sizeBytes = now.disks.reduce((sum, disk) => sum + disk.sizeBytes, 0);
  return {
    groupId: now.groupId,
    state: facts.state,
    connected: now.connected,
    ...(fault === undefined
      ? {}
      : {
          fault: {
            code: fault.code,
            message: fault.message,
            ...(fault.hint === undefined ? {} : { hint: fault.hint }),
          },
        }),
    disks: now.disks.map((disk) => ({
      diskId: disk.diskId,
      sizeBytes: disk.sizeBytes,
      epoch: disk.epoch,
      seq: disk.lastData?.seq ?? 0,
      cycle: disk.lastData?.cycle ?? 0,
      syncRemainingBytes: facts.reported.get(disk.diskId) ?? 0,
      // The source tells one total for the group; by size is how it is spread.
      syncTotalBytes: Math.round((facts.syncTotalBytes * disk.sizeBytes) / Math.max(1, sizeBytes)),
    })),
    currentAsOfMs: Math.max(facts.currentAsOfMs, newestBarrier?.cutAtMs ?? 0),
    barrier: newestBarrier?.barrier ?? 0,
    barrierCutAtMs: newestBarrier?.cutAtMs ?? 0,
    barrierCommittedAtMs: facts.barrierCommittedAtMs,
    commits: facts.commits,
    shippedBytes: facts.shippedBytes,
    storedBytes: now.disks.reduce((sum, disk) => sum + disk.storedBytes, 0),
    syncBytesPerSecond: now.syncBytesPerSecond,
    backlogBytes: facts.backlogBytes,
    writtenBytes: facts.writtenBytes,
    observedAtMs: now.nowMs,
  };
}
