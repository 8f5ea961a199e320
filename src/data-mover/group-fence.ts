/**
 * Taking a whole group: one claim for the group, then every disk is fenced, then what was durable everywhere becomes a point.
 *
 * The order is the safety: a point is chosen only after every disk is fenced, or a barrier acknowledged meanwhile would be lost; and nobody
 * may write any disk before that, or the histories of the disks would end at different cuts.
 * Every step is idempotent by the operation, so whoever finds it half done repeats it from the top.
 *
 * Source: docs/replication.md, "Moves".
 */
import { Fault } from "#model/fault.ts";
import { decodeGroupClaim, encodeGroupClaim, type GroupClaim } from "#model/format/records.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import { completeBarriers, type GroupContext } from "./barriers.ts";
import { listNumbers, readHighestClaim, uniqueHolder } from "./claims.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, storeOptions, withRetries } from "./disk-context.ts";
import { claimBranch, fenceDisk, type FencedDisk } from "./disk-moves.ts";
import { listPoints } from "./points.ts";

export interface FenceGroup {
  readonly operation: string;
  readonly activeSite: string;
  /** Members; when the operation is resumed, those of its claim are used. */
  readonly disks: readonly string[];
  readonly holder: string;
  /**
   * Newest group epoch that whoever gave the order knew. If another operation has claimed a newer one, this order is out of date and FENCED:
   * without it, a late attempt of an old order could overtake a newer one.
   */
  readonly knownEpoch?: number;
  /** A new claim is above this too: numbers that the group's sources have seen at another store must not come again. */
  readonly atLeastEpoch?: number;
  /**
   * Which branch the active site's writers may open once every disk is fenced; default: the one that was ended (to go on there, after
   * an undo). `false`: none, until `claimBranch`.
   */
  readonly resume?: string | false;
}

export interface FencedGroup {
  readonly groupEpoch: number;
  /** The branch that was ended for its writers. */
  readonly branch: string;
  readonly disks: readonly FencedDisk[];
  /** Newest complete point on that branch or on what it came from. */
  readonly newestPoint: RecoveryPoint | undefined;
}

/** Throws FENCED when a newer move of the group has begun; NOT_FOUND when a disk is not in the store. */
export async function fenceGroup(group: GroupContext, request: FenceGroup): Promise<FencedGroup> {
  const claim = await claimGroupEpoch(group, request);
  const { groupEpoch, branch, operation, activeSite } = claim;
  const move = { operation, groupEpoch, activeSite, branch, holder: request.holder };
  const disks = await Promise.all(claim.disks.map((diskId) => fenceDisk(group.disk(diskId), move))); // [fence first]
  await completeBarriers(group, { branch, groupEpoch, disks }); // [complete barriers]
  const [newestPoint] = await listPoints(group, { limit: 1, branch });
  const resume = request.resume ?? branch;
  if (resume !== false) {
    await Promise.all(claim.disks.map((diskId) => claimBranch(group.disk(diskId), { ...move, branch: resume })));
  }
  return { groupEpoch, branch, disks, newestPoint };
}

/**
 * The group's next epoch, for `operation`; the same one when repeated. `branch` of a new claim is the one the first disk is on now
 * (`root` when it has none yet): the branch to be ended.
 */
export async function claimGroupEpoch(
  group: GroupContext,
  request: FenceGroup & { readonly branch?: string },
): Promise<GroupClaim> {
  const { operation, activeSite, disks } = request;
  const { holder } = uniqueHolder(group, request.holder);
  for (;;) {
    const epochs = await listNumbers(group, group.names.epochs);
    for (const epoch of epochs.toReversed()) {
      const claim = await readGroupClaim(group, epoch);
      if (claim.operation === operation) return claim;
    }
    const highest = epochs.at(-1) ?? 0;
    if (highest > (request.knownEpoch ?? highest)) throw outOfDate(group, request, highest); // [known epoch]
    const groupEpoch = Math.max(highest, request.atLeastEpoch ?? 0) + 1;
    const branch = request.branch ?? (await readHighestClaim(group.disk(disks[0]!))).branch;
    const claim: GroupClaim = {
      groupEpoch,
      activeSite,
      branch,
      disks,
      operation,
      holder,
      claimedAtMs: group.clock.now(),
    };
    const key = group.names.epoch(groupEpoch);
    const taken = await createOnce<GroupClaim>(group, {
      key,
      body: encodeGroupClaim(claim),
      look: async () => {
        const data = await readIfThere(group, key);
        return data && decodeGroupClaim(data, key);
      },
      isMine: (found) => found.operation === operation,
    });
    if (taken === undefined) return readGroupClaim(group, groupEpoch);
  }
}

async function readGroupClaim(group: GroupContext, groupEpoch: number): Promise<GroupClaim> {
  const key = group.names.epoch(groupEpoch);
  return decodeGroupClaim(await withRetries(group, () => group.store.get(key, storeOptions(group))), key);
}

function outOfDate(group: GroupContext, { operation, knownEpoch }: FenceGroup, highest: number): Fault {
  return new Fault(
    "FENCED",
    `Operation "${operation}" was ordered at epoch ${knownEpoch} of group "${group.groupId}", which is at ${highest} now`,
    {
      details: { reason: "moved", groupId: group.groupId, epoch: knownEpoch ?? 0, newerEpoch: highest },
      hint: "Another operation has moved the group meanwhile: look at its state, and give the order again if it is still wanted.",
    },
  );
}
