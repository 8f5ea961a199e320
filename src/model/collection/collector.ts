/**
 * The collector of one disk: a state machine. It is told what it asked for, and says what to do next; the shell performs it.
 *
 * ```
 *  claim ─► read ─► flatten … ─► publish ─► read ─► bury ─► publish ─► read ─► delete … ─► publish ─► forget ─► done
 *           which points stay     floors rise   what is not     it is        what is due             the tombstone
 *                                 points go     needed          condemned
 * ```
 *
 * Invariants:
 * - nothing is deleted but the keys of a condemnation in the newest version of the ledger, which are due: its grace is for readers without a pin, and
 *   safety does not rest on it. A clock that jumps makes it shorter or longer;
 * - what somebody else published meanwhile is read before anything more is decided;
 * - an error, a newer collector or a version that may not follow ends the pass. The next one begins anew, and finds everything in the ledger;
 * - two collectors at once are wasteful and harmless.
 */
import { unreachable } from "../fault.ts";
import {
  checkSuccessor,
  type Condemned,
  floorOf,
  garbageKeys,
  isOpenable,
  type Ledger,
  type LedgerAnchor,
  type Listing,
  type Position,
  positionsInUse,
  samePosition,
} from "./ledger.ts";

/** What a pass goes by; read anew whenever the ledger may have changed. */
export interface CollectorView {
  readonly ledger: Ledger;
  /** Read after the ledger: what it lacks was deleted before a version that follows could condemn it. */
  readonly listing: Listing;
  readonly newestTerm: number;
  readonly nowMs: number;
  /** What the retention plan keeps. */
  readonly kept: readonly Position[];
  /** By branch: the oldest commit that the journal window needs, or that stopped expiry keeps. Missing: all. */
  readonly windowFrom: Readonly<Record<string, number>>;
}

export type CollectorEvent =
  | { readonly type: "started"; readonly newestTerm: number }
  | { readonly type: "claimed"; readonly term: number }
  | { readonly type: "claim-taken"; readonly newestTerm: number }
  | { readonly type: "seen"; readonly view: CollectorView }
  | { readonly type: "flattened"; readonly anchor: LedgerAnchor }
  | { readonly type: "published" }
  | { readonly type: "publish-taken" }
  | { readonly type: "buried" }
  | { readonly type: "deleted" }
  | { readonly type: "forgotten" }
  | { readonly type: "failed" };

export type CollectorEffect =
  | { readonly do: "claim"; readonly term: number }
  | { readonly do: "read" }
  | { readonly do: "flatten"; readonly position: Position }
  | { readonly do: "publish"; readonly ledger: Ledger }
  /** Create the tombstone; not yet an order to delete anything. */
  | { readonly do: "bury"; readonly condemned: Condemned }
  | { readonly do: "delete"; readonly keys: readonly string[] }
  | { readonly do: "forget"; readonly tombstone: string };

export type CollectorState =
  | { readonly stage: "claiming" }
  | { readonly stage: "raising"; readonly term: number; readonly made: readonly LedgerAnchor[] }
  | { readonly stage: "condemning"; readonly term: number; readonly buried?: Condemned }
  | { readonly stage: "deleting"; readonly term: number; readonly deleted?: string }
  | { readonly stage: "ended"; readonly why: "done" | "superseded" | "failed" };

export interface CollectorStep {
  readonly next: CollectorState;
  /** At most one: its answer is the next event. */
  readonly effect?: CollectorEffect;
}

export interface CollectorOptions {
  /** From condemnation to deletion. */
  readonly graceMs: number;
  /** A name that nobody else draws. */
  readonly tombstoneName: string;
  /** Keys in one tombstone at most. */
  readonly batch: number;
}

export const COLLECTOR_START: CollectorState = { stage: "claiming" };

const ended = (why: "done" | "superseded" | "failed"): CollectorStep => ({ next: { stage: "ended", why } });
const READ: CollectorEffect = { do: "read" };

export function stepCollector(now: CollectorState, event: CollectorEvent, options: CollectorOptions): CollectorStep {
  if (event.type === "failed") return ended("failed");
  switch (now.stage) {
    case "claiming":
      if (event.type === "claimed") return { next: { stage: "raising", term: event.term, made: [] }, effect: READ };
      if (event.type === "started" || event.type === "claim-taken")
        return { next: now, effect: { do: "claim", term: event.newestTerm + 1 } };
      return unexpected(now, event);
    case "raising":
      if (event.type === "seen") return superseded(now, event.view) ?? raise(now, event.view);
      // What was published meanwhile may need more; what was flattened stays good.
      if (event.type === "flattened") return { next: { ...now, made: [...now.made, event.anchor] }, effect: READ };
      if (event.type === "publish-taken") return { next: now, effect: READ };
      if (event.type === "published") return { next: { stage: "condemning", term: now.term }, effect: READ };
      return unexpected(now, event);
    case "condemning":
      if (event.type === "seen") return superseded(now, event.view) ?? condemn(now, event.view, options);
      if (event.type === "buried" || event.type === "publish-taken") return { next: now, effect: READ };
      if (event.type === "published") return { next: { stage: "deleting", term: now.term }, effect: READ };
      return unexpected(now, event);
    case "deleting":
      if (event.type === "seen") return superseded(now, event.view) ?? remove(now, event.view);
      if (event.type === "deleted" || event.type === "publish-taken") return { next: now, effect: READ };
      if (event.type === "published") return { next: now, effect: { do: "forget", tombstone: now.deleted! } };
      if (event.type === "forgotten") return { next: { stage: "deleting", term: now.term }, effect: READ };
      return unexpected(now, event);
    case "ended":
      return unexpected(now, event);
    default:
      return unreachable(now);
  }
}

function superseded(now: { readonly term: number }, view: CollectorView): CollectorStep | undefined {
  return view.newestTerm > now.term ? ended("superseded") : undefined;
}

/** Floors to the newest anchors that the windows leave behind; what stays below gets anchors of its own first. */
function raise(now: CollectorState & { readonly stage: "raising" }, view: CollectorView): CollectorStep {
  const { ledger, listing, kept, windowFrom } = view;
  const there = new Set(listing.maps.map(({ key }) => key));
  const usable = now.made.filter(
    (anchor) =>
      isOpenable(ledger, anchor) &&
      !isAnchored(ledger, anchor) &&
      // Nobody names them yet: another collector may have taken them for garbage.
      anchor.maps.every((map) => there.has(map)),
  );
  const anchors = [...ledger.anchors, ...usable];
  const floors = { ...ledger.floors };
  for (const branch of Object.keys(ledger.parents)) {
    const least = windowFrom[branch];
    if (least === undefined) continue;
    const behind = anchors.filter((anchor) => anchor.branch === branch && anchor.seq < least);
    floors[branch] = Math.max(floorOf(ledger, branch), ...behind.map(({ seq }) => seq));
  }
  const raised = { ...ledger, floors };
  const stay = [...kept.filter((position) => isOpenable(ledger, position)), ...positionsInUse(raised)];
  const below = stay.filter(
    ({ branch, seq }) => seq < floorOf(raised, branch) || (seq === 0 && floorOf(raised, branch) > 0),
  );
  const without = below.find((position) => !anchors.some((anchor) => samePosition(anchor, position)));
  if (without !== undefined) return { next: now, effect: { do: "flatten", position: without } };

  const after: Ledger = {
    ...raised,
    no: ledger.no + 1,
    points: unique(below.filter((position) => kept.some((one) => samePosition(one, position)))),
    anchors: anchors.filter(
      (anchor) =>
        anchor.seq >= floorOf(raised, anchor.branch) || below.some((position) => samePosition(anchor, position)),
    ),
  };
  if (checkSuccessor(ledger, after) !== undefined) return ended("failed");
  return { next: now, effect: { do: "publish", ledger: after } };
}

function condemn(
  now: CollectorState & { readonly stage: "condemning" },
  { ledger, listing, nowMs }: CollectorView,
  { graceMs, tombstoneName, batch }: CollectorOptions,
): CollectorStep {
  const garbage = garbageKeys(ledger, listing);
  const known = ledger.condemned.some(({ tombstone }) => tombstone === now.buried?.tombstone);
  if (garbage.length === 0 || known) return { next: { stage: "deleting", term: now.term }, effect: READ };
  if (now.buried === undefined) {
    const condemned = { tombstone: tombstoneName, dueMs: nowMs + graceMs, keys: garbage.slice(0, batch) };
    return { next: { ...now, buried: condemned }, effect: { do: "bury", condemned } };
  }
  // Somebody may have published since: only what is still garbage is condemned, whatever the tombstone lists.
  const keys = now.buried.keys.filter((key) => garbage.includes(key));
  const after = { ...ledger, no: ledger.no + 1, condemned: [...ledger.condemned, { ...now.buried, keys }] };
  return { next: now, effect: { do: "publish", ledger: after } };
}

function remove(now: CollectorState & { readonly stage: "deleting" }, { ledger, nowMs }: CollectorView): CollectorStep {
  const gone = ledger.condemned.find(({ tombstone }) => tombstone === now.deleted);
  if (gone !== undefined) {
    const condemned = ledger.condemned.filter((one) => one !== gone);
    return { next: now, effect: { do: "publish", ledger: { ...ledger, no: ledger.no + 1, condemned } } };
  }
  const due = ledger.condemned.find(({ dueMs }) => dueMs <= nowMs);
  if (due === undefined) return ended("done");
  return { next: { ...now, deleted: due.tombstone }, effect: { do: "delete", keys: due.keys } };
}

function isAnchored(ledger: Ledger, position: Position): boolean {
  return ledger.anchors.some((anchor) => samePosition(anchor, position));
}

function unique(positions: readonly Position[]): Position[] {
  return positions.filter((one, index) => positions.findIndex((other) => samePosition(one, other)) === index);
}

function unexpected(now: CollectorState, event: CollectorEvent): never {
  throw new RangeError(`Collector in stage "${now.stage}" was told "${event.type}"`);
}
