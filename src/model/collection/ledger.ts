/**
 * The ledger: what of a disk's history is promised, and which objects that needs.
 *
 * It is a row of versions, each created once under the next number, so that of two who write at once one has to look again. Whatever could make an
 * object needed again (an anchor, a pin, a branch) and whatever lets one go (a floor that rises, a point that expires, a condemnation) is
 * a version of it. That, and no clock, is why nothing live is deleted:
 *
 * - *openable* positions: those above the floor of their branch, and below it those with an anchor just there. Points, pins and the parents of branches
 *   are openable in every version;
 * - a version may add only what is openable in the one before it (`checkSuccessor`), so everything it needs was needed before, or is new;
 * - only objects that are *condemned* in a version are deleted, and a version condemns nothing that it needs. No later version can need it again.
 *
 * test/simulation/collection.test.ts runs this against brute force, with readers, makers of anchors, failovers and several collectors.
 *
 * Source: docs/replication.md, "Collection".
 */

export interface Position {
  readonly branch: string;
  readonly seq: number;
}

export interface LedgerAnchor extends Position {
  /** Keys of its maps. */
  readonly maps: readonly string[];
}

export interface LedgerPin extends Position {
  readonly id: string;
}

/** Keys that will be deleted, and the tombstone that says from when on. */
export interface Condemned {
  readonly tombstone: string;
  readonly dueMs: number;
  readonly keys: readonly string[];
}

export interface Ledger {
  readonly no: number;
  /** By branch: commits up to it are no history any more. 0: all of them are. */
  readonly floors: Readonly<Record<string, number>>;
  /** Where each branch begins; undefined for `root`. */
  readonly parents: Readonly<Record<string, Position | undefined>>;
  readonly anchors: readonly LedgerAnchor[];
  /** Kept below their floors. */
  readonly points: readonly Position[];
  readonly pins: readonly LedgerPin[];
  readonly condemned: readonly Condemned[];
}

/** What the store holds, as far as collection looks: each object with the containers that it names. */
export interface Listing {
  /** Commits that count. `names`: itself and its segments. */
  readonly commits: readonly (Position & { readonly key: string; readonly names: readonly string[] })[];
  readonly maps: readonly { readonly key: string; readonly names: readonly string[] }[];
  /** Keys of the segments that are there. */
  readonly segments: readonly string[];
}

export function samePosition(one: Position, other: Position): boolean {
  return one.branch === other.branch && one.seq === other.seq;
}

export function floorOf(ledger: Ledger, branch: string): number {
  return ledger.floors[branch] ?? 0;
}

/** Whether the disk can be opened there, as far as the ledger says; that the commit exists is the caller's to know. */
export function isOpenable(ledger: Ledger, position: Position): boolean {
  const floor = floorOf(ledger, position.branch);
  // The floor itself has an anchor. Without a floor a branch is read from its parent on, which is kept openable for it.
  if (position.seq > floor || (position.seq === 0 && floor === 0)) return true;
  return ledger.anchors.some((anchor) => samePosition(anchor, position));
}

/** Positions that stay openable whatever a policy says: pins, and where branches begin that still need it. */
export function positionsInUse(ledger: Ledger): Position[] {
  const parents = Object.entries(ledger.parents).flatMap(([branch, parent]) =>
    parent !== undefined && (floorOf(ledger, branch) === 0 || isEmptyStart(ledger, branch)) ? [parent] : [],
  );
  return [...ledger.pins, ...parents].map(({ branch, seq }) => ({ branch, seq }));
}

/** Somebody holds the very start of the branch, which is its parent's state. */
function isEmptyStart(ledger: Ledger, branch: string): boolean {
  return [...ledger.pins, ...ledger.points].some((position) => position.branch === branch && position.seq === 0);
}

/** Every object that the ledger needs: anchors and what they name, commits above the floors, and the newest commit of each branch. */
export function neededKeys(ledger: Ledger, listing: Listing): Set<string> {
  const needed = new Set<string>();
  const anchored = new Set(ledger.anchors.flatMap(({ maps }) => maps));
  for (const { key, names } of listing.maps) {
    if (!anchored.has(key)) continue;
    needed.add(key);
    for (const name of names) needed.add(name);
  }
  const newest = new Map<string, number>();
  for (const { branch, seq } of listing.commits) newest.set(branch, Math.max(seq, newest.get(branch) ?? 0));
  for (const { branch, seq, key, names } of listing.commits) {
    if (seq > floorOf(ledger, branch)) for (const name of names) needed.add(name);
    // Whoever goes by an older version then meets a hole, and not an end.
    if (seq > floorOf(ledger, branch) || seq === newest.get(branch)) needed.add(key);
  }
  return needed;
}

/**
 * Objects that were needed once, and are not any more. What was never named by a commit that counts or by a map is not among them: it may be
 * on its way into a commit.
 */
export function garbageKeys(ledger: Ledger, listing: Listing): string[] {
  const needed = neededKeys(ledger, listing);
  const condemned = new Set(ledger.condemned.flatMap(({ keys }) => keys));
  const objects = [...listing.commits, ...listing.maps];
  // A newest commit stays when its segments go, and goes on naming them.
  const there = new Set([...objects.map(({ key }) => key), ...listing.segments]);
  // First what is only named, then who names it: of what was cut off between the two, nobody would know any more.
  const once = new Set([...objects.flatMap(({ names }) => names), ...objects.map(({ key }) => key)]);
  return [...once].filter((key) => there.has(key) && !needed.has(key) && !condemned.has(key));
}

/** Why `after` must not follow `before`; undefined when it may. Whoever writes a version asks this first. */
export function checkSuccessor(before: Ledger, after: Ledger): string | undefined {
  if (after.no !== before.no + 1) return `version ${after.no} cannot follow version ${before.no}`;
  const condemned = new Set([...before.condemned, ...after.condemned].flatMap(({ keys }) => keys));
  for (const anchor of after.anchors) {
    if (!isOpenable(before, anchor)) return `an anchor at ${anchor.branch}/${anchor.seq}, which is no history any more`;
    if (anchor.maps.some((map) => condemned.has(map)))
      return `an anchor at ${anchor.branch}/${anchor.seq} with a condemned map`;
  }
  for (const [branch, floor] of Object.entries(after.floors)) {
    if (floor < floorOf(before, branch)) return `the floor of ${branch} falls`;
    if (floor > 0 && !after.anchors.some((anchor) => samePosition(anchor, { branch, seq: floor })))
      return `no anchor at the floor of ${branch}`;
  }
  for (const position of [...after.points, ...positionsInUse(after)]) {
    if (!isOpenable(before, position)) return `${position.branch}/${position.seq} is no history any more`;
    if (!isOpenable(after, position)) return `${position.branch}/${position.seq} is in use and would be lost`;
  }
  return undefined;
}
