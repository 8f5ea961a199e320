/**
 * The moves of one disk that `control` orders: it comes into being, is taken from its writer, goes on along a new branch.
 *
 * Every one is idempotent by its operation id: repeated, by anyone, it finds what it made. `groupEpoch` is the number of the group's
 * claim (group-fence.ts) under which it happens; a move of an older group epoch is refused once a newer one has touched the disk.
 *
 * Source: docs/replication.md, "Moves".
 */
import { Fault } from "#model/fault.ts";
import {
  decodeBranchOrigin,
  encodeBranchOrigin,
  type BranchOrigin,
  type BranchReason,
  type DiskClaim,
} from "#model/format/records.ts";
import { readOrigin, readTail } from "./branch-reader.ts";
import { claimNext, fencedBy, listNumbers, readClaim, readHighestClaim, uniqueHolder } from "./claims.ts";
import { takeSlot } from "./commit-log.ts";
import type { Tail } from "./counting.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, type DiskContext } from "./disk-context.ts";

export interface Move {
  readonly operation: string;
  readonly groupEpoch: number;
  /** Whose source may write from now on. */
  readonly activeSite: string;
  readonly branch: string;
  /** This process, for people. */
  readonly holder: string;
}

/** The disk's root branch and its first claim. Throws DISK_ALREADY_PROTECTED when another operation made them. */
export async function createDisk(disk: DiskContext, move: Omit<Move, "branch">): Promise<DiskClaim> {
  const { operation, groupEpoch, activeSite } = move;
  const origin: BranchOrigin = { branch: ROOT, reason: "root", operation, createdAtMs: disk.clock.now() };
  if ((await createOrigin(disk, origin)).operation !== operation) throw alreadyProtected(disk);
  const { holder } = uniqueHolder(disk, move.holder);
  const made = await claimNext(disk, 0, { activeSite, branch: ROOT, groupEpoch, operation, holder });
  if (made !== undefined) return made;
  const first = await readClaim(disk, 1);
  if (first.operation !== operation) throw alreadyProtected(disk);
  return first;
}

export const ROOT = "root";

export interface FencedDisk {
  readonly diskId: string;
  readonly branch: string;
  /** Epoch of the fence. */
  readonly epoch: number;
  /**
   * The last commit before the fence that counts: no older writer can add to it. The same for every caller, unless the branch has gone on
   * and been collected since: then some later commit that counts.
   */
  readonly last: Tail;
}

/**
 * Take the disk from its writer and end `move.branch` for it. When this returns, no commit of an older epoch can count after
 * `last`, and every acknowledged one is at or before it.
 *
 * Throws FENCED when a newer move has touched the disk.
 */
export async function fenceDisk(disk: DiskContext, move: Move): Promise<FencedDisk> {
  const { branch } = move;
  const { epoch } = await claimForMove(disk, move);
  const tail = await readTail(disk, branch);
  if (tail.epoch < epoch) {
    const { writerId } = uniqueHolder(disk, move.holder);
    await takeSlot(disk, { branch, epoch, writerId }, tail, (place) => disk.codec.sealFence(place)); // Another's fence of this epoch will do.
  }
  const highest = await readHighestClaim(disk);
  if (highest.groupEpoch > move.groupEpoch) throw superseded(disk, highest, move);
  return { diskId: disk.diskId, branch, epoch, last: await readTail(disk, branch, epoch) };
}

/** A new line of commits from a state of its parent. The same operation, repeated, must ask for the same; anything else is REFUSED. */
export async function createBranch(
  disk: DiskContext,
  request: {
    readonly branch: string;
    readonly parent: { readonly branch: string; readonly seq: number; readonly commitHash: string };
    readonly reason: BranchReason;
    readonly operation: string;
  },
): Promise<BranchOrigin> {
  const { branch, reason, operation } = request;
  const { seq, commitHash } = request.parent;
  const wanted: BranchOrigin = {
    branch,
    reason,
    parent: { branch: request.parent.branch, seq, commitHash },
    operation,
    createdAtMs: disk.clock.now(),
  };
  const there = await createOrigin(disk, wanted);
  const same =
    there.operation === operation &&
    there.reason === reason &&
    there.parent?.branch === wanted.parent?.branch &&
    there.parent?.seq === seq &&
    there.parent.commitHash === commitHash;
  if (!same) {
    throw new Fault("REFUSED", `Disk "${disk.diskId}" has a branch "${branch}" already, which starts elsewhere`, {
      details: { diskId: disk.diskId, branch },
      hint: "Repeat the operation under a new operation id.",
    });
  }
  return there;
}

/** From now on `activeSite` writes `branch`. The disk must have been fenced under this group epoch. Throws FENCED as `fenceDisk` does. */
export async function claimBranch(disk: DiskContext, move: Move): Promise<DiskClaim> {
  const highest = await readHighestClaim(disk);
  if (highest.groupEpoch < move.groupEpoch)
    throw new RangeError(`Disk "${disk.diskId}" is not fenced under group epoch ${move.groupEpoch}`);
  await readOrigin(disk, move.branch);
  return claimForMove(disk, move);
}

/** This move's claim on the disk: found among those of its group epoch, which stand at the end, or made. */
async function claimForMove(disk: DiskContext, move: Move): Promise<DiskClaim> {
  const { operation, groupEpoch, activeSite, branch } = move;
  const { holder } = uniqueHolder(disk, move.holder);
  for (;;) {
    const epochs = await listNumbers(disk, disk.names.epochs);
    for (const epoch of epochs.toReversed()) {
      const claim = await readClaim(disk, epoch);
      if (claim.groupEpoch > groupEpoch) throw superseded(disk, claim, move);
      if (claim.groupEpoch < groupEpoch) break;
      if (claim.operation === operation && claim.branch === branch && claim.activeSite === activeSite) return claim;
    }
    const made = await claimNext(disk, epochs.at(-1) ?? 0, { activeSite, branch, groupEpoch, operation, holder });
    if (made !== undefined) return made;
  }
}

/** The branch's origin as it is in the store: `wanted`, or what was there before. */
async function createOrigin(disk: DiskContext, wanted: BranchOrigin): Promise<BranchOrigin> {
  const key = disk.names.origin(wanted.branch);
  const taken = await createOnce<BranchOrigin>(disk, {
    key,
    body: encodeBranchOrigin(wanted),
    look: async () => {
      const data = await readIfThere(disk, key);
      return data && decodeBranchOrigin(data, key);
    },
    isMine: () => false, // The caller compares; whose hand it was does not matter.
  });
  return taken ?? wanted;
}

function alreadyProtected(disk: DiskContext): Fault {
  return new Fault("DISK_ALREADY_PROTECTED", `Disk "${disk.diskId}" is in this store already`, {
    details: { diskId: disk.diskId },
    hint: "Use the group that protects it, or protect the disk under another id.",
  });
}

function superseded(disk: DiskContext, claim: DiskClaim, move: Move): Fault {
  return fencedBy(disk, claim, { site: move.activeSite, branch: move.branch, epoch: move.groupEpoch });
}
