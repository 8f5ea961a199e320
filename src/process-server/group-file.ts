/**
 * What a group's cutting must not forget over a restart: the last number it gave a cycle (a number is never used for two), whether it was fenced, and
 * how far it knows the target to be, and which disks must be compared as a whole.
 */
import { Fault } from "#model/fault.ts";
import { readName, readObject, readText, readWhole } from "#model/json-reader.ts";
import type { DurableFiles } from "#ports/durable-files.ts";

export interface GroupMemory {
  /** Last number given to a cycle. Zero: none, and then the store must be asked before the first. */
  readonly cycle: number;
  /** Branch that this memory is about. */
  readonly branch: string;
  /** Store that it is about; "" until one has said its id. */
  readonly storeId: string;
  /** Group epoch in which we were fenced; 0 if not. */
  readonly fencedEpoch: number;
  /** Per disk, the last cycle known to have a commit of it. May lag. */
  readonly tails: Readonly<Record<string, number>>;
  readonly cutAtMs: number;
  /** Disks to compare as a whole before the next cut, and why. Forgotten only when their taps have taken note. */
  readonly resyncs: Readonly<Record<string, string>>;
}

export interface GroupFile {
  readonly memory: GroupMemory;
  /** In memory only; goes to the disk with the next `save`. */
  note(change: Partial<GroupMemory>): void;
  /** Durable when it returns. */
  save(change: Partial<GroupMemory>): void;
}

const BLANK: GroupMemory = { cycle: 0, branch: "", storeId: "", fencedEpoch: 0, tails: {}, cutAtMs: 0, resyncs: {} };

/** Throws CONFIG_INVALID when the file is there and cannot be read: a number given twice would be worse than not starting. */
export function openGroupFile(file: string, files: DurableFiles): GroupFile {
  const text = files.readSync(file);
  let memory = text === undefined ? BLANK : parse(file, text);
  return {
    get memory() {
      return memory;
    },
    note(change) {
      memory = { ...memory, ...change };
    },
    save(change) {
      memory = { ...memory, ...change };
      files.writeSync(file, JSON.stringify(memory));
    },
  };
}

function parse(file: string, text: string): GroupMemory {
  try {
    return parseMemory(text);
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Expected the memory of a group in "${file}"`, {
      cause,
      hint: "Remove the file when this site's target is reachable: the numbers go on from what the store knows",
    });
  }
}

function parseMemory(text: string): GroupMemory {
  const fields = readObject(JSON.parse(text), "group");
  const tails = readObject(fields["tails"], "tails");
  const resyncs = readObject(fields["resyncs"] ?? {}, "resyncs");
  return {
    cycle: readWhole(fields, "cycle"),
    branch: fields["branch"] === "" ? "" : readName(fields, "branch"),
    storeId: fields["storeId"] === undefined || fields["storeId"] === "" ? "" : readText(fields, "storeId"),
    fencedEpoch: readWhole(fields, "fencedEpoch"),
    tails: Object.fromEntries(Object.keys(tails).map((diskId) => [diskId, readWhole(tails, diskId)])),
    cutAtMs: readWhole(fields, "cutAtMs"),
    resyncs: Object.fromEntries(Object.keys(resyncs).map((diskId) => [diskId, readText(resyncs, diskId)])),
  };
}
