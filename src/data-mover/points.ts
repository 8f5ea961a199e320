/**
 * Recovery points: the barriers that can really be recovered, and the names that people gave to some of them.
 *
 * A barrier is offered only if every commit that it names is there, is the one it names, and is linked to what comes before it. A
 * bookmark is a self-contained copy of its barrier under a MAC; one that does not hold is reported and not offered, for a
 * damaged name must not keep anyone from the other points. Points of other disks than the group has now (it was protected anew under its name) are
 * left alone and not offered.
 *
 * Source: docs/replication.md, "Barriers and points".
 */
import { Fault, isFault } from "#model/fault.ts";
import { formatPointId, parsePointId } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import {
  decodePoint,
  encodePoint,
  type BarrierMember,
  type BarrierRecord,
  type BranchOrigin,
  type PointRecord,
} from "#model/format/records.ts";
import { type ExpiryStop, planRetention, textOfKeeping } from "#model/retention/plan.ts";
import { DEFAULT_RETENTION, type RetentionPolicy } from "#model/retention/policy.ts";
import type { Log } from "#ports/log.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import { listBarriers, readBarrier, type GroupContext } from "./barriers.ts";
import { branchStart, findCommit, listSlots, readOrigin } from "./branch-reader.ts";
import type { CommitHeader } from "./commit-codec.ts";
import { judge, type Position } from "./counting.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, readIntact, storeOptions, type DiskContext } from "./disk-context.ts";

export interface ListPoints {
  /** Newest first; default all. */
  readonly limit?: number;
  /** Only points on this branch, or on its parents before it left them. */
  readonly branch?: string;
  /** Default: bookmarks are not looked up. */
  readonly bookmarks?: Bookmarks;
  /**
   * Barriers that an earlier call found good, kept by the caller and added to here: they are not read again. Whoever goes on to use
   * a point has it checked once more (`readPoint`).
   */
  readonly checked?: Map<number, BarrierRecord>;
  /** Of the group; default: the default policy, and nothing expires. */
  readonly retention?: { readonly policy: RetentionPolicy; readonly stops: readonly ExpiryStop[] };
}

export interface Bookmarks {
  /** Key of the tenant; see `PointRecord`. */
  readonly mac: Mac;
  readonly log: Log;
}

/** Newest first. `reasonKept` is what the retention plan says of each; as long as something stops expiry, also that. */
export async function listPoints(group: GroupContext, options: ListPoints = {}): Promise<RecoveryPoint[]> {
  const limit = options.limit ?? Number.POSITIVE_INFINITY;
  const named =
    options.bookmarks === undefined ? new Map<number, PointRecord>() : await readBookmarks(group, options.bookmarks);
  const numbers = [...new Set([...(await listBarriers(group)), ...named.keys()])].sort((a, b) => b - a);
  const check = pointCheck(group, options.branch);
  const barrierAt = async (number: number): Promise<BarrierRecord | undefined> => {
    const known = options.checked?.get(number);
    if (known !== undefined) return known;
    const record = named.get(number)?.barrier ?? (await readIntact(() => readBarrier(group, number)));
    if (record === undefined || !(await check.isThere(record))) return undefined;
    options.checked?.set(number, record);
    return record;
  };
  const points: RecoveryPoint[] = [];
  while (numbers.length > 0 && points.length < limit) {
    const batch = numbers.splice(0, Math.min(AT_ONCE, limit - points.length));
    const found = await Promise.all(
      batch.map(async (number) => {
        const record = await barrierAt(number);
        return record !== undefined && (await check.isOnLine(record)) ? pointOf(record, named.get(number)) : undefined;
      }),
    );
    points.push(...found.filter((point) => point !== undefined));
  }
  return withReasons(points, options.retention ?? NOT_ENABLED);
}

/** The plan over a list that is cut off at its old end says the same of what is in it, so `limit` changes no reason. */
function withReasons(
  points: readonly RecoveryPoint[],
  { policy, stops }: NonNullable<ListPoints["retention"]>,
): RecoveryPoint[] {
  const facts = points.map(({ barrier, cutAtMs, grade, kind, name }) => ({
    barrier,
    cutAtMs,
    restorable: true,
    verified: grade === "verified",
    ...(kind === "bookmark" && { bookmark: name ?? "" }),
  }));
  const { points: planned } = planRetention(facts, policy, { stops });
  const reasons = new Map(planned.map((plan) => [plan.barrier, plan.keep ? textOfKeeping(plan.reasons) : plan.text]));
  return points.map((point) => ({ ...point, reasonKept: reasons.get(point.barrier)! }));
}

const AT_ONCE = 16;
const NOT_ENABLED: NonNullable<ListPoints["retention"]> = { policy: DEFAULT_RETENTION, stops: ["not-enabled"] };

/** The point at `barrier`. Throws POINT_NOT_FOUND when there is none, or when a commit of it is missing or does not count. */
export async function readPoint(group: GroupContext, barrier: number, bookmarks?: Bookmarks): Promise<RecoveryPoint> {
  const named = bookmarks === undefined ? undefined : (await readBookmarks(group, bookmarks)).get(barrier);
  const record = named?.barrier ?? (await readBarrier(group, barrier));
  if (record !== undefined && (await pointCheck(group).isThere(record))) return pointOf(record, named);
  throw new Fault("POINT_NOT_FOUND", `Group "${group.groupId}" has no point at barrier ${barrier}`, {
    details: { groupId: group.groupId, barrier },
    hint: "List the points of the group: `leeward point list`.",
  });
}

/** Keep a point under a name. Repeated, it finds what it made; another name for the point, or another point for the name, is REFUSED. */
export async function bookmark(
  group: GroupContext,
  request: { readonly operation: string; readonly barrier: number; readonly name: string },
  bookmarks: Bookmarks,
): Promise<RecoveryPoint> {
  const { operation, barrier, name } = request;
  const point = await readPoint(group, barrier);
  for (const other of (await readBookmarks(group, bookmarks)).values()) {
    if (other.name === name && other.barrier.barrier !== barrier) throw nameTaken(group, name, other);
  }
  await pinPoint(group, { id: `bookmark/${point.id}`, holder: "" }, point.members);
  const record: PointRecord = {
    barrier: await readBarrier(group, barrier).then((found) => found!), // `readPoint` has just seen it, and barriers do not change.
    kind: "bookmark",
    name,
    reasonKept: `bookmark "${name}"`,
    operation,
    createdAtMs: group.clock.now(),
  };
  const key = group.names.point(point.cutAtMs, barrier);
  const taken = await createOnce<PointRecord>(group, {
    key,
    body: encodePoint(record, bookmarks.mac),
    look: async () => {
      const data = await readIfThere(group, key);
      return data && decodePoint(data, key, bookmarks.mac);
    },
    isMine: (found) => found.name === name,
  });
  if (taken !== undefined) throw nameTaken(group, name, taken);
  return pointOf(record.barrier, record);
}

/**
 * Whatever expires from now on, the point stays, until `releasePoint`. Throws POINT_NOT_FOUND when one of its disks has it no more; what was pinned of
 * it then stays pinned under this id.
 */
export async function pinPoint(
  group: GroupContext,
  pin: { readonly id: string; readonly holder: string },
  members: RecoveryPoint["members"],
): Promise<void> {
  const seen = members.filter(({ diskId }) => group.unseen?.has(diskId) !== true);
  await Promise.all(seen.map((member) => group.disk(member.diskId).ledger?.pin(pin, member)));
}

export async function releasePoint(group: GroupContext, id: string, diskIds: readonly string[]): Promise<void> {
  await Promise.all(diskIds.map((diskId) => group.disk(diskId).ledger?.release(id)));
}

async function readBookmarks(group: GroupContext, { mac, log }: Bookmarks): Promise<Map<number, PointRecord>> {
  const found = new Map<number, PointRecord>();
  for await (const { key } of group.store.list(group.names.points, storeOptions(group))) {
    if (parsePointId(key.slice(group.names.points.length)) === undefined) continue; // Not ours.
    const data = await readIfThere(group, key);
    if (data === undefined) continue; // Expired meanwhile.
    try {
      const record = decodePoint(data, key, mac);
      found.set(record.barrier.barrier, record);
    } catch (error) {
      if (!isFault(error)) throw error;
      log.error("A kept point is damaged and is not offered", { key, code: error.code, fault: error.message });
    }
  }
  return found;
}

interface PointCheck {
  /** Every commit that it names is there, and counts. */
  readonly isThere: (record: BarrierRecord) => Promise<boolean>;
  /** It belongs to the history of the branch in question. */
  readonly isOnLine: (record: BarrierRecord) => Promise<boolean>;
}

/** A check of barriers that remembers what it has read: neighbours share their commits. */
function pointCheck(group: GroupContext, branch?: string): PointCheck {
  const lines = new Map<string, Promise<ReadonlyMap<string, number>>>();
  const commits = new Map<string, Promise<CommitHeader | undefined>>();
  const starts = new Map<string, Promise<BranchBegin>>();
  const ends = new Map<string, Promise<number>>();
  const remember = <Value>(
    memory: Map<string, Promise<Value>>,
    key: string,
    make: () => Promise<Value>,
  ): Promise<Value> => {
    const made = memory.get(key) ?? make();
    memory.set(key, made);
    return made;
  };
  const commitAt = (disk: DiskContext, member: BarrierMember, seq: number): Promise<CommitHeader | undefined> =>
    remember(commits, `${member.diskId}/${member.branch}/${seq}`, () =>
      readIntact(() => findCommit(disk, member.branch, seq)),
    );
  const startOf = (disk: DiskContext, branch: string): Promise<BranchBegin> =>
    remember(starts, `${disk.diskId}/${branch}`, async () => {
      const checkpoint = await disk.checkpoint?.(branch);
      if (checkpoint !== undefined) return { position: checkpoint, parent: undefined };
      const origin = await readOrigin(disk, branch);
      return { position: branchStart(origin), parent: origin.parent };
    });
  /** Below the floor of its branch there are anchors, and nothing else. */
  const isKept = async (disk: DiskContext, { branch, seq, ...commit }: Place): Promise<boolean> => {
    if (seq === 0) {
      const { parent } = await readOrigin(disk, branch);
      return parent === undefined || (await isKeptOrWhole(disk, parent));
    }
    const anchor = await disk.ledger?.anchorAt({ branch, seq });
    return anchor?.commitHash === commit.commitHash && (commit.epoch === undefined || anchor.epoch === commit.epoch);
  };
  const isKeptOrWhole = async (disk: DiskContext, place: Place): Promise<boolean> => {
    const { seq } = (await startOf(disk, place.branch)).position;
    return place.seq < seq ? isKept(disk, place) : isWhole(disk, place.branch, place.seq);
  };
  /** No slot is missing up to `seq`, nor in the parents up to where the branch left them; or they are kept otherwise. */
  const isWhole = async (disk: DiskContext, branch: string, seq: number): Promise<boolean> => {
    const { position, parent } = await startOf(disk, branch);
    const end = await remember(ends, `${disk.diskId}/${branch}`, () => endOfRow(disk, branch, position.seq));
    return seq <= end && (parent === undefined || (await isKeptOrWhole(disk, parent)));
  };

  const isThere = async (member: BarrierMember): Promise<boolean> => {
    if (group.unseen?.has(member.diskId)) return true;
    if (!group.isMember(member.diskId)) return false;
    const disk = group.disk(member.diskId);
    const start = (await startOf(disk, member.branch)).position;
    if (member.seq < start.seq || (member.seq === 0 && start.seq > 0)) return isKept(disk, member);
    if (!(await isWhole(disk, member.branch, member.seq))) return false;
    if (member.seq === start.seq) return member.commitHash === start.commitHash;
    const commit = await commitAt(disk, member, member.seq);
    if (commit === undefined || commit.kind === "fence") return false;
    if (commit.commitHash !== member.commitHash || commit.epoch !== member.epoch) return false;
    // Linked to the one before it, stale slots left out.
    for (let seq = member.seq - 1; seq >= start.seq; seq--) {
      const before = seq === start.seq ? start : await commitAt(disk, member, seq);
      if (before === undefined) return false;
      if (judge(before, commit) === "counts") return true;
    }
    return false;
  };
  /** A branch whose record is damaged or missing keeps nobody from the points of the others. */
  const isThereIntact = async (member: BarrierMember): Promise<boolean> => {
    try {
      return (await readIntact(() => isThere(member))) ?? false;
    } catch (error) {
      if (isFault(error, "NOT_FOUND")) return false;
      throw error;
    }
  };
  const isOnLine = async (member: BarrierMember): Promise<boolean> => {
    if (branch === undefined || group.unseen?.has(member.diskId)) return true;
    const line = await remember(lines, member.diskId, () => lineOf(group.disk(member.diskId), branch));
    return member.seq <= (line.get(member.branch) ?? -1);
  };
  const every =
    (check: (member: BarrierMember) => Promise<boolean>) =>
    async (record: BarrierRecord): Promise<boolean> =>
      (await Promise.all(record.members.map(check))).every(Boolean);
  /** Commits may have been collected since we read how far that has gone; then what we saw means nothing. */
  const isOutdated = async (): Promise<boolean> => {
    for (const [name, start] of starts) {
      const [diskId, branchName] = name.split("/") as [string, string];
      const checkpoint = await group.disk(diskId).checkpoint?.(branchName);
      if (checkpoint !== undefined && checkpoint.seq !== (await start).position.seq) return true;
    }
    return false;
  };
  return {
    isOnLine: every(isOnLine),
    async isThere(record) {
      for (;;) {
        if (await every(isThereIntact)(record)) return true;
        if (!(await isOutdated())) return false;
        for (const memory of [commits, starts, ends]) memory.clear();
      }
    },
  };
}

interface Place {
  readonly branch: string;
  readonly seq: number;
  readonly commitHash: string;
  /** Left out by who does not know it. */
  readonly epoch?: number;
}

interface BranchBegin {
  readonly position: Position;
  /** Undefined when nothing before `position` has to be read. */
  readonly parent: BranchOrigin["parent"];
}

/** The last slot behind `from` before the first hole. */
async function endOfRow(disk: DiskContext, branch: string, from: number): Promise<number> {
  let end = from;
  try {
    for await (const seq of listSlots(disk, branch, from)) end = seq;
  } catch (error) {
    if (!isFault(error, "CHAIN_BROKEN")) throw error;
  }
  return end;
}

/** The branches that a branch's history runs through, each with the last seq of it that belongs to it. */
async function lineOf(disk: DiskContext, branch: string): Promise<ReadonlyMap<string, number>> {
  const line = new Map([[branch, Number.POSITIVE_INFINITY]]);
  for (
    let { parent } = await readOrigin(disk, branch);
    parent !== undefined;
    { parent } = await readOrigin(disk, parent.branch)
  ) {
    line.set(parent.branch, parent.seq);
  }
  return line;
}

function pointOf(record: BarrierRecord, named: PointRecord | undefined): RecoveryPoint {
  const { barrier, groupId, cutAtMs, consistency, members } = record;
  return {
    id: formatPointId(cutAtMs, barrier),
    groupId,
    barrier,
    cutAtMs,
    kind: named?.kind === "bookmark" ? "bookmark" : "recovery",
    ...(named === undefined ? {} : { name: named.name }),
    consistency,
    grade: "committed",
    reasonKept: named?.reasonKept ?? "journal window",
    members,
  };
}

function nameTaken(group: GroupContext, name: string, other: PointRecord): Fault {
  return new Fault(
    "REFUSED",
    `Point ${other.barrier.barrier} of group "${group.groupId}" is called "${other.name}"; "${name}" needs a point and a name of its own`,
    {
      details: { groupId: group.groupId, barrier: other.barrier.barrier, name: other.name },
      hint: "Choose another name, or another point.",
    },
  );
}
