/**
 * What we know of a machine, one folder each: `machine.json` (written whole, durable, renamed into place), the console, QEMU's own
 * log, its control socket and pid file. The folder is the machine: with it gone, the machine never was.
 */
import { open, readdir, readFile, rm } from "node:fs/promises";
import path from "node:path";
import { Fault } from "#model/fault.ts";
import { formatStateFile } from "#model/state-file.ts";
import type { MachineConfig, MachineDisk, MachineNetwork } from "#ports/hypervisor.ts";
import { createDurableFiles } from "../file/durable-files.ts";

export interface MachineRecord {
  readonly format: 1;
  readonly id: string;
  readonly operationId: string;
  readonly name: string;
  readonly config: MachineConfig;
  readonly disks: readonly MachineDisk[];
  /** As asked for; host port 0 means: any. */
  readonly network: MachineNetwork;
  /** As it is: with the host ports that were picked. */
  readonly forwards: readonly { readonly hostPort: number; readonly guestPort: number }[];
  readonly startedAtMs?: number;
  /** A disk is being handed over from one URL to the other, and the guest may stand still for it (disk-move.ts). */
  readonly pivot?: DiskPivot;
}

export interface DiskPivot {
  readonly diskId: string;
  readonly from: string;
  readonly to: string;
}

const RECORD_FILE = "machine.json";
const files = createDurableFiles({ fullHint: "Free space on the file system that holds the master target's state" });

export function machineFolder(stateFolder: string, id: string): string {
  // An id of ours is a name, never a way out of the folder.
  if (!/^[a-z0-9-]{1,64}$/.test(id)) throw new Fault("NOT_FOUND", `"${id}" is not the id of a machine`);
  return path.join(stateFolder, id);
}

/** Durable when it settles: a machine that loses its power then starts from this record. Throws DISK_FULL. */
export async function writeRecord(folder: string, record: MachineRecord): Promise<void> {
  await files.write(path.join(folder, RECORD_FILE), formatStateFile(record));
}

/** The record, or undefined when there is no such machine. */
export async function readRecord(folder: string): Promise<MachineRecord | undefined> {
  try {
    const record = JSON.parse(await readFile(path.join(folder, RECORD_FILE), "utf8")) as MachineRecord; // Ours, in a folder of mode 700.
    if (record.format !== 1)
      throw new Fault("FORMAT_UNSUPPORTED", `"${folder}" is of format ${String(record.format)}, expected 1`);
    return record;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

export async function listRecords(stateFolder: string): Promise<readonly MachineRecord[]> {
  let names: readonly string[];
  try {
    names = await readdir(stateFolder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
  const records = await Promise.all([...names].sort().map((name) => readRecord(path.join(stateFolder, name))));
  return records.filter((record) => record !== undefined);
}

export async function removeFolder(folder: string): Promise<void> {
  // The record goes first: a removal that was cut short has removed the machine.
  await rm(path.join(folder, RECORD_FILE), { force: true });
  await rm(folder, { recursive: true, force: true });
}

/** The last lines of a text file, without its escape sequences; "" when it is not there. */
export async function readTail(file: string, linesMax = 40): Promise<string> {
  try {
    await using handle = await open(file, "r");
    const { size } = await handle.stat();
    const length = Math.min(size, 16_384);
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(length), 0, length, size - length);
    // eslint-disable-next-line no-control-regex -- escape sequences of terminals are what is removed
    const text = buffer.toString("utf8", 0, bytesRead).replace(/\u001b\[[0-9;?]*[A-Za-z]|\u001bc|\r/g, "");
    return text.trimEnd().split("\n").slice(-linesMax).join("\n");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return "";
    throw error;
  }
}
