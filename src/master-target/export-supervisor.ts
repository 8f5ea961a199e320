/**
 * The exports of a master target: one child process each, kept running, opened again from their records after any restart.
 *
 * An export is open from the moment its record is durable until the record says closed. In between nothing but a close ends it: a
 * dead child is replaced, and so is a dead master target.
 */
import { Fault, isFault } from "#model/fault.ts";
import type { Log } from "#ports/log.ts";
import type { ExportMode, ExportStatus, TakenPoint } from "#ports/master-target.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { ExportDisk, ExportRecord, ExportRecords } from "./export-record.ts";
import type { ExportFigures } from "./running-export.ts";
import type { SupervisedChild } from "./supervised-child.ts";

export interface ExportSupervisor {
  /** Start what the records say is open. */
  restore(): Promise<void>;
  find(operationId: string): ExportRecord | undefined;
  /** Throws REFUSED for an operation whose export was closed; what opening it throws. */
  open(record: ExportRecord): Promise<ExportStatus>;
  /** As `open`, also when it was closed, or its close failed half-way; REFUSED when its overlay is gone. Who calls has the claim. */
  reopen(operationId: string): Promise<ExportStatus>;
  /** See the port. Throws NOT_FOUND (export, machine), REFUSED, and what reading the point throws. */
  takePoint(
    operationId: string,
    request: { readonly requestId: string; readonly machine: string; readonly point: RecoveryPoint },
    waitMs: number,
  ): Promise<TakenPoint>;
  /** Throws NOT_FOUND. */
  status(operationId: string): ExportStatus;
  close(request: { readonly operationId: string; readonly discard: boolean }): Promise<void>;
  list(groupId: string | undefined): readonly ExportStatus[];
  /** Records of exports that are open, or whose overlay is still there: they may be opened again. */
  records(): readonly ExportRecord[];
  stop(): Promise<void>;
}

export interface ExportSupervisorDeps {
  readonly records: ExportRecords;
  /** A child that runs `record` and reports its figures. */
  readonly start: (record: ExportRecord, onFigures: (figures: ExportFigures) => void) => SupervisedChild;
  readonly log: Log;
  readonly openTimeoutMs?: number;
}

interface Export {
  record: ExportRecord;
  child: SupervisedChild | undefined;
  figures: ExportFigures;
  /** A close was begun: its child serves no more. */
  closing: boolean;
}

const OPEN_MS = 90_000;
const CLOSE_MS = 90_000;
/** A child that was just started opens its disks first. */
const TAKE_MARGIN_MS = 90_000;
const NO_FIGURES: ExportFigures = { barrier: 0, barrierCutAtMs: 0, overlayBytes: 0, writtenBytes: 0 };

export function exportSupervisor(deps: ExportSupervisorDeps): ExportSupervisor {
  const { records, log } = deps;
  const exports = new Map<string, Export>();
  /** Opening and closing of one export, one at a time. */
  const queues = new Map<string, Promise<unknown>>();
  const inTurn = <Result>(operationId: string, work: () => Promise<Result>): Promise<Result> => {
    const done = (queues.get(operationId) ?? Promise.resolve()).then(work);
    queues.set(
      operationId,
      done.catch(() => undefined),
    ); // Its caller has the error.
    return done;
  };

  const startChild = (entry: Export): SupervisedChild => {
    entry.child ??= deps.start(entry.record, (figures) => {
      const { barrier, barrierCutAtMs } = entry.figures;
      // A child that was started again does not know yet what its branch has.
      entry.figures = figures.barrier >= barrier ? figures : { ...figures, barrier, barrierCutAtMs };
    });
    return entry.child;
  };

  const get = (operationId: string): Export => {
    const entry = exports.get(operationId);
    if (entry) return entry;
    throw new Fault("NOT_FOUND", `There is no export of operation "${operationId}"`, { details: { operationId } });
  };

  return {
    async restore() {
      for (const record of await records.load()) {
        const entry: Export = { record, child: undefined, figures: NO_FIGURES, closing: false };
        exports.set(record.operationId, entry);
        if (!record.closed) startChild(entry);
      }
    },
    find: (operationId) => exports.get(operationId)?.record,
    open: (record) =>
      inTurn(record.operationId, async () => {
        const known = exports.get(record.operationId);
        if (known?.record.closed) {
          throw new Fault("REFUSED", `The export of operation "${record.operationId}" was closed`, {
            hint: "Start a new operation to export the point again.",
          });
        }
        const entry: Export = known ?? { record, child: undefined, figures: NO_FIGURES, closing: false };
        if (!known) {
          await records.save(record);
          exports.set(record.operationId, entry);
        }
        await startChild(entry).call("figures", {}, { timeoutMs: deps.openTimeoutMs ?? OPEN_MS });
        return statusOf(entry);
      }),
    reopen: (operationId) =>
      inTurn(operationId, async () => {
        const entry = get(operationId);
        if (entry.record.cleared === true) {
          throw new Fault("REFUSED", `The overlay of operation "${operationId}" was deleted`, {
            hint: "Export a point of its branch instead.",
          });
        }
        if (entry.closing || entry.record.closed) {
          await entry.child?.stop();
          entry.child = undefined;
          entry.record = { ...entry.record, closed: false };
          await records.save(entry.record);
          entry.closing = false;
        }
        await startChild(entry).call("figures", {}, { timeoutMs: deps.openTimeoutMs ?? OPEN_MS });
        return statusOf(entry);
      }),
    takePoint: (operationId, { requestId, machine, point }, waitMs) =>
      inTurn(operationId, async () => {
        const entry = get(operationId);
        const disks = entry.record.disks.filter((disk) => disk.machine === machine);
        const totalBytes = disks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
        if (entry.record.taken?.[machine]?.requestId === requestId)
          return { done: true, comparedBytes: totalBytes, totalBytes, writtenBytes: 0 };
        assertWritable(entry, machine, disks);
        const members = point.members.filter(({ diskId }) => disks.some((disk) => disk.diskId === diskId));
        if (members.length < disks.length)
          throw new Fault("REFUSED", `Point "${point.id}" does not have all disks of machine "${machine}"`, {
            hint: "Choose a later point: `leeward point list`.",
          });
        if (entry.record.taking?.[machine] !== point.id) {
          entry.record = { ...entry.record, taking: { ...entry.record.taking, [machine]: point.id } };
          await records.save(entry.record);
        }
        const request = { requestId, pointId: point.id, waitMs, members: members.map((member) => ({ ...member })) };
        const answer = await startChild(entry).call("takePoint", request, { timeoutMs: waitMs + TAKE_MARGIN_MS });
        const seen = answer as unknown as TakenPoint; // The child's is of our own version.
        if (!seen.done) return seen;
        const { [machine]: _ended, ...taking } = entry.record.taking ?? {};
        entry.record = {
          ...entry.record,
          taking,
          taken: { ...entry.record.taken, [machine]: { requestId, pointId: point.id } },
        };
        await records.save(entry.record);
        return seen;
      }),
    status: (operationId) => statusOf(get(operationId)),
    close: ({ operationId, discard }) =>
      inTurn(operationId, async () => {
        const entry = exports.get(operationId);
        if (!entry) return; // Never opened here, or its record is gone: there is nothing to close.
        entry.closing = true;
        const clears = discard || entry.record.mode !== "read-write";
        if (entry.child) {
          // A branch that was fenced or a discarded overlay that cannot be committed must not keep the export open for ever.
          const commit = entry.record.mode === "read-write";
          await entry.child.call("close", { commit }, { timeoutMs: CLOSE_MS }).catch((error: unknown) => {
            if (!isFault(error) || (commit && !discard && error.code !== "FENCED")) throw error;
            log.warn("An export was closed without its last commit", { operationId, fault: error.toJSON() });
          });
        }
        entry.record = { ...entry.record, closed: true, ...(clears ? { cleared: true } : {}) };
        await records.save(entry.record);
        await entry.child?.stop();
        entry.child = undefined;
        if (clears) await records.clear(entry.record);
      }),
    list: (groupId) =>
      [...exports.values()]
        .filter(({ record }) => !record.closed && (groupId === undefined || record.groupId === groupId))
        .map(statusOf),
    records: () => [...exports.values()].map(({ record }) => record).filter((record) => record.cleared !== true),
    async stop() {
      await Promise.all([...exports.values()].map(({ child }) => child?.stop()));
    },
  };
}

function assertWritable({ record, closing }: Export, machine: string, disks: readonly ExportDisk[]): void {
  const { operationId, mode, closed } = record;
  if (closed || closing || mode !== "read-write")
    throw new Fault("REFUSED", `The export of operation "${operationId}" is ${closed || closing ? "closed" : mode}`, {
      hint: "Only a machine of a running failover can go on from another point.",
    });
  if (disks.length === 0)
    throw new Fault("NOT_FOUND", `The export of operation "${operationId}" has no machine "${machine}"`, {
      details: { operationId, machine },
    });
}

function statusOf({ record, figures }: Export): ExportStatus {
  return {
    operationId: record.operationId,
    groupId: record.groupId,
    pointId: record.pointId,
    mode: record.mode,
    disks: record.disks.map((disk) => ({
      diskId: disk.diskId,
      machine: disk.machine,
      url: exportUrl(disk.diskId, disk.socket),
      sizeBytes: disk.sizeBytes,
      ...(disk.bootIndex === undefined ? {} : { bootIndex: disk.bootIndex }),
    })),
    ...(record.branch === undefined ? {} : { branch: record.branch }),
    ...(Object.keys(record.taking ?? {}).length === 0 ? {} : { taking: record.taking }),
    barrier: figures.barrier,
    barrierCutAtMs: figures.barrierCutAtMs,
    overlayBytes: figures.overlayBytes,
    writtenBytes: figures.writtenBytes,
    ...(figures.fault === undefined ? {} : { fault: figures.fault }),
  };
}

/** What NBD clients are given. */
export function exportUrl(diskId: string, socket: string): string {
  return `nbd+unix:///${encodeURIComponent(diskId)}?socket=${encodeURIComponent(socket).replaceAll("%2F", "/")}`;
}

/** A record for a point. Throws NOT_FOUND for a disk of the point that the group does not know. */
export function exportRecordOf(request: {
  readonly operationId: string;
  readonly point: RecoveryPoint;
  readonly mode: ExportMode;
  readonly disks: readonly Omit<ExportDisk, "member" | "socket">[];
  readonly socketOf: (diskIndex: number) => string;
  readonly branch?: string;
  readonly groupEpoch?: number;
}): ExportRecord {
  const { point } = request;
  return {
    operationId: request.operationId,
    groupId: point.groupId,
    pointId: point.id,
    mode: request.mode,
    disks: point.members.map((member, index) => {
      const disk = request.disks.find(({ diskId }) => diskId === member.diskId);
      if (!disk)
        throw new Fault("NOT_FOUND", `Disk "${member.diskId}" of point "${point.id}" is not known to its group`, {
          details: { diskId: member.diskId },
        });
      const { diskId, machine, sizeBytes, sectorBytes, bootIndex } = disk;
      return {
        diskId,
        machine,
        sizeBytes,
        sectorBytes,
        ...(bootIndex === undefined ? {} : { bootIndex }),
        member,
        socket: request.socketOf(index),
      };
    }),
    ...(request.branch === undefined ? {} : { branch: request.branch }),
    ...(request.groupEpoch === undefined ? {} : { groupEpoch: request.groupEpoch }),
    closed: false,
  };
}
