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
import { branchStart, findCommit, NO_COMMIT, readBranch, readOrigin, readTail } from "./branch-reader.ts";
import { claimNext, fencedBy, listNumbers, readClaim, readHighestClaim, uniqueHolder } from "./claims.ts";
import { takeSlot } from "./commit-log.ts";
import { advance, type Tail } from "./counting.ts";
import { createOnce } from "./create-once.ts";
import { isDamage, readIfThere, type DiskContext } from "./disk-context.ts";

export interface Move {
  readonly operation: string;
  readonly groupEpoch: number;
  /** Whose source may write from now on. */
  readonly activeSite: string;
  readonly branch: string;
  /** This process, for people. */
  readonly holder: string;
}

/** The disk's root branch and its first claim. Throws DISK_ALREADY_PROTECTED when another operation made them, unless that is fine (`mayExist`). */
export async function createDisk(
  disk: DiskContext,
  move: Omit<Move, "branch">,
  { mayExist = false }: { readonly mayExist?: boolean } = {},
): Promise<DiskClaim> {
  const { operation, groupEpoch, activeSite } = move;
  const origin: BranchOrigin = { branch: ROOT, reason: "root", operation, createdAtMs: disk.clock.now() };
  if ((await createOrigin(disk, origin)).operation !== operation && !mayExist) throw alreadyProtected(disk);
  const { holder } = uniqueHolder(disk, move.holder);
  const made = await claimNext(disk, 0, { activeSite, branch: ROOT, groupEpoch, operation, holder });
  if (made !== undefined) return made;
  const first = await readClaim(disk, 1);
  if (first.operation !== operation && !mayExist) throw alreadyProtected(disk);
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
 * A damaged end of the branch does not prevent it: `last` is then the last commit before the damage.
 * Throws FENCED when a newer move has touched the disk.
 */
export async function fenceDisk(disk: DiskContext, move: Move): Promise<FencedDisk> {
  const { branch } = move;
  const { epoch } = await claimForMove(disk, { ...move, moving: true }); // [moving]
  const { writerId } = uniqueHolder(disk, move.holder);
  const own = { branch, epoch, writerId };
  const tail = await findEnd(disk, branch);
  // Another's fence of this epoch will do.
  if (tail === undefined) await fenceBehindDamage(disk, own);
  else if (tail.epoch < epoch) await takeSlot(disk, own, tail, (place) => disk.codec.sealFence(place));
  const highest = await readHighestClaim(disk);
  if (highest.groupEpoch > move.groupEpoch) throw superseded(disk, highest, move);
  const last = (await findEnd(disk, branch, epoch)) ?? (await lastIntact(disk, branch, epoch));
  return { diskId: disk.diskId, branch, epoch, last };
}

/** `readTail`; undefined when the end of the branch is damaged, for that must not keep anybody from a failover. */
async function findEnd(disk: DiskContext, branch: string, below?: number): Promise<Tail | undefined> {
  try {
    return await readTail(disk, branch, below);
  } catch (error) {
    if (isDamage(error)) return undefined;
    throw error;
  }
}

/** The last commit that counts before the damage: everything has to be read from the start. */
async function lastIntact(disk: DiskContext, branch: string, below: number): Promise<Tail> {
  let last = (await disk.checkpoint?.(branch)) ?? branchStart(await readOrigin(disk, branch));
  try {
    for await (const { header } of readBranch(disk, branch)) {
      if (header.epoch >= below) break;
      if (header.branch === branch) last = advance(last, header);
    }
  } catch (error) {
    if (!isDamage(error)) throw error;
  }
  return last;
}

/**
 * A fence that takes the next slot and counts for nobody, since nothing behind the damage does. An older writer that comes by finds a
 * newer epoch in its place; one that does not is stopped by the claim.
 */
async function fenceBehindDamage(
  disk: DiskContext,
  own: { branch: string; epoch: number; writerId: string },
): Promise<void> {
  const slots = await listNumbers(disk, disk.names.journal(own.branch));
  for (let seq = (slots.at(-1) ?? 0) + 1; ; seq++) {
    const sealed = await disk.codec.sealFence({ ...own, seq, chain: NO_COMMIT });
    const found = await createOnce(disk, {
      key: disk.names.commit(own.branch, seq),
      body: sealed.body,
      look: () => findCommit(disk, own.branch, seq),
      isMine: (header) => header.commitHash === sealed.commitHash,
    });
    if (found === undefined || found.epoch >= own.epoch) return;
  }
}

/**
 * A new line of commits from a state of its parent, which stays openable from before the branch exists. Throws POINT_NOT_FOUND when it has expired. The same operation, repeated, must ask for the same; anything else
 * is REFUSED.
 */
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
  await disk.ledger?.beginBranch(branch, request.parent); // [promised first]
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

/** From now on `activeSite` writes `branch`: the end of the move. Every disk of the group must have been fenced under this group epoch. Throws FENCED as `fenceDisk` does. */
export async function claimBranch(disk: DiskContext, move: Move): Promise<DiskClaim> {
  const highest = await readHighestClaim(disk);
  if (highest.groupEpoch < move.groupEpoch)
    throw new RangeError(`Disk "${disk.diskId}" is not fenced under group epoch ${move.groupEpoch}`);
  await readOrigin(disk, move.branch);
  return claimForMove(disk, { ...move, moving: false });
}

/** This move's claim on the disk: found among those of its group epoch, which stand at the end, or made. */
async function claimForMove(disk: DiskContext, move: Move & { readonly moving: boolean }): Promise<DiskClaim> {
  const { operation, groupEpoch, activeSite, branch, moving } = move;
  const { holder } = uniqueHolder(disk, move.holder);
  for (;;) {
    const epochs = await listNumbers(disk, disk.names.epochs);
    for (const epoch of epochs.toReversed()) {
      const claim = await readClaim(disk, epoch);
      if (claim.groupEpoch > groupEpoch) throw superseded(disk, claim, move);
      if (claim.groupEpoch < groupEpoch) break;
      const same = claim.branch === branch && claim.activeSite === activeSite && (claim.moving ?? false) === moving;
      if (same && claim.operation === operation) return claim;
    }
    const wanted = { activeSite, branch, ...(moving && { moving }), groupEpoch, operation, holder };
    const made = await claimNext(disk, epochs.at(-1) ?? 0, wanted);
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
