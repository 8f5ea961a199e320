/**
 * What keeps points of this site's groups, and what lets them go.
 *
 * Invariants:
 * - who reads a point through us has it pinned before anything is opened, and until its overlay is cleared. Pins of exports that are gone, or that
 *   were never opened because we died, are released by the next pass; exports of an earlier version are pinned by it;
 * - points expire only of a group whose record in the catalog has a retention policy, that is protected and written by its source, and whose source
 *   is connected and was equal a short while ago. Otherwise nothing changes, and the answer says why;
 * - one pass at a time; a fence ends it. A pass that ran out of its time goes on with the next.
 */
import { isFault, type FaultJson } from "#model/fault.ts";
import type { Mac } from "#model/format/mac-record.ts";
import type { ExpiryStop } from "#model/retention/plan.ts";
import { HOUR_MS, retentionOf, type RetentionPolicy } from "#model/retention/policy.ts";
import type { Log } from "#ports/log.ts";
import type { GroupExpiry } from "#ports/master-target.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { GroupContext } from "../data-mover/barriers.ts";
import { readCatalogGroup } from "../data-mover/catalog.ts";
import { readVersion } from "../data-mover/disk-ledger.ts";
import { expireGroup, type ExpireGroup, type ExpiryMemory, expiryMemory } from "../data-mover/expiry.ts";
import { mapAccess, type MapAccess } from "../data-mover/map-access.ts";
import type { MoverStore } from "../data-mover/mover-store.ts";
import { type Bookmarks, pinPoint, releasePoint } from "../data-mover/points.ts";
import type { ExportRecord } from "./export-record.ts";
import type { GroupRegister, RegisteredGroup } from "./group-register.ts";
import type { ProgressBoard } from "./progress-board.ts";

export interface RetentionKeeper {
  /** Before an export of the point is made; `made` must be called when its record is there, or will never be. Throws POINT_NOT_FOUND when the point has expired. */
  pin(operationId: string, point: RecoveryPoint): Promise<{ readonly made: () => void }>;
  /** The export is closed, and will not be opened again if its overlay is cleared. What fails is done by the next pass. */
  closed(record: Pick<ExportRecord, "operationId" | "groupId">): Promise<void>;
  /** Expire and collect, group after group, for at most `budgetMs`. Never throws what the store throws: it stands in the answer. */
  expire(options: { readonly budgetMs: number }): Promise<readonly GroupExpiry[]>;
  /** Whoever moves the group does not wait for a pass. */
  interrupt(groupId: string): void;
  /** What the group's record says, and what stops its points from expiring now. */
  standing(group: RegisteredGroup): Promise<Standing>;
}

export interface Standing {
  readonly policy: RetentionPolicy | undefined;
  readonly stops: readonly ExpiryStop[];
}

export interface RetentionKeeperDeps {
  readonly site: string;
  /** The same after a restart. */
  readonly name: string;
  readonly store: MoverStore;
  readonly register: GroupRegister;
  readonly progress: ProgressBoard;
  readonly openGroup: (group: Pick<RegisteredGroup, "groupId" | "disks">) => Promise<GroupContext>;
  readonly mac: () => Promise<Mac>;
  readonly bookmarks: () => Promise<Bookmarks>;
  /** Exports that are open, or may be opened again. */
  readonly exports: () => readonly ExportRecord[];
  readonly log: Log;
  /** For tests. */
  readonly settings?: ExpireGroup["settings"];
}

/** A source that was equal to its replica so long ago counts as lost. */
const CURRENT_MS = HOUR_MS;

export function retentionKeeper(deps: RetentionKeeperDeps): RetentionKeeper {
  const { site, store, register, log } = deps;
  const { clock } = store.context;
  const holder = `${site}/${deps.name}`;
  const memories = new Map<string, ExpiryMemory>();
  const making = new Set<string>();
  let running: Promise<readonly GroupExpiry[]> | undefined;
  let current: { readonly groupId: string; readonly stop: AbortController } | undefined;

  const standing = async (group: RegisteredGroup): Promise<Standing> => {
    const { entry, damaged } = await readCatalogGroup(store.context, group.groupId, await deps.mac());
    const policy = retentionOf(entry?.record["policy"]);
    if (entry === undefined || policy === undefined) return { policy, stops: ["not-enabled"] };
    const { record } = entry;
    const stops = new Set<ExpiryStop>();
    // What a newer entry says that cannot be read, nobody knows.
    if (damaged.length > 0) stops.add("failover-uncommitted");
    const isHere = record["targetSite"] === site && record["sourceSite"] === group.sourceSite;
    if (record["phase"] !== "protected" || !isHere || group.activeSite !== group.sourceSite)
      stops.add("failover-uncommitted");
    const seen = deps.progress.get(group.groupId);
    const isCurrent = seen?.connected === true && clock.now() - seen.currentAsOfMs < CURRENT_MS;
    if (!isCurrent || seen.state !== "live") stops.add("source-lost");
    return { policy, stops: [...stops] };
  };

  const accessesOf = async (group: RegisteredGroup, signal: AbortSignal): Promise<(diskId: string) => MapAccess> => {
    const accesses = new Map<string, MapAccess>();
    for (const disk of group.disks) {
      const access = mapAccess(await store.openDisk(disk), log);
      accesses.set(disk.diskId, { ...access, disk: { ...access.disk, signal } });
    }
    return (diskId) => accesses.get(diskId)!;
  };

  /** Pins as the exports stand. */
  const settlePins = async (
    context: GroupContext,
    group: RegisteredGroup,
    accessOf: (diskId: string) => MapAccess,
  ): Promise<void> => {
    const needed = new Map(
      deps.exports().flatMap((one) => (one.groupId === group.groupId ? [[pinOf(one.operationId), one] as const] : [])),
    );
    for (const [id, { disks }] of needed)
      await pinPoint(
        context,
        { id, holder },
        disks.map(({ member }) => member),
      );
    for (const { diskId } of group.disks) {
      const { record } = await readVersion(accessOf(diskId), { condemned: false });
      const mine = record.pins.filter((pin) => pin.holder === holder).map(({ id }) => id);
      for (const id of new Set(mine)) {
        if (needed.has(id) || [...making].some((operationId) => pinOf(operationId) === id)) continue;
        await context.disk(diskId).ledger?.release(id);
      }
    }
  };

  const expireOne = async (group: RegisteredGroup, signal: AbortSignal): Promise<GroupExpiry> => {
    const { groupId } = group;
    const { policy, stops } = await standing(group);
    if (policy === undefined || stops.length > 0) return { groupId, stopped: stops, ...NOTHING };
    const context = { ...(await deps.openGroup(group)), signal };
    const accessOf = await accessesOf(group, signal);
    await settlePins(context, group, accessOf);
    const memory = memories.get(groupId) ?? expiryMemory();
    memories.set(groupId, memory);
    const expired = await expireGroup(context, {
      policy,
      stops,
      activeSite: group.sourceSite,
      bookmarks: await deps.bookmarks(),
      diskIds: group.disks.map(({ diskId }) => diskId),
      accessOf,
      memory,
      holder,
      ...(deps.settings !== undefined && { settings: deps.settings }),
      onDisk: (diskId, collected) => log.info("A disk was collected", { group: groupId, disk: diskId, ...collected }),
    });
    return { groupId, ...expired };
  };

  const expireAll = async (budgetMs: number): Promise<readonly GroupExpiry[]> => {
    const until = clock.monotonic() + budgetMs;
    const answers: GroupExpiry[] = [];
    for (const group of register.list()) {
      const leftMs = until - clock.monotonic();
      if (group.released || leftMs <= 0) continue;
      const stop = new AbortController();
      current = { groupId: group.groupId, stop };
      const signal = AbortSignal.any([stop.signal, AbortSignal.timeout(Math.ceil(leftMs))]);
      try {
        answers.push(await expireOne(group, signal));
      } catch (error) {
        if (!signal.aborted && !isFault(error)) throw error;
        const fault: FaultJson | undefined = isFault(error) ? error.toJSON() : undefined;
        if (fault !== undefined) log.warn("Points of a group could not be expired", { group: group.groupId, fault });
        answers.push({
          groupId: group.groupId,
          stopped: [],
          ...NOTHING,
          ...(signal.aborted ? { interrupted: true } : {}),
          ...(fault === undefined ? {} : { fault }),
        });
      } finally {
        current = undefined;
      }
    }
    return answers;
  };

  return {
    standing,
    async pin(operationId, point) {
      making.add(operationId);
      try {
        const group = register.get(point.groupId);
        await pinPoint(await deps.openGroup(group), { id: pinOf(operationId), holder }, point.members);
      } catch (error) {
        making.delete(operationId);
        throw error;
      }
      return { made: () => void making.delete(operationId) };
    },
    async closed({ operationId, groupId }) {
      const group = register.find(groupId);
      if (group === undefined || deps.exports().some((one) => one.operationId === operationId)) return;
      try {
        const diskIds = group.disks.map(({ diskId }) => diskId);
        await releasePoint(await deps.openGroup(group), pinOf(operationId), diskIds);
      } catch (error) {
        if (!isFault(error)) throw error;
        log.warn("The pin of an export is released later", { operationId, fault: error.toJSON() });
      }
    },
    expire({ budgetMs }) {
      running ??= expireAll(budgetMs).finally(() => (running = undefined));
      return running;
    },
    interrupt(groupId) {
      if (current?.groupId === groupId) current.stop.abort();
    },
  };
}

const NOTHING = { pointsKept: 0, pointsLeaving: 0, condemned: 0, deleted: 0, deletedBytes: 0, barriersDeleted: 0 };

function pinOf(operationId: string): string {
  return `export/${operationId}`;
}
