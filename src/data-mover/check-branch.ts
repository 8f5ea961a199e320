/**
 * One branch of one disk, commit after commit: which of them count, where the chain breaks, and which blocks cannot be read from there on.
 *
 * Invariants:
 * - commits are judged in their order; what is read ahead of its turn waits;
 * - `brokenFrom` only falls, and what broke behind it is not added: it is lost already;
 * - a block is lost until a commit writes it again.
 */
import { type ExtentMap, EMPTY_MAP, extentMapBuilder, overlay, SOURCE_LIMIT, SOURCE_ZERO } from "#model/extent-map.ts";
import type { CommitIndex } from "#model/format/commit-index.ts";
import { type DecodedHeader, FLAG_APP_CONSISTENT, FLAG_POINT_CLEAN, parseContainerId } from "#model/format/header.ts";
import type { Anchor } from "#model/format/manifest.ts";
import { type DiskNames, parseNumbered } from "#model/format/object-names.ts";
import type { BranchOrigin } from "#model/format/records.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { type ContainerState, lookAtContainer } from "./check-container.ts";
import {
  addFaults,
  checkSegment,
  lookOf,
  type BadFrames,
  type DiskCheckOptions,
  type NamedSegments,
} from "./check-objects.ts";
import { judge, type Position } from "./counting.ts";

/** What is known of a commit. */
export interface CommitFacts extends Position {
  readonly fence: boolean;
  readonly counts: boolean;
  readonly cycle: number;
  readonly cutAtMs: number;
  readonly clean: boolean;
  readonly appConsistent: boolean;
  readonly cycleDisks: number;
}

/** A state of the disk. */
export interface PositionState {
  /** Findings for which nothing can be read here. */
  readonly unreadable: readonly number[];
  /** Blocks that cannot be read here; `source` is the finding. */
  readonly lost: ExtentMap;
  /** Findings that may cost something here. */
  readonly suspects: readonly number[];
}

export interface BranchState {
  readonly branch: string;
  readonly origin: BranchOrigin | undefined;
  readonly commits: ReadonlyMap<number, CommitFacts>;
  readonly startHash: string | undefined;
  /** At and below the floor; none without one. */
  readonly anchors: readonly HeldAnchor[];
}

/** An anchor at or below the floor of its branch: nothing else opens the disk there. */
export interface HeldAnchor {
  readonly anchor: Anchor;
  /** Findings for which it cannot be read. */
  readonly broken: readonly number[];
}

export interface OpenBranch extends BranchState {
  /** Where the line begins, when what was before it has expired. */
  readonly floor: HeldAnchor | undefined;
  readonly commits: Map<number, CommitFacts>;
  readonly base: PositionState;
  brokenFrom: number;
  readonly broken: Set<number>;
  /** Where what is lost changes, ascending. */
  readonly lost: { readonly seq: number; readonly map: ExtentMap }[];
  readonly suspects: { readonly seq: number; readonly finding: number }[];
}

const COMMITS_AHEAD = 6;
const SEGMENTS_AT_ONCE = 4;

export function breakAt(open: OpenBranch, seq: number, ...findings: readonly number[]): void {
  if (seq > open.brokenFrom) return; // It is lost already for what came before.
  open.brokenFrom = Math.min(open.brokenFrom, seq);
  for (const finding of findings) open.broken.add(finding);
}

/** The line begins at its floor. */
export function standOn(open: OpenBranch, { anchor, broken }: HeldAnchor): void {
  if (broken.length > 0) breakAt(open, anchor.seq, ...broken);
}

export function positionOf(open: OpenBranch, seq: number): PositionState {
  // Below the floor only its own anchor counts; what is wrong with a container there may cost anything that is still read of it.
  if (open.floor !== undefined && seq < open.floor.anchor.seq) {
    const held = open.anchors.find(({ anchor }) => anchor.seq === seq);
    return { lost: EMPTY_MAP, unreadable: held?.broken ?? [], suspects: open.suspects.map(({ finding }) => finding) };
  }
  return {
    unreadable: seq >= open.brokenFrom ? [...open.broken] : [],
    lost: open.lost.findLast((one) => one.seq <= seq)?.map ?? EMPTY_MAP,
    suspects: open.suspects.filter((one) => one.seq <= seq).map(({ finding }) => finding),
  };
}

export async function checkBranch(
  options: DiskCheckOptions,
  open: OpenBranch,
  to: {
    readonly named: NamedSegments;
    readonly tally: { plainBytes: number; storedBytes: number };
    readonly epochs: ReadonlySet<number>;
  },
): Promise<void> {
  const { context, names, diskId, findings } = options;
  const { branch } = open;
  const prefix = names.journal(branch);
  const where = { diskId, branch };
  const ahead: { readonly seq: number; readonly key: string; readonly looking: Promise<ContainerState> }[] = [];
  /** The last commit that counts; undefined right after one that cannot be read. */
  let last: Position | undefined =
    open.startHash === undefined ? undefined : { epoch: 0, seq: 0, commitHash: open.startHash };
  let expected = 1;
  if (open.floor !== undefined) {
    last = open.floor.anchor;
    expected = open.floor.anchor.seq + 1;
  }

  const step = async ({ seq, key, looking }: (typeof ahead)[number]): Promise<void> => {
    const state = await looking;
    options.onRead(state.readBytes);
    if (open.floor !== undefined && seq <= open.floor.anchor.seq) {
      // No part of the line any more, and perhaps a container of something that is.
      const finding = addFaults(options, "commit", key, state, where);
      if (finding !== undefined) open.suspects.push({ seq: 0, finding });
      nameSegments(state, to.named, names);
      return;
    }
    if (seq > expected) {
      const which = seq === expected + 1 ? `Commit ${expected} is` : `Commits ${expected} to ${seq - 1} are`;
      const message = `${which} missing, and commit ${seq} is there`;
      breakAt(
        open,
        expected,
        findings.add({
          code: "OBJECT_MISSING",
          kind: "commit",
          key: names.commit(branch, expected),
          message,
          ...where,
        }),
      );
      last = undefined;
    }
    expected = seq + 1;
    const facts = factsOf(state, { branch, seq });
    let finding = addFaults(options, "commit", key, state, where);
    if (finding === undefined && facts === undefined && state.header !== undefined) {
      const { branchId, seq: number, kind } = state.header;
      const message = `It is ${kind} ${number} of branch "${branchId}"`;
      finding = findings.add({ code: "OBJECT_CORRUPT", kind: "commit", key, message, ...where });
    }
    if (facts === undefined) {
      if (finding !== undefined) breakAt(open, seq, finding);
      last = undefined;
      return;
    }
    if (!to.epochs.has(facts.epoch)) {
      const message = `Commit ${seq} of branch "${branch}" was made under epoch ${facts.epoch}, and that claim is missing`;
      findings.add({ code: "OBJECT_MISSING", kind: "disk-claim", key: names.epoch(facts.epoch), message, diskId });
    }
    const verdict = last === undefined ? "counts" : judge(last, { epoch: facts.epoch, chain: facts.chain });
    open.commits.set(seq, { ...facts, counts: verdict !== "stale" });
    if (verdict === "stale") return;
    if (verdict === "broken") {
      const message = `Commit ${seq} of branch "${branch}" does not chain to the one before it`;
      breakAt(open, seq, findings.add({ code: "CHAIN_BROKEN", kind: "commit", key, message, ...where }));
    }
    // A head that is damaged has another hash than the one that was written; one that is only closed has not.
    const closed = state.headFault?.code === "KEY_MISSING" || state.headFault?.details["key"] !== undefined;
    last = state.headFault === undefined || closed ? facts : undefined;
    if (state.headFault !== undefined && finding !== undefined) breakAt(open, seq, finding);
    if (state.bodyFault !== undefined && finding !== undefined) open.suspects.push({ seq, finding });
    if (state.index !== undefined && state.header !== undefined) {
      await followData(options, open, {
        seq,
        index: state.index,
        header: state.header,
        own: { state, finding },
        ...to,
      });
    }
  };

  for await (const { key, size } of context.store.list(prefix)) {
    const seq = parseNumbered(prefix, key);
    if (seq === undefined || seq === 0) continue; // The listing of names has said so.
    const looking = lookAtContainer(context, lookOf(options, key, size));
    looking.catch(() => undefined); // Awaited in its turn.
    ahead.push({ seq, key, looking });
    if (ahead.length > COMMITS_AHEAD) await step(ahead.shift()!);
  }
  while (ahead.length > 0) await step(ahead.shift()!);
}

/** A commit that has expired still says whose its segments were. */
function nameSegments({ index }: ContainerState, named: NamedSegments, names: DiskNames): void {
  for (const { containerId } of index?.segments ?? []) {
    const { term, counter } = parseContainerId(containerId)!; // The decoder let only such ids pass.
    named.unnamed.delete(names.segment(term, counter));
  }
}

/** What the commit's own frames and its segments have, and which blocks that costs. */
async function followData(
  options: DiskCheckOptions,
  open: OpenBranch,
  commit: {
    readonly seq: number;
    readonly index: CommitIndex;
    readonly header: DecodedHeader;
    readonly own: { readonly state: ContainerState; readonly finding: number | undefined };
    readonly named: NamedSegments;
    readonly tally: { plainBytes: number; storedBytes: number };
  },
): Promise<void> {
  const { index, own, tally } = commit;
  const bad: BadFrames[] = [{ frames: own.state.badFrames, finding: own.finding }];
  for (let at = 0; at < index.segments.length; at += SEGMENTS_AT_ONCE) {
    const part = index.segments.slice(at, at + SEGMENTS_AT_ONCE);
    bad.push(...(await Promise.all(part.map((segment) => checkSegment(options, segment, commit.named, open.branch)))));
  }
  for (const directory of index.directories) {
    for (const blocks of directory.blocks) tally.plainBytes += blocks * BLOCK_SIZE;
    for (const stored of directory.storedBytes) tally.storedBytes += stored;
  }
  const before = open.lost.at(-1)?.map ?? EMPTY_MAP;
  const anyBad = bad.some(
    ({ frames, finding }) => finding !== undefined && frames !== "none" && (frames === "all" || frames.size > 0),
  );
  if (!anyBad && before.count === 0) return;
  const { extents } = index;
  const effect = extentMapBuilder(extents.count);
  for (let run = 0; run < extents.count; run++) {
    const source = extents.source[run]!;
    const one = source < SOURCE_LIMIT ? bad[source] : undefined;
    const isBad =
      one?.finding !== undefined &&
      one.frames !== "none" &&
      (one.frames === "all" || one.frames.has(extents.frame[run]!));
    if (isBad) options.findings.touch(one.finding!, { start: extents.start[run]!, length: extents.length[run]! });
    effect.push(extents.start[run]!, extents.length[run]!, isBad ? one.finding! : SOURCE_ZERO, 0);
  }
  open.lost.push({ seq: commit.seq, map: onlyLost(overlay(before, effect.finish())) });
}

function onlyLost(map: ExtentMap): ExtentMap {
  const kept = extentMapBuilder();
  for (let run = 0; run < map.count; run++)
    if (map.source[run] !== SOURCE_ZERO) kept.push(map.start[run]!, map.length[run]!, map.source[run]!, 0);
  return kept.finish();
}

/** Undefined when it is not the commit of that place. */
function factsOf(
  state: ContainerState,
  place: { readonly branch: string; readonly seq: number },
): (Omit<CommitFacts, "counts"> & { readonly chain: string }) | undefined {
  const { header, commitHash } = state;
  if (header === undefined || commitHash === undefined) return undefined;
  if (header.branchId !== place.branch || header.seq !== place.seq) return undefined;
  if (header.kind !== "journal" && header.kind !== "fence") return undefined;
  return {
    epoch: header.epoch,
    seq: header.seq,
    commitHash,
    fence: header.kind === "fence",
    cycle: header.cycle,
    cutAtMs: header.cutMs,
    clean: (header.flags & FLAG_POINT_CLEAN) !== 0,
    appConsistent: (header.flags & FLAG_APP_CONSISTENT) !== 0,
    cycleDisks: header.cycleDisks,
    chain: Buffer.from(header.chain).toString("hex"),
  };
}
