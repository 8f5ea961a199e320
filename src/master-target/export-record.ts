/** What the master target keeps of an export, so that a restart of anything opens it again exactly as it was. */
import { createHash } from "node:crypto";
import { readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatStateFile, parseStateFile } from "#model/state-file.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { ExportMode } from "#ports/master-target.ts";
import type { PointMember } from "#ports/replication.ts";

export interface ExportRecord {
  readonly operationId: string;
  readonly groupId: string;
  readonly pointId: string;
  readonly mode: ExportMode;
  readonly disks: readonly ExportDisk[];
  /** read-write only. */
  readonly branch?: string;
  readonly groupEpoch?: number;
  /** By machine: the point whose content its disks are being given. They are of no point until that has ended. */
  readonly taking?: Readonly<Record<string, string>>;
  /** By machine: the last request for another point that was carried through. */
  readonly taken?: Readonly<Record<string, { readonly requestId: string; readonly pointId: string }>>;
  /** A closed export is not opened again but by who says that its operation is not over after all. */
  readonly closed: boolean;
  /** Its overlay is deleted: nothing can open it again. */
  readonly cleared?: boolean;
}

export interface ExportDisk {
  readonly diskId: string;
  readonly machine: string;
  readonly sizeBytes: number;
  readonly sectorBytes: number;
  readonly bootIndex?: number;
  /** State of the disk at the point. */
  readonly member: PointMember;
  /** Unix socket on which it is served. The same after every restart: the machine reconnects to it. */
  readonly socket: string;
}

export interface ExportRecords {
  load(): Promise<ExportRecord[]>;
  /** Durable when it settles. */
  save(record: ExportRecord): Promise<void>;
  /** Where the overlay files of an export are. */
  folder(operationId: string): string;
  /** Delete the overlay and the sockets; the record stays. */
  clear(record: ExportRecord): Promise<void>;
}

/** sun_path has 108 bytes; QEMU and libnbd add a little of their own. */
const SOCKET_PATH_BYTES_MAX = 99;

/** Folders are named by a hash of the operation id, which is somebody else's text. */
export function exportRecords(stateDir: string, files: DurableFiles): ExportRecords {
  const root = join(stateDir, "exports");
  const folder = (operationId: string): string => join(root, shortHash(operationId));
  return {
    async load() {
      await files.makeFolder(root);
      const records: ExportRecord[] = [];
      for (const name of (await readdir(root)).sort()) {
        if (!name.endsWith(".json")) continue;
        const path = join(root, name);
        const hint =
          "Restore it from a copy, or move it away and fail over or test again: its disks are lost to the machine that runs on them";
        records.push(parseStateFile({ path, text: await files.read(path), hint }) as ExportRecord); // Nobody else writes it.
      }
      return records;
    },
    async save(record) {
      await files.makeFolder(folder(record.operationId));
      await files.write(`${folder(record.operationId)}.json`, formatStateFile(record));
    },
    folder,
    async clear(record) {
      await rm(folder(record.operationId), { recursive: true, force: true });
      for (const disk of record.disks) await rm(disk.socket, { force: true });
    },
  };
}

/** Deterministic, and short enough for every client: beside the overlay where that fits, else under the temporary folder. */
export function socketPath(stateDir: string, operationId: string, diskIndex: number): string {
  const near = join(stateDir, "exports", shortHash(operationId), `${diskIndex}.sock`);
  if (Buffer.byteLength(near) <= SOCKET_PATH_BYTES_MAX) return near;
  return join(tmpdir(), `leeward-${shortHash(stateDir)}`, `${shortHash(operationId)}-${diskIndex}.sock`);
}

/** At most 20 characters, and the same for the same operation: a repeated openExport finds its branch. */
export function exportBranch(operationId: string): string {
  return `x-${branchHash(operationId)}`;
}

/** Likewise, for the branch that a reprotect begins. */
export function reprotectBranch(operationId: string): string {
  return `r-${branchHash(operationId)}`;
}

function branchHash(operationId: string): string {
  return createHash("sha256").update(operationId).digest("hex").slice(0, 16);
}

function shortHash(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 12);
}
