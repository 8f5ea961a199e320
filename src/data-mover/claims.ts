/**
 * Claims: who may write a disk. `epochs/{n}` are create-only and never deleted, so the highest one is the law.
 *
 * Invariants:
 * - an epoch has one holder; a writer's epoch is its own, whatever else runs in its process;
 * - only a move changes the active site or the branch; a writer's claim repeats both;
 * - while a move is under way its claims say so, and nobody may write: a writer of the new owner that began on one disk before the last
 *   one was fenced would tear the group's history;
 * - `groupEpoch` never falls, so all claims of one move stand together at the end of the list.
 *
 * Source: docs/replication.md, "Claims".
 */
import { Fault } from "#model/fault.ts";
import { toHex } from "#model/format/fields.ts";
import { damagedRecord } from "#model/format/json-record.ts";
import { parseNumbered } from "#model/format/object-names.ts";
import { decodeDiskClaim, encodeDiskClaim, type DiskClaim } from "#model/format/records.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, storeOptions, withRetries, type DiskContext, type StoreContext } from "./disk-context.ts";

/** Numbers behind `prefix` after `after`, in order. */
export async function listNumbers(context: StoreContext, prefix: string, after = ""): Promise<number[]> {
  return withRetries(context, async () => {
    const numbers: number[] = [];
    const options = { ...storeOptions(context), ...(after === "" ? {} : { startAfter: after }) };
    for await (const { key } of context.store.list(prefix, options)) {
      const number = parseNumbered(prefix, key);
      if (number !== undefined) numbers.push(number);
    }
    return numbers;
  });
}

/** What reading claims needs of a disk: neither its keys nor its codec. */
export type ClaimContext = StoreContext & Pick<DiskContext, "diskId" | "names">;

/** The highest claim. Throws NOT_FOUND when the disk has none. */
export async function readHighestClaim(disk: ClaimContext): Promise<DiskClaim> {
  const highest = (await listNumbers(disk, disk.names.epochs)).at(-1);
  if (highest === undefined) {
    throw new Fault("NOT_FOUND", `Disk "${disk.diskId}" is not in this store`, { details: { diskId: disk.diskId } });
  }
  return readClaim(disk, highest);
}

export async function readClaim(disk: ClaimContext, epoch: number): Promise<DiskClaim> {
  const key = disk.names.epoch(epoch);
  const claim = decodeDiskClaim(await withRetries(disk, () => disk.store.get(key, storeOptions(disk))), key);
  if (claim.epoch === epoch) return claim;
  throw damagedRecord(key, `it is the claim of epoch ${claim.epoch}`);
}

/** The oldest claim that is newer than `epoch`, if there is one. */
export async function readNewerClaim(disk: DiskContext, epoch: number): Promise<DiskClaim | undefined> {
  const newer = (await listNumbers(disk, disk.names.epochs, disk.names.epoch(epoch)))[0];
  return newer === undefined ? undefined : readClaim(disk, newer);
}

/**
 * Take the epoch after `before`. Resolves to undefined when it was taken by another: look at the highest claim again, and check again.
 * A claim that lands after its process gave up repeats what the highest claim said, so it changes nothing but the term.
 */
export async function claimNext(
  disk: DiskContext,
  before: number,
  claim: Omit<DiskClaim, "epoch" | "claimedAtMs">,
): Promise<DiskClaim | undefined> {
  const mine: DiskClaim = { ...claim, epoch: before + 1, claimedAtMs: disk.clock.now() };
  const key = disk.names.epoch(mine.epoch);
  const taken = await createOnce<DiskClaim>(disk, {
    key,
    body: encodeDiskClaim(mine),
    look: async () => {
      const data = await readIfThere(disk, key);
      return data && decodeDiskClaim(data, key);
    },
    isMine: (found) => found.holder === mine.holder,
  });
  return taken === undefined ? mine : undefined;
}

/** A name that no other attempt has, not even of this process: `process` for people, and eight random bytes, of which `prefix` may give the first (hex). */
export function uniqueHolder(
  context: StoreContext,
  process: string,
  prefix = "",
): { readonly holder: string; readonly writerId: string } {
  const writerId = prefix + toHex(context.random.bytes(8 - prefix.length / 2));
  return { holder: `${process}/${writerId}`, writerId };
}

/** `details.reason` says which: the disk was `moved` (site or branch), or another writer of the same site has `superseded` this one. */
export function fencedBy(
  disk: DiskContext,
  claim: DiskClaim,
  own: { readonly site: string; readonly branch: string; readonly epoch: number },
): Fault {
  const moved = claim.moving === true || claim.activeSite !== own.site || claim.branch !== own.branch;
  const owner = `site "${claim.activeSite}" on branch "${claim.branch}" since epoch ${claim.epoch}`;
  return new Fault(
    "FENCED",
    claim.moving === true
      ? `Disk "${disk.diskId}" is being taken for ${owner}, by operation "${claim.operation}"; nobody may write it until that is done`
      : moved
        ? `Disk "${disk.diskId}" belongs to ${owner}; site "${own.site}" may not write branch "${own.branch}"`
        : `Disk "${disk.diskId}" has a newer writer of the same site: epoch ${claim.epoch} after ${own.epoch}`,
    {
      details: {
        reason: moved ? "moved" : "superseded",
        diskId: disk.diskId,
        epoch: own.epoch,
        newerEpoch: claim.epoch,
        activeSite: claim.activeSite,
        branch: claim.branch,
      },
      hint: moved
        ? "The group was failed over or moved: run `leeward group show` to see where it is active, and reprotect or undo to replicate from here again."
        : "Another process has taken over; open the disk again if this one should go on.",
    },
  );
}
