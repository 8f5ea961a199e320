/**
 * Looks at everything of one disk: claims, keys, and every line of its history, oldest commit first.
 *
 * What damage costs is followed along the history: the blocks that a damaged frame was to answer for are lost to every later state until
 * a newer commit writes them again. So one pass says, for any position on any branch, which blocks cannot be read there and why.
 *
 * Invariants:
 * - what cannot be read is followed by what can: one finding does not hide the next;
 * - a position behind a broken link is unreadable, whatever else is sound (that is what every reader does);
 * - memory grows with the number of commits and what is damaged, not with the data.
 */
import { EMPTY_MAP } from "#model/extent-map.ts";
import type { DiskNames } from "#model/format/object-names.ts";
import { decodeBranchOrigin, encodeBranchOrigin, type BranchOrigin } from "#model/format/records.ts";
import { NO_COMMIT } from "./branch-reader.ts";
import {
  breakAt,
  checkBranch,
  positionOf,
  standOn,
  type BranchState,
  type HeldAnchor,
  type OpenBranch,
  type PositionState,
} from "./check-branch.ts";
import { lookAtContainer } from "./check-container.ts";
import { checkLedger } from "./check-ledger.ts";
import { addFaults, lookOf, wrongSegment, type DiskCheckOptions, type NamedSegments } from "./check-objects.ts";
import { listFolders } from "./store-groups.ts";

export interface DiskState {
  readonly diskId: string;
  readonly names: DiskNames;
  readonly branches: ReadonlyMap<string, BranchState>;
  stateAt(branch: string, seq: number, barrier: number): PositionState;
  readonly tally: DiskTally;
}

export interface DiskTally {
  /** Frames as they were hashed, and as they are stored; 0 without a key. */
  readonly plainBytes: number;
  readonly storedBytes: number;
  /** Segments that no commit names, left by cycles that failed. Unknown without a key. */
  readonly unreferencedBytes: number | undefined;
}

const SOUND: PositionState = { unreadable: [], lost: EMPTY_MAP, suspects: [] };

export async function checkDisk(options: DiskCheckOptions): Promise<DiskState> {
  const { context, names, diskId, keyring, findings, records } = options;
  const epochs = await records.diskClaims(names, diskId);
  await records.keys(names, { diskId, keyring, storeId: options.storeId });
  const segments = new Map<string, number>();
  for await (const { key, size } of context.store.list(names.segments)) segments.set(key, size);
  const unnamed = new Set(segments.keys());
  const named: NamedSegments = { sizes: segments, unnamed };
  const tally = { plainBytes: 0, storedBytes: 0, unreferencedBytes: undefined as number | undefined };
  const branches = new Map<string, OpenBranch>();
  const segmentSuspects: { readonly cycle: number; readonly finding: number }[] = [];

  const stateAt = (branch: string, seq: number): PositionState => {
    const found = branches.get(branch);
    if (found === undefined) return SOUND; // Whoever names it has said so.
    return positionOf(found, seq);
  };

  const held = await heldBelow();
  const origins = await readOrigins();
  for (const { branch, origin, fault } of inOrder(origins)) {
    const parent = origin?.parent;
    const floor = held.floorOf(branch);
    const base = parent === undefined || floor !== undefined ? SOUND : stateAt(parent.branch, parent.seq);
    const open: OpenBranch = {
      branch,
      origin,
      commits: new Map(),
      startHash: parent?.commitHash ?? (branch === "root" ? NO_COMMIT : undefined),
      base,
      brokenFrom: Number.POSITIVE_INFINITY,
      broken: new Set(),
      lost: base.lost.count === 0 ? [] : [{ seq: 0, map: base.lost }],
      suspects: base.suspects.map((finding) => ({ seq: 0, finding })),
      floor,
      anchors: held.anchorsOf(branch),
    };
    if (open.floor !== undefined) standOn(open, open.floor);
    else if (base.unreadable.length > 0) breakAt(open, 0, ...base.unreadable);
    // Without its record nobody finds what a branch starts from; only of `root` that is known (branch-reader.ts).
    if (fault !== undefined && branch !== "root") breakAt(open, 0, fault);
    if (parent !== undefined && open.floor === undefined) checkParent(open, branches.get(parent.branch));
    branches.set(branch, open);
    await checkBranch(options, open, { named, tally, epochs });
  }

  if (keyring === undefined) {
    for (const [key, size] of segments) {
      const state = await lookAtContainer(context, lookOf(options, key, size));
      options.onRead(state.readBytes);
      const finding = addFaults(options, "segment", key, state) ?? wrongSegment(options, key, state);
      if (finding !== undefined) segmentSuspects.push({ cycle: state.header?.cycle ?? 0, finding });
    }
  } else {
    // Their commits are gone, and maps still name them.
    for (const key of [...unnamed].filter((one) => held.named.has(one))) {
      unnamed.delete(key);
      const state = await lookAtContainer(context, lookOf(options, key, segments.get(key)!));
      options.onRead(state.readBytes);
      const finding = addFaults(options, "segment", key, state) ?? wrongSegment(options, key, state);
      if (finding !== undefined) segmentSuspects.push({ cycle: state.header?.cycle ?? 0, finding });
    }
    tally.unreferencedBytes = [...unnamed].reduce((sum, key) => sum + segments.get(key)!, 0);
  }
  return {
    diskId,
    names,
    branches,
    tally,
    stateAt(branch, seq, barrier) {
      const state = stateAt(branch, seq);
      const more = segmentSuspects.filter(({ cycle }) => cycle <= barrier).map(({ finding }) => finding);
      return more.length === 0 ? state : { ...state, suspects: [...state.suspects, ...more] };
    },
  };

  /** What the manifests promise below the floors. */
  async function heldBelow() {
    const there = new Set(segments.keys());
    for await (const { key } of context.store.list(names.branches)) there.add(key);
    const { ledger, anchors, broken, named: inMaps } = await checkLedger(options, there);
    const anchorsOf = (branch: string): HeldAnchor[] =>
      anchors
        .filter((anchor) => anchor.branch === branch && anchor.seq <= (ledger.floors[branch] ?? 0))
        .map((anchor) => ({ anchor, broken: broken.get(anchor) ?? [] }));
    return {
      named: inMaps,
      anchorsOf,
      floorOf: (branch: string) => anchorsOf(branch).find(({ anchor }) => anchor.seq === ledger.floors[branch]),
    };
  }

  /** The record of every branch that has anything. */
  async function readOrigins() {
    const found: { branch: string; origin: BranchOrigin | undefined; fault: number | undefined }[] = [];
    for (const branch of await listFolders(context, names.branches)) {
      const key = names.origin(branch);
      const read = await records.read(key, {
        kind: "origin",
        more: { diskId, branch },
        decode: (data) => decodeBranchOrigin(data, key),
        encode: encodeBranchOrigin,
        wrong: (origin) => (origin.branch === branch ? undefined : `It is the origin of branch "${origin.branch}"`),
      });
      found.push({ branch, origin: read.record, fault: read.finding });
    }
    return found;
  }

  function checkParent(open: OpenBranch, parent: OpenBranch | undefined): void {
    const start = open.origin!.parent!; // The caller has one.
    const kept = parent?.anchors.find(({ anchor }) => anchor.seq === start.seq)?.anchor.commitHash;
    const there = start.seq === 0 ? parent?.startHash : (parent?.commits.get(start.seq)?.commitHash ?? kept);
    if (there === start.commitHash || (parent !== undefined && positionOf(parent, start.seq).unreadable.length > 0))
      return;
    breakAt(
      open,
      0,
      findings.add({
        code: "CHAIN_BROKEN",
        kind: "origin",
        key: names.origin(open.branch),
        message: `It starts from commit ${start.seq} of branch "${start.branch}" with hash ${start.commitHash}, and that is ${there === undefined ? "not there" : `another one (${there})`}`,
        diskId,
        branch: open.branch,
      }),
    );
  }
}

/** Parents before children. What has no intact record, or hangs on itself, comes last. */
function inOrder<Item extends { readonly branch: string; readonly origin: BranchOrigin | undefined }>(
  items: readonly Item[],
): Item[] {
  const done = new Set<string>();
  const ordered: Item[] = [];
  for (let left = [...items]; left.length > 0;) {
    const ready = left.filter(
      ({ origin }) => origin !== undefined && (origin.parent === undefined || done.has(origin.parent.branch)),
    );
    const next = ready.length > 0 ? ready : left;
    for (const item of next) {
      ordered.push(item);
      done.add(item.branch);
    }
    left = left.filter((item) => !next.includes(item));
  }
  return ordered;
}
