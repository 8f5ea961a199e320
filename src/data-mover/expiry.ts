/**
 * Expiry of a group's points: what the plan lets go is given up by the ledgers of its disks, then its objects are collected, then the barriers that
 * can be reached no more.
 *
 * Invariants:
 * - while anything speaks against it (`stops`, a move under way), nothing is changed at all;
 * - a point stays if the plan over all points keeps it, or the plan over those of the active line: points on branches that were left do not
 *   take the place of any on the line, and fade by the group's newest cut;
 * - who is promised something meanwhile is seen: bookmarks, exports and branches are in the ledger before they exist;
 * - a barrier goes only when a disk that it names cannot be opened there any more, and then it never can be again. The newest stays in any case.
 *
 * Source: docs/replication.md, "Collection"; docs/decisions/0015 and 0022.
 */
import { isOpenable, type Position } from "#model/collection/ledger.ts";
import type { BarrierRecord } from "#model/format/records.ts";
import { type ExpiryStop, planRetention, type PointPlan } from "#model/retention/plan.ts";
import type { RetentionPolicy } from "#model/retention/policy.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import { listBarriers, readBarrier, type GroupContext } from "./barriers.ts";
import { listNumbers, readHighestClaim } from "./claims.ts";
import { type CollectionMemory, collectionMemory } from "./collection-listing.ts";
import { type CollectDisk, type Collected, collectDisk } from "./collector.ts";
import { contentPosition, readVersion } from "./disk-ledger.ts";
import { readIntact, storeOptions, withRetries } from "./disk-context.ts";
import type { MapAccess } from "./map-access.ts";
import { type Bookmarks, listPoints } from "./points.ts";
import { listFolders } from "./store-groups.ts";

export interface ExpireGroup {
  readonly policy: RetentionPolicy;
  readonly stops: readonly ExpiryStop[];
  /** Whose source writes the group; when the claims say otherwise, it is being moved. */
  readonly activeSite?: string;
  readonly bookmarks: Bookmarks;
  readonly diskIds: readonly string[];
  readonly accessOf: (diskId: string) => MapAccess;
  readonly memory: ExpiryMemory;
  readonly holder: string;
  readonly settings?: Pick<CollectDisk, "graceMs" | "batch" | "paceMs" | "onStep">;
  /** Passes over one disk at most: each condemns one batch. */
  readonly passesMost?: number;
  readonly onDisk?: (diskId: string, collected: Collected) => void;
}

export interface Expired {
  /** Why nothing was changed. */
  readonly stopped: readonly (ExpiryStop | "moving" | "no-points")[];
  readonly pointsKept: number;
  /** Points that the plan lets go; those near their window may stay readable for a while. */
  readonly pointsLeaving: number;
  readonly condemned: number;
  readonly deleted: number;
  readonly deletedBytes: number;
  readonly barriersDeleted: number;
}

/** Kept between the passes over one group. Losing it costs requests. */
export interface ExpiryMemory {
  readonly checked: Map<number, BarrierRecord>;
  readonly disks: Map<string, CollectionMemory>;
}

export function expiryMemory(): ExpiryMemory {
  return { checked: new Map(), disks: new Map() };
}

const NOTHING = { pointsKept: 0, pointsLeaving: 0, condemned: 0, deleted: 0, deletedBytes: 0, barriersDeleted: 0 };

/** Throws what reading and writing the store throws, and what `collectDisk` does. Whatever was done until then stays good. */
export async function expireGroup(group: GroupContext, request: ExpireGroup): Promise<Expired> {
  const { diskIds, stops, policy, memory } = request;
  if (stops.length > 0) return { stopped: stops, ...NOTHING };
  const claims = await Promise.all(diskIds.map((diskId) => readHighestClaim(group.disk(diskId))));
  const branch = claims[0]?.branch;
  const { activeSite = claims[0]?.activeSite } = request;
  const isMoved = claims.some(
    (claim) => claim.moving === true || claim.branch !== branch || claim.activeSite !== activeSite,
  );
  if (branch === undefined || isMoved) return { stopped: ["moving"], ...NOTHING };

  const points = await pointsThere(group, request);
  const line = await listPoints(group, { branch, checked: memory.checked });
  const onLine = new Set(line.map(({ barrier }) => barrier));
  const active = points.filter(({ barrier }) => onLine.has(barrier));
  if (active.length === 0) return { stopped: ["no-points"], ...NOTHING };
  const kept = keptBy(policy, points, active);
  const newestMs = Math.max(...points.map(({ cutAtMs }) => cutAtMs));
  const newestOnLineMs = Math.max(...active.map(({ cutAtMs }) => cutAtMs));
  const isInWindow = ({ cutAtMs, barrier }: RecoveryPoint): boolean =>
    newestMs - cutAtMs <= policy.journalWindowMs ||
    (onLine.has(barrier) && newestOnLineMs - cutAtMs <= policy.journalWindowMs);

  const tally = { ...NOTHING, pointsKept: kept.length, pointsLeaving: points.length - kept.length };
  for (const diskId of diskIds) {
    const access = request.accessOf(diskId);
    const what = await whatStays(access, { kept, isInWindow, active: branch });
    const disk = memory.disks.get(diskId) ?? collectionMemory();
    memory.disks.set(diskId, disk);
    for (let pass = 0; pass < (request.passesMost ?? 10); pass++) {
      const collected = await collectDisk(access, {
        ...request.settings,
        ...what,
        holder: request.holder,
        memory: disk,
      });
      tally.condemned += collected.condemned;
      tally.deleted += collected.deleted;
      tally.deletedBytes += collected.deletedBytes;
      request.onDisk?.(diskId, collected);
      if (collected.condemned === 0 || collected.ended === "superseded") break;
    }
  }
  return { stopped: [], ...tally, barriersDeleted: await deleteBarriers(group, request) };
}

/** Those that can be restored. What was seen in an earlier pass is not read again while it is young; what stays for long is, each time. */
async function pointsThere(group: GroupContext, { memory, policy, bookmarks, ...request }: ExpireGroup) {
  const newestMs = Math.max(0, ...[...memory.checked.values()].map(({ cutAtMs }) => cutAtMs));
  for (const [barrier, { cutAtMs }] of memory.checked)
    if (cutAtMs === newestMs || newestMs - cutAtMs > policy.journalWindowMs) memory.checked.delete(barrier);
  const points = await listPoints(group, { bookmarks, checked: memory.checked });
  const openable = await openableOn(request);
  const there = await Promise.all(points.map((point) => openable(point.members)));
  return points.filter((_, index) => there[index]);
}

/** Whether each of the members can be opened, as the newest versions say. */
async function openableOn({ accessOf, diskIds }: Pick<ExpireGroup, "accessOf" | "diskIds">) {
  const ledgers = new Map<string, Awaited<ReturnType<typeof readVersion>>["ledger"]>();
  for (const diskId of diskIds) ledgers.set(diskId, (await readVersion(accessOf(diskId), { condemned: false })).ledger);
  return async (members: BarrierRecord["members"]): Promise<boolean> => {
    for (const { diskId, branch, seq } of members) {
      const ledger = ledgers.get(diskId);
      if (ledger === undefined) return false;
      const at = await contentPosition(accessOf(diskId).disk, { branch, seq });
      if (at !== undefined && !isOpenable(ledger, at)) return false;
    }
    return true;
  };
}

function keptBy(
  policy: RetentionPolicy,
  points: readonly RecoveryPoint[],
  active: readonly RecoveryPoint[],
): readonly RecoveryPoint[] {
  const stays = new Set(
    [points, active].flatMap((some) =>
      planRetention(some.map(retentionPoint), policy, { stops: [] })
        .points.filter((plan): plan is PointPlan & { readonly keep: true } => plan.keep)
        .map(({ barrier }) => barrier),
    ),
  );
  return points.filter(({ barrier }) => stays.has(barrier));
}

/** A point that was found, as the plan sees it. */
export function retentionPoint({ barrier, cutAtMs, grade, kind, name }: RecoveryPoint) {
  return {
    barrier,
    cutAtMs,
    restorable: true,
    verified: grade === "verified",
    ...(kind === "bookmark" && { bookmark: name ?? "" }),
  };
}

async function whatStays(
  { disk }: MapAccess,
  from: {
    readonly kept: readonly RecoveryPoint[];
    readonly isInWindow: (point: RecoveryPoint) => boolean;
    readonly active: string;
  },
): Promise<Pick<CollectDisk, "kept" | "windowFrom">> {
  const kept: Position[] = [];
  const least = new Map<string, number>();
  for (const point of from.kept) {
    const member = point.members.find(({ diskId }) => diskId === disk.diskId);
    if (member === undefined) continue; // The disk came later.
    const at = await contentPosition(disk, member);
    if (at === undefined) continue;
    kept.push(at);
    if (from.isInWindow(point)) least.set(at.branch, Math.min(at.seq, least.get(at.branch) ?? at.seq));
  }
  const windowFrom: Record<string, number> = Object.fromEntries(least);
  for (const branch of await listFolders(disk, disk.names.branches)) {
    if (branch === from.active || windowFrom[branch] !== undefined) continue;
    // Nobody writes it, and no point of the window is on it: what it holds for others is kept for them. If somebody takes it up again, what
    // comes then lies behind what is its end now.
    windowFrom[branch] = (await listNumbers(disk, disk.names.journal(branch))).at(-1) ?? 0;
  }
  return { kept, windowFrom };
}

async function deleteBarriers(group: GroupContext, request: ExpireGroup): Promise<number> {
  const numbers = await listBarriers(group);
  const openable = await openableOn(request);
  const gone: number[] = [];
  for (const number of numbers.slice(0, -1)) {
    const record = request.memory.checked.get(number) ?? (await readIntact(() => readBarrier(group, number)));
    if (record === undefined) continue; // Damaged: `leeward store check` names it.
    if (!record.members.every(({ diskId }) => request.diskIds.includes(diskId))) continue;
    if (!(await openable(record.members))) gone.push(number);
  }
  for (let at = 0; at < gone.length; at += 100) {
    group.signal?.throwIfAborted();
    const keys = gone.slice(at, at + 100).map((number) => group.names.barrier(number));
    await withRetries(group, () => group.store.delete(keys, storeOptions(group)));
  }
  for (const number of gone) request.memory.checked.delete(number);
  return gone.length;
}
