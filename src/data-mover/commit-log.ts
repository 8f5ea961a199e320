/**
 * The commit log of one disk: how a process becomes its writer, and how a commit becomes durable.
 *
 * There is no lock, no lease and no clock in it. Three things in the store decide:
 * - *claims* (claims.ts): an epoch per writer, create-only; the highest one is the law;
 * - *slots*: `journal/{seq}`, create-only; each is decided once, by whoever comes first;
 * - the *fence*: an empty commit by which a new writer ends the branch's history for all older ones before it reads its source.
 *
 * What follows, and is checked by test/simulation against any order of lost, late and doubled requests and crashes:
 * - an acknowledged commit counts, for every reader, for ever;
 * - at most one commit counts per slot, and epochs never fall along a branch;
 * - a writer that is no longer the newest acknowledges nothing, however long it slept.
 *
 * The marks in brackets name the safety steps; test/simulation/teeth.test.ts removes each and must find what breaks.
 * Source: docs/replication.md.
 */
import { Fault } from "#model/fault.ts";
import { findCommit, readTail } from "./branch-reader.ts";
import { claimNext, fencedBy, readHighestClaim, readNewerClaim, uniqueHolder } from "./claims.ts";
import type { CommitHeader, CommitPlace, SealedCommit } from "./commit-codec.ts";
import { advance, chainBroken, judge, type DataPosition, type Position, type Tail } from "./counting.ts";
import { createOnce } from "./create-once.ts";
import type { DiskContext } from "./disk-context.ts";

export interface OpenRequest {
  /** Site of the source for which this process writes. */
  readonly site: string;
  readonly branch: string;
  /** This process, for people. */
  readonly holder: string;
  readonly operation: string;
  /** 8 hex digits: the life of the process server for which is written. The writer's id begins with them. Default: random. */
  readonly sourceLife?: string;
}

export interface CommitRequest {
  readonly cycle: number;
  readonly cutAtMs: number;
  /** Called once per slot that is tried. What it returns is put as it is until the slot is decided. */
  readonly seal: (place: CommitPlace) => SealedCommit | Promise<SealedCommit>;
}

export interface DiskWriter {
  readonly diskId: string;
  readonly branch: string;
  readonly epoch: number;
  readonly writerId: string;
  /** Newest commit; after opening, this writer's fence. */
  readonly tail: Position;
  /** Newest commit with data: what a barrier names of this disk, and where the source goes on. All zero at the start of a branch. */
  readonly data: DataPosition;
  /**
   * Make a commit durable; one at a time. Resolves once it counts for ever.
   *
   * Throws FENCED (see `fencedBy`), CHAIN_BROKEN, and what the store threw when it kept failing. After any of them the writer is
   * done, for its last commit may have landed or not: open again, and look at `data`.
   */
  commit(request: CommitRequest): Promise<DataPosition>;
  /**
   * Throws FENCED when somebody newer has claimed the disk. To be called for every member after writing a barrier for a cut in which
   * nothing changed, before it is acknowledged: no commit of that cut has looked.
   */
  assertNewest(): Promise<void>;
}

/**
 * Become the writer of a branch. Resolves after the fence: nothing of an older epoch can follow it, so what `data` says is final.
 * Read the source *to ship* only now. (The store's probe, step 1, is the caller's: MasterTarget.probeStore.)
 *
 * Throws FENCED when the claims name another site or branch, or somebody newer came meanwhile.
 */
export async function openWriter(disk: DiskContext, request: OpenRequest): Promise<DiskWriter> {
  const { site, branch } = request;
  const { holder, writerId } = uniqueHolder(disk, request.holder, request.sourceLife);
  const epoch = await claimAsWriter(disk, request, holder);
  const own = { site, branch, epoch, writerId };

  const listed = await readTail(disk, branch); // Step 3.
  await assertNewest(disk, own, listed); // [step 4]
  const fenced = await append(disk, own, listed, (place) => disk.codec.sealFence(place)); // [step 5]
  return writerAt(disk, own, fenced);
}

interface Own {
  readonly site: string;
  readonly branch: string;
  readonly epoch: number;
  readonly writerId: string;
}

/** Step 2: the highest claim must name our site and branch; then take the next epoch. */
async function claimAsWriter(disk: DiskContext, request: OpenRequest, holder: string): Promise<number> {
  const { site, branch, operation } = request;
  for (;;) {
    const highest = await readHighestClaim(disk);
    const ours = highest.activeSite === site && highest.branch === branch && highest.moving !== true;
    if (!ours) throw fencedBy(disk, highest, { site, branch, epoch: 0 }); // [step 2]
    const { groupEpoch } = highest;
    const claim = await claimNext(disk, highest.epoch, { activeSite: site, branch, groupEpoch, operation, holder });
    if (claim !== undefined) return claim.epoch;
  }
}

/** Also step 4: the tail was listed after our claim, so a newer writer may be in it already. */
async function assertNewest(disk: DiskContext, own: Own, tail: Position): Promise<void> {
  const newer = await readNewerClaim(disk, own.epoch);
  if (newer !== undefined) throw fencedBy(disk, newer, own);
  if (tail.epoch > own.epoch) throw overtaken(disk, own, tail.epoch);
}

function writerAt(disk: DiskContext, own: Own, opened: Tail): DiskWriter {
  let tail = opened;
  let state: "ready" | "committing" | "done" = "ready";
  return {
    diskId: disk.diskId,
    branch: own.branch,
    epoch: own.epoch,
    writerId: own.writerId,
    get tail() {
      return tail;
    },
    get data() {
      return tail.data;
    },
    async commit({ cycle, cutAtMs, seal }) {
      if (state !== "ready") throw new RangeError(`Writer of disk "${disk.diskId}" is ${state}`);
      state = "committing";
      try {
        const { epoch, seq, commitHash } = await append(disk, own, tail, seal);
        const position = { epoch, seq, commitHash };
        tail = { ...position, data: { ...position, cycle, cutAtMs, writerId: own.writerId } };
      } finally {
        state = "done";
      }
      state = "ready";
      return tail.data;
    },
    assertNewest: () => assertNewest(disk, own, tail), // [quiet barrier]
  };
}

/** Steps 5, c and d: the tail after a commit of ours that counts, and that nobody newer can know nothing of. */
async function append(disk: DiskContext, own: Own, before: Tail, seal: CommitRequest["seal"]): Promise<Tail> {
  const taken = await takeSlot(disk, own, before, seal);
  if ("header" in taken) throw overtaken(disk, own, taken.header.epoch);
  const newer = await readNewerClaim(disk, own.epoch); // [step d]
  if (newer !== undefined) throw fencedBy(disk, newer, own);
  return taken.tail;
}

/**
 * Put one commit of `place.epoch` after `before`, wherever the first free slot is: commits of older epochs that came first are
 * taken into the chain if they count. Resolves to the tail with our commit, or to the commit of the same or a newer epoch that ends the search.
 */
export async function takeSlot(
  disk: DiskContext,
  { branch, epoch, writerId }: { readonly branch: string; readonly epoch: number; readonly writerId: string },
  before: Tail,
  seal: CommitRequest["seal"],
): Promise<{ readonly tail: Tail } | { readonly header: CommitHeader; readonly before: Tail }> {
  let last = before;
  for (let seq = before.seq + 1; ; seq++) {
    const sealed = await seal({ branch, epoch, seq, chain: last.commitHash, writerId });
    const found = await createOnce(disk, {
      key: disk.names.commit(branch, seq),
      body: sealed.body, // [same bytes]
      look: () => findCommit(disk, branch, seq),
      isMine: (header) => header.commitHash === sealed.commitHash,
    });
    if (found === undefined) return { tail: { epoch, seq, commitHash: sealed.commitHash, data: last.data } };
    if (found.epoch >= epoch) return { header: found, before: last };
    const verdict = judge(last, found);
    if (verdict === "broken") throw chainBroken(disk.diskId, branch, seq, "does not chain to the one before it");
    if (verdict === "counts") last = advance(last, found);
  }
}

function overtaken(disk: DiskContext, own: Own, epoch: number): Fault {
  return new Fault(
    "FENCED",
    `Disk "${disk.diskId}", branch "${own.branch}": epoch ${own.epoch} found a commit of epoch ${epoch} in its place`,
    {
      details: { reason: "superseded", diskId: disk.diskId, branch: own.branch, epoch: own.epoch, newerEpoch: epoch },
      hint: "Another process has taken over; open the disk again if this one should go on.",
    },
  );
}
