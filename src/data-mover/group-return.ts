/**
 * A group that comes back to a store: the site where its machines once ran is to hold its replica, or has held one before.
 *
 * Invariants:
 * - what the store has stays as it is, on the branch it was written on; whoever wrote it is fenced before anything new begins;
 * - a new branch begins at the newest complete point, so that whatever is compared with it is compared with one cut over all disks;
 * - every step is idempotent by its operation, like all moves (group-fence.ts).
 *
 * Source: docs/replication.md, "Moves".
 */
import { isFault } from "#model/fault.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { GroupContext } from "./barriers.ts";
import { NO_COMMIT } from "./branch-reader.ts";
import { readHighestClaim } from "./claims.ts";
import { claimBranch, createBranch, createDisk, ROOT } from "./disk-moves.ts";
import { claimGroupEpoch, fenceGroup } from "./group-fence.ts";

export interface ReturnGroup {
  readonly operation: string;
  /** Whose process server writes from now on. */
  readonly activeSite: string;
  readonly disks: readonly string[];
  readonly holder: string;
  /** The group's new epoch is above this number. */
  readonly atLeastEpoch: number;
  /** Name of the branch that begins, the same for the same operation. */
  readonly newBranch: string;
}

export interface ReturnedGroup {
  readonly activeSite: string;
  /** The new branch, or the one that was there when it has no point to begin at. */
  readonly branch: string;
  readonly groupEpoch: number;
  readonly newestPoint: RecoveryPoint | undefined;
}

/** Fence what is there, and begin the branch of `activeSite` at its newest point. Throws FENCED when a newer move has touched a disk. */
export async function beginReturn(group: GroupContext, request: ReturnGroup): Promise<ReturnedGroup> {
  const { operation, activeSite, disks, holder } = request;
  const fenced = await fenceGroup(group, { ...request, resume: false });
  const { groupEpoch, newestPoint } = fenced;
  const branch = newestPoint === undefined ? fenced.branch : request.newBranch;
  if (newestPoint !== undefined) {
    for (const diskId of disks) {
      const member = newestPoint.members.find((one) => one.diskId === diskId);
      // A disk that came later than the point begins empty, as it did.
      const parent =
        member === undefined
          ? { branch: ROOT, seq: 0, commitHash: NO_COMMIT }
          : { branch: member.branch, seq: member.seq, commitHash: member.commitHash };
      await createBranch(group.disk(diskId), { branch, parent, reason: "reprotect", operation });
    }
  }
  const move = { operation, groupEpoch, activeSite, branch, holder };
  await Promise.all(disks.map((diskId) => claimBranch(group.disk(diskId), move)));
  return { activeSite, branch, groupEpoch, newestPoint };
}

/**
 * The disks are in this store afterwards, for `activeSite`: made with their root branch, or, when they were there, on a branch that begins at
 * the newest point. Repeated after a newer move it changes nothing, and answers with what holds now.
 */
export async function prepareReturn(group: GroupContext, request: ReturnGroup): Promise<ReturnedGroup> {
  const { operation, activeSite, disks, holder } = request;
  const branch = await branchNow(group, disks);
  const { groupEpoch } = await claimGroupEpoch(group, { ...request, branch });
  const firsts = await Promise.all(
    disks.map((diskId) =>
      createDisk(group.disk(diskId), { operation, groupEpoch, activeSite, holder }, { mayExist: true }),
    ),
  );
  const highest = await readHighestClaim(group.disk(disks[0]!));
  if (highest.groupEpoch > groupEpoch) {
    return {
      activeSite: highest.activeSite,
      branch: highest.branch,
      groupEpoch: highest.groupEpoch,
      newestPoint: undefined,
    };
  }
  if (firsts.every((claim) => claim.operation === operation))
    return { activeSite, branch: ROOT, groupEpoch, newestPoint: undefined };
  return beginReturn(group, request);
}

/** The branch that the disks are on; `root` when none of them is in the store. */
async function branchNow(group: GroupContext, disks: readonly string[]): Promise<string> {
  for (const diskId of disks) {
    try {
      return (await readHighestClaim(group.disk(diskId))).branch;
    } catch (error) {
      if (!isFault(error, "NOT_FOUND")) throw error;
    }
  }
  return ROOT;
}
