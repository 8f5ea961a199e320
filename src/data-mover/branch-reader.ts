/**
 * Reads the commits of a branch that count, in order: those of its parents up to where it starts, then its own.
 *
 * Invariants:
 * - what is yielded is a prefix of the branch's one history, whoever writes meanwhile: slots never change once taken;
 * - a hole in the row of slots is CHAIN_BROKEN, never a shorter history;
 * - the end is found by LIST, never by probing for the next slot.
 *
 * Source: docs/replication.md, "Which commits count".
 */
import { Fault, isFault } from "#model/fault.ts";
import { decodeBranchOrigin, type BranchOrigin } from "#model/format/records.ts";
import { damagedRecord } from "#model/format/json-record.ts";
import { parseNumbered } from "#model/format/object-names.ts";
import type { CommitHeader } from "./commit-codec.ts";
import { advance, chainBroken, judge, type Position, type Tail } from "./counting.ts";
import { storeOptions, type DiskContext } from "./disk-context.ts";

/** What the first commit of `root` chains to. */
export const NO_COMMIT = "0".repeat(32);

export interface CountedCommit {
  readonly key: string;
  readonly header: CommitHeader;
  /** The object from its start, at least header and index: whoever wants the index need not fetch it again. */
  readonly prefix: Uint8Array;
}

/**
 * The commits that count on `branch`, oldest first, from the start of its line (or the newest checkpoint on it) up to `upTo`.
 *
 * `upTo` is a position on this branch, `seq` 0 its start; without, everything that is there.
 * Throws: CHAIN_BROKEN (hole, wrong chain, `upTo` missing or another commit than named), OBJECT_CORRUPT, NOT_FOUND (no such branch).
 */
export async function* readBranch(
  disk: DiskContext,
  branch: string,
  upTo?: { readonly seq: number; readonly commitHash?: string },
): AsyncGenerator<CountedCommit, Tail, void> {
  const origin = await readOrigin(disk, branch);
  const checkpoint = await disk.checkpoint?.(branch);
  let last: Tail;
  if (checkpoint !== undefined && checkpoint.seq <= (upTo?.seq ?? checkpoint.seq)) {
    last = checkpoint;
  } else {
    if (origin.parent !== undefined) yield* readBranch(disk, origin.parent.branch, origin.parent); // [branch isolation]
    last = branchStart(origin);
  }
  const from = last.seq;
  for await (const found of readSlots(disk, branch, from, upTo?.seq)) {
    const verdict = judge(last, found.header);
    if (verdict === "stale") continue;
    if (verdict === "broken")
      throw chainBroken(disk.diskId, branch, found.header.seq, "does not chain to the one before it");
    last = advance(last, found.header);
    yield found;
  }
  if (upTo !== undefined && (upTo.seq !== last.seq || (upTo.commitHash ?? last.commitHash) !== last.commitHash)) {
    throw chainBroken(disk.diskId, branch, upTo.seq, `was expected to count, but the branch counts up to ${last.seq}`);
  }
  return last;
}

/** Objects in the slots after `from`, in order, up to `until`. The slots between are listed once, then read a few ahead. */
async function* readSlots(
  disk: DiskContext,
  branch: string,
  from: number,
  until: number | undefined,
): AsyncGenerator<CountedCommit, void, void> {
  if (until !== undefined && until <= from) return;
  const ahead: Promise<CountedCommit>[] = [];
  try {
    for await (const seq of listSlots(disk, branch, from, until)) {
      const reading = readCommit(disk, branch, seq);
      reading.catch(() => undefined); // Awaited in its turn below; without this a failed read ahead would end the process.
      ahead.push(reading);
      if (ahead.length > READ_AHEAD) yield await ahead.shift()!;
      if (seq === until) break; // What comes behind is not asked for, not even whether there is a hole.
    }
    while (ahead.length > 0) yield await ahead.shift()!;
  } finally {
    await Promise.allSettled(ahead);
  }
}

const READ_AHEAD = 8;

/**
 * Numbers of the taken slots after `from`, in order; with `until`, no more are asked for than up to there, for an entry of a listing may
 * cost the store as much as a read. Throws CHAIN_BROKEN at a hole.
 */
export async function* listSlots(
  disk: DiskContext,
  branch: string,
  from: number,
  until?: number,
): AsyncGenerator<number, void, void> {
  const prefix = disk.names.journal(branch);
  let last = from;
  let startAfter = disk.names.commit(branch, from);
  for (;;) {
    const limit = until === undefined ? undefined : until - last;
    let entries = 0;
    const options = { ...storeOptions(disk), startAfter, ...(limit !== undefined && { limit }) };
    for await (const { key } of disk.store.list(prefix, options)) {
      entries++;
      startAfter = key;
      const seq = parseNumbered(prefix, key);
      if (seq === undefined) continue; // Not ours; a scrub reports such objects.
      if (seq !== last + 1) throw chainBroken(disk.diskId, branch, last + 1, `is missing, but commit ${seq} is there`);
      last = seq;
      yield seq;
    }
    // What is not ours has taken places of the limit.
    if (limit === undefined || entries < limit || last >= until!) return;
  }
}

/** The commit in a slot. Throws OBJECT_MISSING, OBJECT_CORRUPT (also when it says that it belongs elsewhere). */
export async function readCommit(disk: DiskContext, branch: string, seq: number): Promise<CountedCommit> {
  const key = disk.names.commit(branch, seq);
  let length = disk.codec.firstReadBytes;
  for (;;) {
    const prefix = await disk.store.get(key, { ...storeOptions(disk), range: { offset: 0, length } });
    const header = inspected(disk, key, prefix);
    if ("needBytes" in header) {
      if (prefix.length < length || header.needBytes <= length) {
        throw new Fault("OBJECT_CORRUPT", `Object "${key}" ends before its index does`, { details: { key } });
      }
      length = header.needBytes;
      continue;
    }
    if (header.diskId !== disk.diskId || header.branch !== branch || header.seq !== seq) {
      throw new Fault(
        "OBJECT_CORRUPT",
        `Object "${key}" says that it is commit ${header.seq} of "${header.branch}" of disk "${header.diskId}"`,
        {
          details: { key },
        },
      );
    }
    return { key, header, prefix };
  }
}

/** A fault about the bytes of an object names the object. */
function inspected(disk: DiskContext, key: string, prefix: Uint8Array): ReturnType<DiskContext["codec"]["inspect"]> {
  try {
    return disk.codec.inspect(prefix);
  } catch (error) {
    if (!isFault(error, "OBJECT_CORRUPT") || error.details["key"] !== undefined) throw error;
    throw new Fault(error.code, `Object "${key}": ${error.message}`, {
      details: { ...error.details, key },
      hint: error.hint ?? "Recover an older point, or read the object from another copy of the bucket.",
      cause: error,
    });
  }
}

/** Like `readCommit`; undefined when the slot is free. */
export async function findCommit(disk: DiskContext, branch: string, seq: number): Promise<CommitHeader | undefined> {
  try {
    return (await readCommit(disk, branch, seq)).header;
  } catch (error) {
    if (isFault(error, "OBJECT_MISSING")) return undefined;
    throw error;
  }
}

/**
 * Throws NOT_FOUND when there is no such branch, OBJECT_CORRUPT. That of `root` says nothing that its commits do not prove (they chain to nothing),
 * and everything hangs on it: where it is damaged or missing, and commits are there, it is taken for what it must have been.
 */
export async function readOrigin(disk: DiskContext, branch: string): Promise<BranchOrigin> {
  const key = disk.names.origin(branch);
  try {
    const origin = decodeBranchOrigin(await disk.store.get(key, storeOptions(disk)), key);
    if (origin.branch === branch && (origin.parent === undefined) === (branch === ROOT_BRANCH)) return origin;
    throw damagedRecord(key, `it is the origin of branch "${origin.branch}"`);
  } catch (error) {
    const known =
      isFault(error, "OBJECT_MISSING") || isFault(error, "OBJECT_CORRUPT") || isFault(error, "FORMAT_UNSUPPORTED");
    if (known && branch === ROOT_BRANCH && (await hasCommits(disk, branch))) return LOST_ROOT;
    if (!isFault(error, "OBJECT_MISSING")) throw error;
    throw new Fault("NOT_FOUND", `Disk "${disk.diskId}" has no branch "${branch}" in this store`, {
      details: { diskId: disk.diskId, branch },
      cause: error,
    });
  }
}

const ROOT_BRANCH = "root";
const LOST_ROOT: BranchOrigin = { branch: ROOT_BRANCH, reason: "root", operation: "", createdAtMs: 0 };

async function hasCommits(disk: DiskContext, branch: string): Promise<boolean> {
  for await (const entry of disk.store.list(disk.names.journal(branch), { ...storeOptions(disk), limit: 1 }))
    return entry.size > 0;
  return false;
}

/** Seq 0 of a branch. Its epoch is 0: any commit may follow. */
export function branchStart(origin: BranchOrigin): Tail {
  const position = { epoch: 0, seq: 0, commitHash: origin.parent?.commitHash ?? NO_COMMIT };
  return { ...position, data: { ...position, cycle: 0, cutAtMs: 0, writerId: "" } };
}

/**
 * The newest commit that counts, and the newest with data, reading from the end only as far as needed.
 *
 * A commit's writer chained it to what it had itself found to count, so two commits that are linked settle the rest; what lies
 * before them a reader will check. With `below`, commits of that epoch and newer ones are left out.
 * Throws CHAIN_BROKEN for a hole, or when the newest commits are linked to nothing.
 */
export async function readTail(disk: DiskContext, branch: string, below = Number.POSITIVE_INFINITY): Promise<Tail> {
  const start = branchStart(await readOrigin(disk, branch));
  for (;;) {
    const checkpoint = await disk.checkpoint?.(branch);
    try {
      return await tailAfter(disk, branch, checkpoint ?? start, below);
    } catch (error) {
      if (!isFault(error, "CHAIN_BROKEN") && !isFault(error, "OBJECT_MISSING")) throw error;
      // Old commits may have been collected since the checkpoint was read; then there is a newer one.
      const newer = await disk.checkpoint?.(branch);
      if (newer === undefined || newer.seq === checkpoint?.seq) throw error;
    }
  }
}

async function tailAfter(disk: DiskContext, branch: string, base: Tail, below: number): Promise<Tail> {
  let end = base.seq;
  for await (const seq of listSlots(disk, branch, base.seq)) end = seq;

  const later: CommitHeader[] = [];
  for (let seq = end; seq > base.seq; seq--) {
    const { header } = await readCommit(disk, branch, seq);
    if (header.epoch >= below) continue;
    const { last, links, broken } = climb(advance(base, header), later);
    if (!broken && links > 0 && last.data !== base.data) return last;
    later.unshift(header);
  }
  const { last, broken } = climb(base, later);
  if (broken) throw chainBroken(disk.diskId, branch, end, "and those before it are not linked to each other");
  return last;
}

/** Walk up from `base`, which counts. */
function climb(base: Tail, later: readonly CommitHeader[]): { last: Tail; links: number; broken: boolean } {
  let last = base;
  let links = 0;
  for (const header of later) {
    const verdict = judge(last, header);
    if (verdict === "broken") return { last, links, broken: true };
    if (verdict === "stale") continue;
    last = advance(last, header);
    links++;
  }
  return { last, links, broken: false };
}

/**
 * The commits that count at and before `from`, newest first, down to the start of the branch (or its checkpoint).
 * `from` must be known to count; every step down is proven by the chain.
 */
export async function* walkBack(
  disk: DiskContext,
  branch: string,
  from: Position,
): AsyncGenerator<CommitHeader, void, void> {
  const base = (await disk.checkpoint?.(branch)) ?? branchStart(await readOrigin(disk, branch));
  if (from.seq < base.seq) return; // Only fences since; the checkpoint vouches for what is before it.
  let wanted = from.commitHash;
  for (let seq = from.seq; seq > base.seq; seq--) {
    const { header } = await readCommit(disk, branch, seq);
    if (header.commitHash !== wanted) continue; // Stale.
    yield header;
    wanted = header.chain;
  }
  if (wanted !== base.commitHash)
    throw chainBroken(disk.diskId, branch, from.seq, "does not lead back to the start of the branch");
}
