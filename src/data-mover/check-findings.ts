/**
 * What a check of a store finds: which object is not what it was, and what of the replica that touches.
 *
 * - *damage*: something that was written is not there or not what it was;
 * - *notice*: something that a person should know, and that costs no point (an object that is no part of the format, a cut that became no point).
 */
import type { FaultCode } from "#model/fault.ts";

export type ObjectKind =
  | "store"
  | "disk-claim"
  | "key"
  | "origin"
  | "commit"
  | "segment"
  | "manifest"
  | "map"
  | "group-claim"
  | "barrier"
  | "point"
  | "catalog"
  | "collection"
  | "reserved"
  | "scratch"
  | "unknown";

export interface Finding {
  readonly level: "damage" | "notice";
  readonly code: FaultCode;
  readonly kind: ObjectKind;
  readonly key: string;
  readonly message: string;
  readonly diskId?: string;
  readonly branch?: string;
  /** Blocks of the disk whose newest content at some point is lost with it; undefined when that is not known (no key), or not about blocks. */
  readonly blocks?: readonly BlockRange[];
  /** Ids of the points that cannot be read whole because of it. */
  readonly points: readonly string[];
  /** It may touch these points; without keys it cannot be said. */
  readonly suspectPoints: readonly string[];
}

export interface BlockRange {
  readonly start: number;
  readonly length: number;
}

export type NewFinding = Omit<Finding, "points" | "suspectPoints" | "level" | "blocks"> & {
  readonly level?: Finding["level"];
};

export interface Findings {
  /** Its number. The same object with the same code is found once. */
  add(finding: NewFinding): number;
  /** These blocks were lost with it. */
  touch(finding: number, block: BlockRange): void;
  affect(finding: number, pointId: string, how: "points" | "suspectPoints"): void;
  list(): Finding[];
}

interface Entry {
  readonly finding: NewFinding;
  blocks: BlockRange[] | undefined;
  readonly points: Set<string>;
  readonly suspectPoints: Set<string>;
}

export function findings(): Findings {
  const entries: Entry[] = [];
  const known = new Map<string, number>();
  return {
    add(finding) {
      const name = `${finding.code} ${finding.key}`;
      const before = known.get(name);
      if (before !== undefined) return before;
      known.set(name, entries.length);
      return entries.push({ finding, blocks: undefined, points: new Set(), suspectPoints: new Set() }) - 1;
    },
    touch(number, block) {
      (entries[number]!.blocks ??= []).push(block);
    },
    affect(number, pointId, how) {
      entries[number]![how].add(pointId);
    },
    list: () =>
      entries.map(({ finding, blocks, points, suspectPoints }) => ({
        level: "damage",
        ...finding,
        ...(blocks === undefined ? {} : { blocks: joined(blocks) }),
        points: [...points].sort(),
        suspectPoints: [...suspectPoints].filter((id) => !points.has(id)).sort(),
      })),
  };
}

/** Sorted, without overlaps, neighbours made one. */
function joined(ranges: readonly BlockRange[]): BlockRange[] {
  const found: { start: number; length: number }[] = [];
  for (const { start, length } of ranges.toSorted((a, b) => a.start - b.start)) {
    const last = found.at(-1);
    if (last !== undefined && start <= last.start + last.length)
      last.length = Math.max(last.length, start + length - last.start);
    else found.push({ start, length });
  }
  return found;
}
