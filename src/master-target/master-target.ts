/**
 * What a target site does for its groups: the port `MasterTarget`, on top of the store, one mover and the exports.
 *
 * Invariants:
 * - every method finds what it made when it is called again: by the operation in the store, by the record in the state folder;
 * - safety is the store's (claims, fences, create-only commits); the mover is told of a fence only so that its source hears at once;
 * - a read-write export exists only for the site that the group's claim names, on a branch of its own.
 */
import { createHmac } from "node:crypto";
import { Fault, isFault } from "#model/fault.ts";
import { isName } from "#model/format/fields.ts";
import { storeNames } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import { DEFAULT_RETENTION } from "#model/retention/policy.ts";
import type { Log } from "#ports/log.ts";
import type { ExportStatus, GroupDisk, MasterTarget } from "#ports/master-target.ts";
import type { Address } from "#ports/link.ts";
import type { GroupProgress, RecoveryPoint } from "#ports/replication.ts";
import { createOnce } from "../data-mover/create-once.ts";
import { readIfThere } from "../data-mover/disk-context.ts";
import { createDisk, ROOT } from "../data-mover/disk-moves.ts";
import type { GroupContext } from "../data-mover/barriers.ts";
import { claimGroupEpoch, fenceGroup, type FenceGroup } from "../data-mover/group-fence.ts";
import { beginReturn, prepareReturn } from "../data-mover/group-return.ts";
import { readStanding } from "../data-mover/catalog.ts";
import { ensureStoreRecord, type MoverStore } from "../data-mover/mover-store.ts";
import { bookmark, listPoints, type Bookmarks } from "../data-mover/points.ts";
import { tenantMac } from "../data-mover/sealing.ts";
import type { ExpireGroup } from "../data-mover/expiry.ts";
import { probeStore } from "../data-mover/store-probe.ts";
import { catalogKeeper } from "./catalog-keeper.ts";
import { exportBranches } from "./export-branches.ts";
import { reprotectBranch } from "./export-record.ts";
import type { ExportSupervisor } from "./export-supervisor.ts";
import type { GroupRegister, RegisteredGroup } from "./group-register.ts";
import type { KeyFile } from "./key-file.ts";
import type { ProgressBoard } from "./progress-board.ts";
import { retentionKeeper } from "./retention-keeper.ts";

export interface MasterTargetDeps {
  readonly site: string;
  readonly name: string;
  readonly stateDir: string;
  /** What process servers dial. */
  readonly advertise: Address;
  readonly store: MoverStore;
  readonly storeEndpoint: string;
  /** Make the bucket if there is none and we may. */
  readonly ensureBucket: () => Promise<void>;
  readonly keys: KeyFile;
  readonly register: GroupRegister;
  readonly exports: ExportSupervisor;
  readonly progress: ProgressBoard;
  readonly mover: MoverControl;
  readonly log: Log;
  /** Other than usual, for tests. */
  readonly retention?: ExpireGroup["settings"];
}

/** What is asked of the mover's process. */
export interface MoverControl {
  /** Receive exactly these groups; with a fault for the source of a group whose stream has to end. */
  putGroup(group: RegisteredGroup): Promise<void>;
  dropGroup(groupId: string, fault: Fault): Promise<void>;
  endStream(groupId: string, fault: Fault): Promise<void>;
}

const PROBE_VALID_MS = 86_400_000;
const OBSERVE_MS_MAX = 60_000;

export function createMasterTarget(deps: MasterTargetDeps): MasterTarget {
  const { site, store, keys, register, exports, progress, mover, log } = deps;
  const { clock } = store.context;
  const holder = `${site}/${deps.name}/${process.pid}`;
  let probed: { readonly storeId: string; readonly checkedAtMs: number; readonly endpoint: string } | undefined;

  const probe = async () => {
    if (probed && clock.now() - probed.checkedAtMs < PROBE_VALID_MS) return probed;
    await deps.ensureBucket();
    await probeStore(store.context);
    await ensureStoreRecord(store.context);
    probed = { storeId: await store.storeId(), checkedAtMs: clock.now(), endpoint: deps.storeEndpoint };
    return probed;
  };

  const openGroup = async (group: Pick<RegisteredGroup, "groupId" | "disks">) => {
    await Promise.all(group.disks.map((disk) => store.openDisk(disk)));
    return store.group(
      group.groupId,
      group.disks.map(({ diskId }) => diskId),
    );
  };

  const mac = async (): Promise<Mac> => tenantMac(keys.tenantKey, await store.storeId());
  const bookmarks = async (): Promise<Bookmarks> => ({ mac: await mac(), log });

  const retention = retentionKeeper({
    site,
    name: deps.name,
    store,
    register,
    progress,
    openGroup,
    mac,
    bookmarks,
    exports: () => exports.records(),
    log,
    ...(deps.retention !== undefined && { settings: deps.retention }),
  });
  const branches = exportBranches({ site, holder, stateDir: deps.stateDir, openGroup, bookmarks, pin: retention.pin });

  /** A master target that has forgotten the group: the store knows where it is active by now, and which branch its source writes. */
  const asItStands = async (group: RegisteredGroup): Promise<RegisteredGroup> => {
    const { claim, disk } = await readStanding(store.context, group.groupId);
    if (claim === undefined || disk === undefined || claim.groupEpoch <= group.groupEpoch) return group;
    const { activeSite, groupEpoch } = claim;
    // The branch that the newest move ended is the source's, as long as it has not got it back.
    const branch = activeSite === group.sourceSite ? disk.branch : claim.branch;
    return { ...group, activeSite, groupEpoch, branch };
  };

  return {
    ...catalogKeeper({ context: store.context, mac, storeId: () => store.storeId() }),

    probeStore: async () => probe(),

    async prepareGroup({ groupId, operationId, groupName, sourceSite, disks, record, atLeastEpoch }) {
      checkGroup({ groupId, operationId, disks });
      const { storeId } = await probe();
      const diskIds = disks.map(({ diskId }) => diskId);
      await keys.ensure(diskIds);
      for (const disk of disks) {
        const { keyring } = await store.openDisk(disk, { create: true });
        await keyring.current(); // Made, stored, and read back: what we seal from now on, we can open.
      }
      const known = register.find(groupId);
      const context = await store.group(groupId, diskIds);
      const request = { operation: operationId, activeSite: sourceSite, disks: diskIds, holder };
      // What was finished once is not repeated: the group may have been moved since.
      const { activeSite, branch, groupEpoch } =
        atLeastEpoch === undefined
          ? await prepareFirst(context, request)
          : known?.operationId === operationId
            ? known
            : await prepareReturn(context, { ...request, atLeastEpoch, newBranch: reprotectBranch(operationId) });
      const group: RegisteredGroup = {
        groupId,
        groupName,
        sourceSite,
        ...formerly(known, sourceSite),
        activeSite,
        branch,
        groupEpoch,
        disks,
        operationId,
        record,
        released: false,
      };
      await writeCatalog(group);
      // A late repeat of a finished operation must not take the group back to where it began.
      const isNew = known?.operationId !== operationId;
      if (isNew) await register.put(await asItStands(group), storeId);
      const current = register.get(groupId);
      if (!current.released) await mover.putGroup(current);
      if (isNew || !progress.get(groupId)) progress.put(waitingProgress(current, undefined, clock.now()));
      return { ...deps.advertise, branch: current.branch, groupEpoch: current.groupEpoch };
    },

    async turn({ groupId, operationId, activeSite, atLeastEpoch }) {
      const group = register.get(groupId);
      retention.interrupt(groupId);
      const context = await openGroup(group);
      const turned = await beginReturn(context, {
        operation: operationId,
        activeSite,
        disks: group.disks.map(({ diskId }) => diskId),
        holder,
        atLeastEpoch,
        newBranch: reprotectBranch(operationId),
      });
      const { branch, groupEpoch, newestPoint } = turned;
      // As with a fence: a repeat must not undo what a newer move has recorded.
      if (groupEpoch >= group.groupEpoch) {
        const next = {
          ...group,
          sourceSite: activeSite,
          ...formerly(group, activeSite),
          activeSite,
          branch,
          groupEpoch,
          released: false,
        };
        await register.put(next, await store.storeId());
        await mover.putGroup(next);
        if (group.sourceSite !== activeSite) progress.put(waitingProgress(next, newestPoint, clock.now()));
      }
      return { branch, groupEpoch, ...deps.advertise, newestPoint };
    },

    async observeGroup({ groupId, cursor, waitMs }) {
      const group = register.get(groupId);
      if (group.released) throw new Fault("NOT_FOUND", `Group "${groupId}" was released`, { details: { groupId } });
      if (!progress.get(groupId)) progress.put(waitingProgress(group, undefined, clock.now()));
      const seen = await progress.observe(groupId, { cursor, waitMs: Math.min(waitMs, OBSERVE_MS_MAX) });
      if (seen) return seen;
      throw new Fault("NOT_FOUND", `Group "${groupId}" was released meanwhile`, { details: { groupId } });
    },

    async listPoints({ groupId, limit, branch }) {
      const group = register.get(groupId);
      const [context, { policy, stops }] = await Promise.all([openGroup(group), retention.standing(group)]);
      return listPoints(context, {
        ...(limit === undefined ? {} : { limit }),
        ...(branch === undefined ? {} : { branch }),
        bookmarks: await bookmarks(),
        retention: { policy: policy ?? DEFAULT_RETENTION, stops },
      });
    },

    expirePoints: ({ budgetMs }) => retention.expire({ budgetMs }),

    async bookmark({ groupId, operationId, barrier, name }) {
      const context = await openGroup(register.get(groupId));
      return bookmark(context, { operation: operationId, barrier, name }, await bookmarks());
    },

    async fence({ groupId, operationId, activeSite, resume }) {
      const group = register.get(groupId);
      retention.interrupt(groupId);
      const context = await openGroup(group);
      const diskIds = group.disks.map(({ diskId }) => diskId);
      const fenced = await fenceGroup(context, {
        operation: operationId,
        activeSite,
        disks: diskIds,
        holder,
        ...(resume === undefined ? {} : { resume }),
      });
      // A repeat of an older fence must not undo what a newer one has recorded.
      if (fenced.groupEpoch >= group.groupEpoch) {
        await register.put(
          { ...group, activeSite, branch: resume ?? fenced.branch, groupEpoch: fenced.groupEpoch },
          await store.storeId(),
        );
      }
      if (activeSite !== group.sourceSite) await tellFenced(group, activeSite);
      return { groupEpoch: fenced.groupEpoch, newestPoint: fenced.newestPoint };
    },

    async openExport({ groupId, mode, reopen, ...request }): Promise<ExportStatus> {
      const { operationId } = request;
      const group = register.get(groupId);
      const known = exports.find(operationId);
      if (known === undefined) return branches.make(group, { ...request, mode }, (made) => exports.open(made));
      const record = known;
      if (record.groupId === groupId && record.mode === mode) {
        if (reopen === undefined) return exports.open(record);
        await branches.claimAgain(group, record, reopen);
        return exports.reopen(operationId);
      }
      throw new Fault(
        "REFUSED",
        `Operation "${operationId}" has an export of group "${record.groupId}" as ${record.mode} already`,
        { hint: "Use an operation id of its own for each export." },
      );
    },
    async takePoint({ operationId, machine, requestId, point: selector, waitMs }) {
      const record = exports.find(operationId);
      if (record === undefined)
        throw new Fault("NOT_FOUND", `There is no export of operation "${operationId}"`, { details: { operationId } });
      const point = await branches.pointOf(register.get(record.groupId), selector);
      return exports.takePoint(operationId, { requestId, machine, point }, Math.min(waitMs, OBSERVE_MS_MAX));
    },
    exportStatus: async ({ operationId }) => exports.status(operationId),
    async closeExport({ operationId, discard }) {
      await exports.close({ operationId, discard });
      const record = exports.find(operationId);
      if (record !== undefined) await retention.closed(record);
    },
    listExports: async ({ groupId }) => exports.list(groupId),

    async releaseGroup({ groupId }) {
      const group = register.find(groupId);
      if (!group || group.released) return;
      await register.put({ ...group, released: true }, await store.storeId());
      await mover.dropGroup(groupId, new Fault("NOT_FOUND", `Group "${groupId}" is not received here any more`));
      progress.drop(groupId);
    },
  };

  /** The group's first claim, and its disks with their root branches. Throws DISK_ALREADY_PROTECTED when another operation made them. */
  async function prepareFirst(
    context: GroupContext,
    request: Pick<FenceGroup, "operation" | "activeSite" | "disks" | "holder">,
  ): Promise<Pick<RegisteredGroup, "activeSite" | "branch" | "groupEpoch">> {
    const { activeSite, disks } = request;
    const { groupEpoch } = await claimGroupEpoch(context, { ...request, branch: ROOT });
    await Promise.all(disks.map((diskId) => createDisk(context.disk(diskId), { ...request, groupEpoch })));
    return { activeSite, branch: ROOT, groupEpoch };
  }

  /** Create-only and for people and `adopt`: what was prepared. */
  async function writeCatalog(group: RegisteredGroup): Promise<void> {
    const key = storeNames(store.context.root).catalog(
      `groups/${group.groupId}/${createHmac("sha256", "operation").update(group.operationId).digest("hex").slice(0, 16)}.json`,
    );
    await createOnce(store.context, {
      key,
      body: Buffer.from(`${JSON.stringify({ format: 1, ...group })}\n`),
      look: () => readIfThere(store.context, key),
      isMine: () => true,
    });
  }

  /** So that the source hears at once. The store has fenced it already; a mover that cannot be told finds out at its next commit. */
  async function tellFenced(group: RegisteredGroup, activeSite: string): Promise<void> {
    const fault = new Fault("FENCED", `Group "${group.groupId}" belongs to site "${activeSite}" now`, {
      details: { reason: "moved", activeSite },
      hint: "The group was failed over: run `leeward group show` to see where it is active.",
    });
    progress.patch(group.groupId, {
      state: "fenced",
      connected: false,
      fault: { code: fault.code, message: fault.message, hint: fault.hint ?? "" },
    });
    try {
      await mover.endStream(group.groupId, fault);
    } catch (error) {
      if (!isFault(error)) throw error;
      log.warn("The mover could not be told of a fence", { group: group.groupId, fault: error.toJSON() });
    }
  }
}

/** Who replicated the group to here before `sourceSite` did. */
function formerly(known: RegisteredGroup | undefined, sourceSite: string): Pick<RegisteredGroup, "formerSite"> {
  const former = known?.sourceSite === sourceSite ? known.formerSite : known?.sourceSite;
  return former === undefined ? {} : { formerSite: former };
}

/** What is known of a group whose source has not come yet. */
export function waitingProgress(
  group: RegisteredGroup,
  newest: RecoveryPoint | undefined,
  nowMs: number,
): GroupProgress {
  return {
    groupId: group.groupId,
    state: group.activeSite === group.sourceSite ? "waiting" : "fenced",
    connected: false,
    disks: group.disks.map(({ diskId, sizeBytes }) => ({
      diskId,
      sizeBytes,
      epoch: 0,
      seq: 0,
      cycle: 0,
      syncRemainingBytes: 0,
      syncTotalBytes: 0,
    })),
    currentAsOfMs: newest?.cutAtMs ?? 0,
    barrier: newest?.barrier ?? 0,
    barrierCutAtMs: newest?.cutAtMs ?? 0,
    barrierCommittedAtMs: newest?.cutAtMs ?? 0,
    commits: 0,
    shippedBytes: 0,
    storedBytes: 0,
    syncBytesPerSecond: 0,
    backlogBytes: 0,
    writtenBytes: 0,
    observedAtMs: nowMs,
  };
}

/** Ids become parts of keys: what does not fit is refused before anything is made. */
function checkGroup(request: {
  readonly groupId: string;
  readonly operationId: string;
  readonly disks: readonly GroupDisk[];
}): void {
  const wrong = (what: string, value: string): Fault =>
    new Fault("USAGE", `${what} "${value}" must be letters, digits or ". _ -", and not too long`, {
      hint: "Choose another name.",
    });
  if (!isName(request.groupId, 64)) throw wrong("Group id", request.groupId);
  if (request.disks.length === 0) throw new Fault("USAGE", `Group "${request.groupId}" has no disks`);
  for (const { diskId } of request.disks) if (!isName(diskId, 36)) throw wrong("Disk id", diskId);
}
