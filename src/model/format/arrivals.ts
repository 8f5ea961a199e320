/**
 * What arrived for one commit, in the order of arrival, and what the commit then says about each block.
 *
 * A block may arrive more than once in a cycle: the sweep reads it live, and a captured write overrides it. The rule: a delta wins
 * over a sweep, whatever the order; among equals the later one wins.
 *
 * Source: docs/format.md, "Extents"; docs/replication.md on why sweep and delta share a commit.
 */
import { type ExtentMap, extentMapBuilder, MAX_RUN_BLOCKS, overlayAll, SOURCE_LIMIT } from "../extent-map.ts";
import { type FrameKind, KIND_DELTA, KIND_SWEEP } from "../frame-record.ts";

/** Runs in order of arrival. `source` 0 stands for the container they arrived in, until it gets its number in a commit. */
export interface Arrivals {
  readonly count: number;
  add(run: {
    readonly start: number;
    readonly length: number;
    readonly source: number;
    readonly frame: number;
    readonly kind: FrameKind;
  }): void;
  /** `source` of containers becomes `ordinal`; ZERO and TRIM stay. */
  forEach(
    ordinal: number,
    visit: (start: number, length: number, source: number, frame: number, kind: FrameKind) => void,
  ): void;
  clear(): void;
}

export function arrivals(): Arrivals {
  let runs = new Float64Array(4 * 256);
  let kinds = new Uint8Array(256);
  let count = 0;
  return {
    get count() {
      return count;
    },
    add(run) {
      if (run.length < 1 || run.length > MAX_RUN_BLOCKS) throw new RangeError(`Run of ${run.length} blocks`);
      if (count === kinds.length) {
        const old = { runs, kinds };
        runs = new Float64Array(runs.length * 2);
        kinds = new Uint8Array(kinds.length * 2);
        runs.set(old.runs);
        kinds.set(old.kinds);
      }
      runs[4 * count] = run.start;
      runs[4 * count + 1] = run.length;
      runs[4 * count + 2] = run.source;
      runs[4 * count + 3] = run.frame;
      kinds[count] = run.kind;
      count++;
    },
    forEach(ordinal, visit) {
      for (let index = 0; index < count; index++) {
        const source = runs[4 * index + 2]!;
        const kind = kinds[index] === KIND_SWEEP ? KIND_SWEEP : KIND_DELTA;
        visit(
          runs[4 * index]!,
          runs[4 * index + 1]!,
          source < SOURCE_LIMIT ? ordinal : source,
          runs[4 * index + 3]!,
          kind,
        );
      }
    },
    clear() {
      count = 0;
    },
  };
}

/** The extents of a commit whose containers, in the order of their ordinals, received `parts`. */
export function resolveArrivals(
  parts: readonly { readonly ordinal: number; readonly arrivals: Arrivals }[],
): ExtentMap {
  const maps: ExtentMap[] = [];
  for (const wanted of [KIND_SWEEP, KIND_DELTA]) {
    let builder = extentMapBuilder();
    let end = 0;
    for (const part of parts) {
      part.arrivals.forEach(part.ordinal, (start, length, source, frame, kind) => {
        if (kind !== wanted) return;
        if (start < end) {
          maps.push(builder.finish());
          builder = extentMapBuilder();
        }
        builder.push(start, length, source, frame);
        end = start + length;
      });
    }
    maps.push(builder.finish());
  }
  return overlayAll(maps);
}
