/**
 * The list of disks that this agent taps: besides its identity all that it keeps. Written before a disk is tapped for the first time, so
 * that after any crash every disk that a machine may be attached to comes up again.
 */
import { Fault } from "#model/fault.ts";
import { readList, readName, readObject, readText } from "#model/json-reader.ts";
import type { DurableFiles } from "#ports/durable-files.ts";

export interface BookedDisk {
  readonly groupId: string;
  readonly diskId: string;
  /** Absolute, symbolic links resolved. */
  readonly image: string;
  /** As the order says it: `tap:PATH`, `replica:NAME`. */
  readonly source: string;
  /** Unix socket of the tap's NBD server for this disk. */
  readonly socket: string;
  /** Name of the NBD export, when it is not the disk's id: that of the disk which the image was before. */
  readonly name?: string;
}

export interface DiskBook {
  readonly disks: readonly BookedDisk[];
  /** Replaces the list; durable when it returns. */
  write(disks: readonly BookedDisk[]): void;
}

/** Throws CONFIG_INVALID when the file is not a list of disks: taps that do not come up would stop machines, so nobody guesses. */
export function openDiskBook(file: string, files: DurableFiles): DiskBook {
  let disks = readBook(file, files.readSync(file));
  return {
    get disks() {
      return disks;
    },
    write(next) {
      files.writeSync(file, JSON.stringify({ disks: next }, undefined, 2));
      disks = next;
    },
  };
}

function readBook(file: string, text: string | undefined): readonly BookedDisk[] {
  if (text === undefined) return [];
  try {
    return readList(readObject(JSON.parse(text), "disks"), "disks", (disk) => ({
      groupId: readName(disk, "groupId"),
      diskId: readName(disk, "diskId"),
      image: readText(disk, "image"),
      source: readText(disk, "source"),
      socket: readText(disk, "socket"),
      ...(disk["name"] === undefined ? {} : { name: readText(disk, "name") }),
    }));
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Expected the list of tapped disks in "${file}"`, {
      cause,
      hint: "Restore the file, or remove it and protect the machine again: every disk is then compared with its replica",
    });
  }
}
