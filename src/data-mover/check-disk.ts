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
import { type ExtentMap, EMPTY_MAP, extentMapBuilder, overlay, SOURCE_LIMIT, SOURCE_ZERO } from "#model/extent-map.ts";
import type { CommitIndex, SegmentReference } from "#model/format/commit-index.ts";
import { type DecodedHeader, parseContainerId } from "#model/format/header.ts";
import { type DiskNames, parseNumbered, segmentName } from "#model/format/object-names.ts";
import { decodeBranchOrigin, encodeBranchOrigin, type BranchOrigin } from "#model/format/records.ts";
import { NO_COMMIT } from "./branch-reader.ts";
import { type ContainerState, lookAtContainer } from "./check-container.ts";
import type { Findings, ObjectKind } from "./check-findings.ts";
import type { CheckRecords } from "./check-records.ts";
import { judge, type Position } from "./counting.ts";
import type { StoreContext } from "./disk-context.ts";
import type { Keyring } from "./keyring.ts";
import { listFolders } from "./store-groups.ts";

export interface DiskCheckOptions {
  readonly context: StoreContext;
  readonly diskId: string;
  readonly names: DiskNames;
  readonly storeId: string | undefined;
  readonly keyring: Keyring | undefined;
  readonly findings: Findings;
  readonly records: CheckRecords;
  /** Whether this container is read to its end. */
  readonly sample: (key: string) => boolean;
  readonly onRead: (bytes: number) => void;
}

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

export interface BranchState {
  readonly branch: string;
  readonly origin: BranchOrigin | undefined;
  readonly commits: ReadonlyMap<number, CommitFacts>;
  readonly startHash: string | undefined;
}

interface OpenBranch extends BranchState {
  readonly commits: Map<number, CommitFacts>;
  readonly base: PositionState;
  brokenFrom: number;
  readonly broken: Set<number>;
  /** Where what is lost changes, ascending. */
  readonly lost: { readonly seq: number; readonly map: ExtentMap }[];
  readonly suspects: { readonly seq: number; readonly finding: number }[];
}

const SOUND: PositionState = { unreadable: [], lost: EMPTY_MAP, suspects: [] };
const COMMITS_AHEAD = 6;
const SEGMENTS_AT_ONCE = 4;

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

  const origins = await readOrigins();
  for (const { branch, origin, fault } of inOrder(origins)) {
    const parent = origin?.parent;
    const base = parent === undefined ? SOUND : stateAt(parent.branch, parent.seq);
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
    };
    if (base.unreadable.length > 0) breakAt(open, 0, ...base.unreadable);
    // Without its record nobody finds what a branch starts from; only of `root` that is known (branch-reader.ts).
    if (fault !== undefined && branch !== "root") breakAt(open, 0, fault);
    if (parent !== undefined) checkParent(open, branches.get(parent.branch));
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
    const there = start.seq === 0 ? parent?.startHash : parent?.commits.get(start.seq)?.commitHash;
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

interface NamedSegments {
  readonly sizes: ReadonlyMap<string, number>;
  readonly unnamed: Set<string>;
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

function breakAt(open: OpenBranch, seq: number, ...findings: readonly number[]): void {
  if (seq > open.brokenFrom) return; // It is lost already for what came before.
  open.brokenFrom = Math.min(open.brokenFrom, seq);
  for (const finding of findings) open.broken.add(finding);
}

function positionOf(open: OpenBranch, seq: number): PositionState {
  return {
    unreadable: seq >= open.brokenFrom ? [...open.broken] : [],
    lost: open.lost.findLast((one) => one.seq <= seq)?.map ?? EMPTY_MAP,
    suspects: open.suspects.filter((one) => one.seq <= seq).map(({ finding }) => finding),
  };
}

async function checkBranch(
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

  const step = async ({ seq, key, looking }: (typeof ahead)[number]): Promise<void> => {
    const state = await looking;
    options.onRead(state.readBytes);
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
    for (const blocks of directory.blocks) tally.plainBytes += blocks * 4096;
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

interface BadFrames {
  readonly frames: ReadonlySet<number> | "all" | "none";
  readonly finding: number | undefined;
}

async function checkSegment(
  options: DiskCheckOptions,
  segment: SegmentReference,
  named: NamedSegments,
  branch: string,
): Promise<BadFrames> {
  const { context, names, diskId, findings } = options;
  const id = parseContainerId(segment.containerId)!; // The decoder let only such ids pass.
  const key = names.segment(id.term, id.counter);
  const size = named.sizes.get(key);
  const where = { kind: "segment" as const, key, diskId, branch };
  if (size === undefined)
    return {
      frames: "all",
      finding: findings.add({ ...where, code: "OBJECT_MISSING", message: "A commit names it, and it is not there" }),
    };
  named.unnamed.delete(key);
  const state = await lookAtContainer(context, lookOf(options, key, size));
  options.onRead(state.readBytes);
  const finding = addFaults(options, "segment", key, state, { diskId, branch });
  if (state.headFault !== undefined) return { frames: "all", finding };
  if (state.headSha256 === undefined || Buffer.compare(state.headSha256, segment.headSha256) !== 0)
    return {
      frames: "all",
      finding: findings.add({ ...where, code: "OBJECT_CORRUPT", message: "It is not the one that its commit names" }),
    };
  return { frames: state.badFrames, finding };
}

function wrongSegment(
  { findings, diskId }: DiskCheckOptions,
  key: string,
  { header }: ContainerState,
): number | undefined {
  const id = header === undefined ? undefined : parseContainerId(header.containerId);
  if (header?.kind === "segment" && id !== undefined && key.endsWith(segmentName(id.term, id.counter)))
    return undefined;
  const message = `It is the ${header?.kind ?? "object"} with container id ${header?.containerId ?? "unknown"}`;
  return findings.add({ code: "OBJECT_CORRUPT", kind: "segment", key, message, diskId });
}

function lookOf(options: DiskCheckOptions, key: string, size: number) {
  const { keyring, storeId, diskId } = options;
  return { key, size, whole: options.sample(key), keyring, storeId, diskId };
}

/** What is wrong with a container as a finding; what keeps it closed is found at the key. */
function addFaults(
  { findings, names, diskId }: DiskCheckOptions,
  kind: ObjectKind,
  key: string,
  state: ContainerState,
  more: { readonly diskId?: string; readonly branch?: string } = { diskId },
): number | undefined {
  const fault = state.headFault ?? state.bodyFault;
  if (fault !== undefined) {
    const at = fault.details["key"];
    if (typeof at === "string" && at.startsWith(names.keys)) {
      const code = fault.code === "KEY_MISSING" ? "OBJECT_MISSING" : fault.code;
      return findings.add({ code, kind: "key", key: at, message: fault.message, diskId });
    }
    return findings.add({ code: fault.code, kind, key, message: fault.message, ...more });
  }
  if (state.badFrames.size > 0) {
    const which = [...state.badFrames].slice(0, 8).join(", ");
    const message = `${state.badFrames.size} of its frames do not hold (${which}${state.badFrames.size > 8 ? ", …" : ""})`;
    return findings.add({ code: "OBJECT_CORRUPT", kind, key, message, ...more });
  }
  const { footerFault } = state;
  if (footerFault !== undefined) {
    findings.add({
      code: footerFault.code,
      kind,
      key,
      message: `${footerFault.message}; what it holds can be read`,
      ...more,
    });
  }
  return undefined;
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
    clean: (header.flags & 2) !== 0,
    appConsistent: (header.flags & 4) !== 0,
    cycleDisks: header.cycleDisks,
    chain: Buffer.from(header.chain).toString("hex"),
  };
}
