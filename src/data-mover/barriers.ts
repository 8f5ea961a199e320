/**
 * Barriers: one cut over all disks of a group, as one create-only object that names the commit of every member.
 *
 * Invariants:
 * - a barrier is written only when every commit that it names is durable and counts;
 * - a disk that was idle takes part by its last commit *with data* before the cut (or the start of its branch, seq 0), so whoever
 *   writes the barrier, and however many fences were placed meanwhile, writes the same;
 * - a number is used once in a group, over all branches: a source that learns of a higher one goes on above it.
 *
 * Source: docs/replication.md, "Barriers and points".
 */
import { Fault } from "#model/fault.ts";
import { damagedRecord } from "#model/format/json-record.ts";
import { groupNames, type GroupNames } from "#model/format/object-names.ts";
import { decodeBarrier, encodeBarrier, type BarrierMember, type BarrierRecord } from "#model/format/records.ts";
import { branchStart, readOrigin, walkBack } from "./branch-reader.ts";
import { listNumbers } from "./claims.ts";
import type { CommitHeader } from "./commit-codec.ts";
import type { Position } from "./counting.ts";
import { createOnce } from "./create-once.ts";
import { isDamage, readIfThere, readIntact, type DiskContext, type StoreContext } from "./disk-context.ts";
import type { FencedDisk } from "./disk-moves.ts";

/** One group's part of a store. */
export interface GroupContext extends StoreContext {
  readonly groupId: string;
  readonly names: GroupNames;
  /** The same object for the same disk. */
  readonly disk: (diskId: string) => DiskContext;
  /** Whether the disk belongs to the group now. One of an earlier protection under the same name does not: its points are not offered. */
  readonly isMember: (diskId: string) => boolean;
  /** Disks that cannot be looked at here (their key is missing): points are judged by the others. Default none. */
  readonly unseen?: ReadonlySet<string>;
}

export function groupContext(
  store: StoreContext,
  groupId: string,
  disk: GroupContext["disk"],
  isMember: GroupContext["isMember"] = () => true,
): GroupContext {
  return { ...store, groupId, names: groupNames(store.root, groupId), disk, isMember };
}

/**
 * Write a barrier, or find that it is there. All its commits must have been acknowledged.
 * Throws REFUSED when the number stands for other commits.
 */
export async function writeBarrier(group: GroupContext, record: BarrierRecord): Promise<void> {
  const key = group.names.barrier(record.barrier);
  const taken = await createOnce<BarrierRecord>(group, {
    key,
    body: encodeBarrier(record),
    look: () => readBarrier(group, record.barrier),
    isMine: (found) => sameBarrier(found, record),
  });
  if (taken !== undefined) {
    throw new Fault("REFUSED", `Barrier ${record.barrier} of group "${group.groupId}" is taken by another cut`, {
      details: { groupId: group.groupId, barrier: record.barrier },
      hint: "The source must number its cuts above the store's highest barrier; open its stream again.",
    });
  }
}

/** Undefined when there is none. Throws OBJECT_CORRUPT, also for the record of another barrier under this name. */
export async function readBarrier(group: GroupContext, barrier: number): Promise<BarrierRecord | undefined> {
  const key = group.names.barrier(barrier);
  const data = await readIfThere(group, key);
  if (data === undefined) return undefined;
  const record = decodeBarrier(data, key);
  if (record.barrier === barrier && record.groupId === group.groupId) return record;
  throw damagedRecord(key, `it is barrier ${record.barrier} of group "${record.groupId}"`);
}

/** Numbers of all barriers, in order. */
export function listBarriers(group: GroupContext): Promise<number[]> {
  return listNumbers(group, group.names.barriers);
}

/** What a barrier says of a disk at `position`. */
export function barrierMember(diskId: string, branch: string, { epoch, seq, commitHash }: Position): BarrierMember {
  return { diskId, branch, epoch, seq, commitHash };
}

/** The same cut: its time may have been read from another disk's commit, and whoever completed it has a later group epoch. */
function sameBarrier(a: BarrierRecord, b: BarrierRecord): boolean {
  const text = ({ barrier, groupId, consistency, members }: BarrierRecord): string =>
    JSON.stringify([
      barrier,
      groupId,
      consistency,
      members
        .map((member) => [member.diskId, member.branch, member.epoch, member.seq, member.commitHash])
        .sort(([x], [y]) => (x! < y! ? -1 : 1)),
    ]);
  return text(a) === text(b);
}

/**
 * Write the barriers of a fenced branch whose commits are all there, but whose writer did not come to write them.
 * Only those above the newest that is there are looked for. Idempotent; changes nothing else.
 */
export async function completeBarriers(
  group: GroupContext,
  request: { readonly branch: string; readonly groupEpoch: number; readonly disks: readonly FencedDisk[] },
): Promise<void> {
  const { branch, groupEpoch, disks } = request;
  const newestCycle = Math.max(0, ...disks.map((fenced) => fenced.last.data.cycle));
  const known = await newestOnBranch(group, branch, newestCycle);
  const histories = await Promise.all(
    disks.map((fenced) => commitsSince(group.disk(fenced.diskId), fenced, known)),
  ).catch((error: unknown) => {
    if (isDamage(error)) return undefined;
    throw error;
  });
  if (histories === undefined) return; // What is behind damage does not count, and the points before it have their barriers.

  const cycles = new Set(
    histories.flatMap(({ commits }) => commits.filter((commit) => commit.point).map((commit) => commit.cycle)),
  );
  const numbers = new Set(await listBarriers(group));
  for (const cycle of [...cycles].filter((number) => number > known).sort((a, b) => a - b)) {
    const own = histories.flatMap(({ commits }) => commits.find((commit) => commit.cycle === cycle) ?? []);
    if (own.length < Math.max(...own.map((commit) => commit.cycleDisks ?? disks.length))) continue; // [every member]
    const members = histories.map(({ diskId, commits, before }) =>
      barrierMember(diskId, branch, commits.find((commit) => commit.cycle <= cycle) ?? before),
    );
    const cutAtMs = Math.max(...own.map((commit) => commit.cutAtMs));
    const { consistency } = own[0]!;
    if (numbers.has(cycle)) continue; // Another branch has used the number, or it is damaged.
    await writeBarrier(group, { barrier: cycle, groupId: group.groupId, groupEpoch, cutAtMs, consistency, members });
  }
}

/** The newest barrier up to `most` that stands on `branch`; 0 when there is none. */
async function newestOnBranch(group: GroupContext, branch: string, most: number): Promise<number> {
  for (const barrier of (await listBarriers(group)).toReversed()) {
    if (barrier > most) continue;
    const record = await readIntact(() => readBarrier(group, barrier));
    if (record?.members.some((member) => member.branch === branch)) return barrier;
  }
  return 0;
}

/** Commits with data above cycle `known`, newest first, and the position before them that a barrier would name. */
async function commitsSince(
  disk: DiskContext,
  fenced: FencedDisk,
  known: number,
): Promise<{ diskId: string; commits: CommitHeader[]; before: Position }> {
  const { diskId, branch, last } = fenced;
  const commits: CommitHeader[] = [];
  if (last.data.seq > 0) {
    for await (const header of walkBack(disk, branch, last.data)) {
      if (header.kind === "fence") continue;
      if (header.cycle <= known) return { diskId, commits, before: header };
      commits.push(header);
    }
  }
  const checkpoint = await disk.checkpoint?.(branch);
  return { diskId, commits, before: checkpoint?.data ?? branchStart(await readOrigin(disk, branch)).data };
}

/** Whether two barriers name the same state of every member. */
export function sameMembers(a: BarrierRecord["members"], b: BarrierRecord["members"]): boolean {
  const text = (members: BarrierRecord["members"]): string =>
    JSON.stringify(
      members.map((member) => [member.diskId, member.branch, member.seq, member.commitHash].join("/")).sort(),
    );
  return text(a) === text(b);
}
