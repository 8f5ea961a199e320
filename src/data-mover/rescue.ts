/**
 * A store opened by somebody who has nothing but the bucket and the keys: no configuration, no record of which groups there are.
 *
 * Invariants:
 * - nothing is written to the store, and no key is made;
 * - one disk's missing or wrong key, and one damaged object, close only what depends on them.
 */
import { createHmac, createSecretKey } from "node:crypto";
import { Fault, isFault } from "#model/fault.ts";
import { parsePointId } from "#model/format/object-names.ts";
import { namesOnePoint, selectPoint } from "#model/point-selector.ts";
import type { Log } from "#ports/log.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { GroupContext } from "./barriers.ts";
import type { StoreContext } from "./disk-context.ts";
import { openMoverStore, type DiskKeys, type MoverStore } from "./mover-store.ts";
import { listPoints, readPoint, type Bookmarks } from "./points.ts";
import { deriveMacKey } from "./sealing.ts";
import { findBranches, findGroups, newestClaim, type FoundBranch, type FoundGroup } from "./store-groups.ts";
import { identifyStore } from "./store-identity.ts";

export interface Rescue {
  readonly storeId: string;
  /** What is wrong with the store's own record, if anything. */
  readonly storeFault: Fault | undefined;
  readonly store: MoverStore;
  groups(): Promise<readonly FoundGroup[]>;
  /** By its id, or by its name if only one has it. Throws NOT_FOUND. */
  group(name: string): Promise<RescuedGroup>;
  open(group: FoundGroup): Promise<RescuedGroup>;
}

export interface RescuedGroup {
  readonly found: FoundGroup;
  /** Disks that cannot be opened here, and why. The others of a point can be. */
  readonly closed: ReadonlyMap<string, Fault>;
  /** Where the newest claim says that the group goes on; undefined when no claim can be read. */
  readonly activeSite: string | undefined;
  readonly activeBranch: string | undefined;
  branches(): Promise<readonly { readonly diskId: string; readonly branches: readonly FoundBranch[] }[]>;
  /** Newest first, of all branches without `branch`. */
  points(options: { readonly limit?: number; readonly branch?: string }): Promise<RecoveryPoint[]>;
  /**
   * `selector` as everywhere; `latest` and times choose along the active branch (or `branch`).
   * Throws NO_POINT, POINT_NOT_FOUND, USAGE, KEY_… when there is none for want of keys.
   */
  select(selector: string, branch?: string): Promise<RecoveryPoint>;
}

export async function openRescue(
  context: StoreContext,
  keys: { readonly tenantKey: Uint8Array; readonly keyOf: DiskKeys },
  log: Log,
): Promise<Rescue> {
  const { storeId, fault } = await identifyStore(context, keys.keyOf);
  const store = openMoverStore(context, { keys: keys.keyOf, storeId });
  const macKey = deriveMacKey(createSecretKey(keys.tenantKey), storeId);
  const bookmarks: Bookmarks = { mac: (data) => createHmac("sha256", macKey).update(data).digest(), log };
  const groups = (): Promise<FoundGroup[]> => findGroups(context);
  const open = (found: FoundGroup): Promise<RescuedGroup> => openGroup(store, found, bookmarks);
  return {
    storeId,
    storeFault: fault,
    store,
    groups,
    open,
    async group(name) {
      const all = await groups();
      const named = all.filter(({ groupName }) => groupName === name);
      const group = all.find(({ groupId }) => groupId === name) ?? (named.length === 1 ? named[0] : undefined);
      if (group !== undefined) return open(group);
      throw new Fault("NOT_FOUND", `The store has no group "${name}"`, {
        details: { group: name },
        hint:
          all.length === 0
            ? "It has none at all: check bucket and root."
            : `There are: ${all.map(described).join(", ")}.`,
      });
    },
  };
}

function described({ groupId, groupName }: FoundGroup): string {
  return groupName === "" || groupName === groupId ? `"${groupId}"` : `"${groupId}" (${groupName})`;
}

async function openGroup(store: MoverStore, found: FoundGroup, bookmarks: Bookmarks): Promise<RescuedGroup> {
  const closed = new Map<string, Fault>();
  const opened: string[] = [];
  for (const { diskId } of found.disks) {
    try {
      await store.openDisk({ diskId, sizeBytes: 0, sectorBytes: 512 });
      opened.push(diskId);
    } catch (error) {
      if (!isFault(error) || error.retryable) throw error;
      closed.set(diskId, error);
    }
  }
  const context: GroupContext = {
    ...(await store.group(found.groupId, opened)),
    isMember: () => true,
    unseen: new Set(closed.keys()),
  };
  const claims = await Promise.all(opened.map((diskId) => newestClaim(context.disk(diskId))));
  const claim = claims.filter((one) => one !== undefined).sort((a, b) => b.groupEpoch - a.groupEpoch)[0];
  const points: RescuedGroup["points"] = async (options) =>
    opened.length === 0 ? [] : listPoints(context, { ...options, bookmarks });

  return {
    found,
    closed,
    activeSite: claim?.activeSite,
    activeBranch: claim?.branch,
    points,
    branches: () =>
      Promise.all(opened.map(async (diskId) => ({ diskId, branches: await findBranches(context.disk(diskId)) }))),
    async select(selector, branch = claim?.branch) {
      const [firstClosed] = closed.values();
      if (opened.length === 0 && firstClosed !== undefined) throw firstClosed;
      const id = parsePointId(selector);
      if (id !== undefined) {
        const point = await readPoint(context, id.barrier, bookmarks);
        if (point.id === selector) return point;
      }
      // A name or an id means that point wherever it is.
      const along = namesOnePoint(selector) || branch === undefined ? {} : { branch };
      const newest = selector === "latest" || selector === "latest-processed" ? { limit: 1 } : {};
      const list = await points({ ...along, ...newest });
      return selectPoint(list, selector, store.context.clock.now());
    },
  };
}
