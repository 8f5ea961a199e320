/**
 * The newest barrier of a group, as its mover knows it: of a cut in which nothing changed, that one stands for the new cut too.
 *
 * Invariant: a barrier is written after every commit that it names; whoever calls `at` has committed.
 */
import type { BarrierRecord } from "#model/format/records.ts";
import { barrierMember, listBarriers, readBarrier, sameMembers, writeBarrier, type GroupContext } from "./barriers.ts";
import type { MoverDisk } from "./mover-disk.ts";

export interface NewestBarrier {
  readonly record: BarrierRecord | undefined;
  /** Read it from the store. Its number, also when it is of an earlier protection and says nothing; 0 when there is none. */
  look(): Promise<number>;
  /** The barrier of this cut: the newest one when nothing changed since, else a new one. Undefined when a disk is already past the cycle. */
  at(own: BarrierOwner, cut: BarrierCut): Promise<BarrierRecord | undefined>;
}

export interface BarrierOwner {
  readonly groupId: string;
  readonly groupEpoch: number;
  readonly branch: string;
  readonly disks: readonly MoverDisk[];
}

export interface BarrierCut {
  readonly cycle: number;
  readonly cutMs: number;
  readonly changed: boolean;
}

export function createNewestBarrier(
  context: GroupContext,
  { isOurs }: { readonly isOurs: (diskId: string) => boolean },
): NewestBarrier {
  let newest: BarrierRecord | undefined;
  return {
    get record() {
      return newest;
    },
    async look() {
      const number = (await listBarriers(context)).at(-1);
      const record = number === undefined ? undefined : await readBarrier(context, number);
      // Of an earlier protection under the same name, it says nothing about the disks of now.
      newest = record?.members.every(({ diskId }) => isOurs(diskId)) === true ? record : undefined;
      return number ?? 0;
    },
    async at({ groupId, groupEpoch, branch, disks }, { cycle, cutMs, changed }) {
      if (disks.some((disk) => disk.data.cycle > cycle)) return undefined;
      const members = disks.map((disk) => barrierMember(disk.diskId, branch, disk.data));
      if (!changed && newest && sameMembers(newest.members, members)) return newest;
      const record: BarrierRecord = {
        barrier: cycle,
        groupId,
        groupEpoch,
        cutAtMs: cutMs,
        consistency: "crash",
        members,
      };
      await writeBarrier(context, record);
      newest = record;
      return record;
    },
  };
}
