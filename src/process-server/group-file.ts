/**
 * What a group's cutting must not forget over a restart: the last number it gave a cycle (a number is never used for two), whether it was fenced, and
 * how far it knows the target to be.
 */
import { readName, readObject, readWhole } from "#model/json-reader.ts";
import { readIfThere, writeDurably } from "./durable-file.ts";

export interface GroupMemory {
  /** Last number given to a cycle. Zero: none, and then the store must be asked before the first. */
  readonly cycle: number;
  /** Branch that this memory is about. */
  readonly branch: string;
  /** Group epoch in which we were fenced; 0 if not. */
  readonly fencedEpoch: number;
  /** Cycles up to here are committed on all disks. May lag behind the truth, never ahead. */
  readonly committed: number;
  /** Per disk, the last cycle known to have a commit of it. May lag. */
  readonly tails: Readonly<Record<string, number>>;
  readonly cutAtMs: number;
}

export interface GroupFile {
  readonly memory: GroupMemory;
  /** In memory only; goes to the disk with the next `save`. */
  note(change: Partial<GroupMemory>): void;
  /** Durable when it returns. */
  save(change: Partial<GroupMemory>): void;
}

const BLANK: GroupMemory = { cycle: 0, branch: "", fencedEpoch: 0, committed: 0, tails: {}, cutAtMs: 0 };

/** Throws PROTOCOL_INVALID when the file is there and says something else: a number used twice would be worse. */
export function openGroupFile(file: string): GroupFile {
  const text = readIfThere(file);
  let memory = text === undefined ? BLANK : parse(text);
  return {
    get memory() {
      return memory;
    },
    note(change) {
      memory = { ...memory, ...change };
    },
    save(change) {
      memory = { ...memory, ...change };
      writeDurably(file, JSON.stringify(memory));
    },
  };
}

function parse(text: string): GroupMemory {
  const fields = readObject(JSON.parse(text), "group");
  const tails = readObject(fields["tails"], "tails");
  return {
    cycle: readWhole(fields, "cycle"),
    branch: fields["branch"] === "" ? "" : readName(fields, "branch"),
    fencedEpoch: readWhole(fields, "fencedEpoch"),
    committed: readWhole(fields, "committed"),
    tails: Object.fromEntries(Object.keys(tails).map((diskId) => [diskId, readWhole(tails, diskId)])),
    cutAtMs: readWhole(fields, "cutAtMs"),
  };
}
