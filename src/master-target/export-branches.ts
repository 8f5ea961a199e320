/**
 * What an export is opened over: a point, and for one that is written a branch of its own, made from the point and claimed for this site.
 *
 * Invariant: a branch on which something was written is never served again over the point it began at.
 */
import { Fault } from "#model/fault.ts";
import { parsePointId } from "#model/format/object-names.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { GroupContext } from "../data-mover/barriers.ts";
import { listNumbers } from "../data-mover/claims.ts";
import type { DiskContext } from "../data-mover/disk-context.ts";
import { claimBranch, createBranch } from "../data-mover/disk-moves.ts";
import { listPoints, readPoint, type Bookmarks } from "../data-mover/points.ts";
import { exportBranch, socketPath, type ExportRecord } from "./export-record.ts";
import { exportRecordOf } from "./export-supervisor.ts";
import type { RegisteredGroup } from "./group-register.ts";
import type { RetentionKeeper } from "./retention-keeper.ts";

export interface ExportBranches {
  /** A point id, or "latest". Throws POINT_NOT_FOUND, NO_POINT. */
  pointOf(group: RegisteredGroup, selector: string): Promise<RecoveryPoint>;
  /**
   * The record is given to `use`; the point is pinned before, and stays so as long as there is a record. Throws POINT_NOT_FOUND, NO_POINT, and for a read-write
   * export REFUSED when the group is active elsewhere. Repeatable.
   */
  make<Result>(
    group: RegisteredGroup,
    request: ExportRequest,
    use: (record: ExportRecord) => Promise<Result>,
  ): Promise<Result>;
  /** The branch of a closed export becomes the active one again, for `operation`. Throws FENCED when a newer move has touched a disk. */
  claimAgain(group: RegisteredGroup, record: ExportRecord, operation: string): Promise<void>;
}

export type ExportRequest = Pick<
  Parameters<MasterTarget["openExport"]>[0],
  "operationId" | "point" | "mode" | "reason"
>;

export interface ExportBranchesDeps {
  readonly site: string;
  readonly holder: string;
  readonly stateDir: string;
  readonly openGroup: (group: RegisteredGroup) => Promise<GroupContext>;
  readonly bookmarks: () => Promise<Bookmarks>;
  /** The point stays from before anything hangs on it; see retention-keeper.ts. */
  readonly pin: RetentionKeeper["pin"];
}

export function exportBranches({
  site,
  holder,
  stateDir,
  openGroup,
  bookmarks,
  pin,
}: ExportBranchesDeps): ExportBranches {
  const pointOf = async (group: RegisteredGroup, selector: string): Promise<RecoveryPoint> => {
    const context = await openGroup(group);
    if (selector === "latest") {
      const [newest] = await listPoints(context, { limit: 1, branch: group.branch });
      if (newest) return newest;
      throw new Fault("NO_POINT", `Group "${group.groupId}" has no recovery point yet`, {
        hint: "Wait for the initial sync to end; `leeward group show` has its progress.",
      });
    }
    const parsed = parsePointId(selector);
    if (!parsed)
      throw new Fault("POINT_NOT_FOUND", `"${selector}" is no point, expected a point id or "latest"`, {
        hint: "List the points of the group: `leeward point list`.",
      });
    const point = await readPoint(context, parsed.barrier, await bookmarks());
    if (point.id === selector) return point;
    throw new Fault("POINT_NOT_FOUND", `Group "${group.groupId}" has no point "${selector}"`, {
      hint: "List the points of the group: `leeward point list`.",
    });
  };

  /** The branch that a read-write export writes: made from the point, and claimed for this site. */
  const claimExportBranch = async (
    group: RegisteredGroup,
    point: RecoveryPoint,
    { operation, reason }: { readonly operation: string; readonly reason: "failover" | "changed-point" },
  ): Promise<string> => {
    if (group.activeSite !== site) {
      throw new Fault(
        "REFUSED",
        `Group "${group.groupId}" is active at site "${group.activeSite}": a writable export would make two of it`,
        {
          hint: "Fail the group over first, or open the export as throw-away for a test.",
        },
      );
    }
    const context = await openGroup(group);
    const branch = exportBranch(operation);
    const { groupEpoch } = group;
    for (const member of point.members) {
      const parent = { branch: member.branch, seq: member.seq, commitHash: member.commitHash };
      await createBranch(context.disk(member.diskId), { branch, parent, reason, operation });
      await assertUnwritten(context.disk(member.diskId), branch);
    }
    for (const member of point.members) {
      await claimBranch(context.disk(member.diskId), { operation, groupEpoch, activeSite: site, branch, holder });
    }
    return branch;
  };

  const make: ExportBranches["make"] = async (group, request, use) => {
    const point = await pointOf(group, request.point);
    const { made } = await pin(request.operationId, point);
    try {
      return await use(await recordOf(group, point, request));
    } finally {
      made();
    }
  };

  const recordOf = async (
    group: RegisteredGroup,
    point: RecoveryPoint,
    { operationId, mode, reason = "failover" }: ExportRequest,
  ): Promise<ExportRecord> => {
    const branch =
      mode === "read-write" ? await claimExportBranch(group, point, { operation: operationId, reason }) : undefined;
    return exportRecordOf({
      operationId,
      point,
      mode,
      disks: group.disks,
      socketOf: (index) => socketPath(stateDir, operationId, index),
      ...(branch === undefined ? {} : { branch, groupEpoch: group.groupEpoch }),
    });
  };

  /** The branch of a closed export becomes the active one again, for `operation`; FENCED when a newer move has touched a disk. */
  const claimAgain = async (group: RegisteredGroup, record: ExportRecord, operation: string): Promise<void> => {
    const { branch, groupEpoch } = record;
    if (branch === undefined || groupEpoch === undefined) return;
    const context = await openGroup(group);
    for (const { diskId } of record.disks)
      await claimBranch(context.disk(diskId), { operation, groupEpoch, activeSite: site, branch, holder });
  };

  return { pointOf, make, claimAgain };
}

/**
 * A branch that has commits was served before, and its overlay went with this master target's state: over the point it began at, an empty overlay would
 * be a state that never was.
 */
async function assertUnwritten(disk: DiskContext, branch: string): Promise<void> {
  if ((await listNumbers(disk, disk.names.journal(branch))).length === 0) return;
  throw new Fault("REFUSED", `The overlay of branch "${branch}" is lost; what was written to it is in the store`, {
    details: { diskId: disk.diskId, branch },
    hint: `Go on from the branch's newest point: \`leeward point list\`, then \`leeward change-point GROUP --point ID\`.`,
  });
}
