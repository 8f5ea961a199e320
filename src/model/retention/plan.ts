/**
 * Which points stay, and why each of them does; which go, and why none keeps them. Nothing here deletes: an activity executes the plan, a dry
 * run prints it, and `reasonKept` of every list comes from it.
 *
 * The last copy is sacred:
 * - ages count from the newest point, never from the wall clock: a replica that gets nothing new loses nothing old;
 * - expiry stops as a whole while the source is lost, a failover is not committed, or somebody holds the group;
 * - the newest point that can be restored and the newest that was verified never go, whatever the policy says;
 * - a point that cannot be restored does not stand in for one that can: it counts in no period.
 *
 * A period keeps its last point, and the most recent periods that have one count. So planning after each new point, and doing what the plan
 * says each time, ends with the same points as planning once over all that ever were; a plan that is late deletes nothing that it would
 * not have deleted in time (test/model/retention.property.test.ts).
 */
import { type Calendar, PERIODS, type Period, utcCalendar } from "./calendar.ts";
import type { RetentionPolicy } from "./policy.ts";

export interface RetentionPoint {
  readonly barrier: number;
  readonly cutAtMs: number;
  /** All that it names is there. */
  readonly restorable: boolean;
  /** It was restored or booted, and found good. */
  readonly verified: boolean;
  /** Name of its bookmark. */
  readonly bookmark?: string;
  /** Who needs just this point, in words: an export that is not hydrated, a restore, a hold on the point. */
  readonly pins?: readonly string[];
}

/** Why nothing of the group may expire. */
export type ExpiryStop = "source-lost" | "failover-uncommitted" | "group-held" | "not-enabled";

export type KeepReason =
  | { readonly because: "newest" | "newest-verified" | "journal-window" }
  | { readonly because: "period"; readonly period: Period; readonly name: string }
  | { readonly because: "bookmark"; readonly name: string }
  | { readonly because: "pin"; readonly who: string }
  | { readonly because: "stopped"; readonly stop: ExpiryStop };

export type PointPlan =
  | { readonly barrier: number; readonly cutAtMs: number; readonly keep: true; readonly reasons: readonly KeepReason[] }
  | { readonly barrier: number; readonly cutAtMs: number; readonly keep: false; readonly text: string };

export interface RetentionPlan {
  /** The cut from which ages count; 0 without points. */
  readonly newestMs: number;
  readonly stops: readonly ExpiryStop[];
  /** Newest first. */
  readonly points: readonly PointPlan[];
}

/**
 * `points` in any order. A list that was cut off at its old end gives each point that is in it the reasons that the whole list gives.
 */
export function planRetention(
  points: readonly RetentionPoint[],
  policy: RetentionPolicy,
  standing: { readonly stops: readonly ExpiryStop[]; readonly calendar?: Calendar },
): RetentionPlan {
  const { stops, calendar = utcCalendar } = standing;
  const newestFirst = points.toSorted((a, b) => b.cutAtMs - a.cutAtMs || b.barrier - a.barrier);
  const restorable = newestFirst.filter((point) => point.restorable);
  // A group of which nothing can be restored has no point from which ages could count: nothing goes.
  const newestMs = (restorable[0] ?? newestFirst[0])?.cutAtMs ?? 0;
  const lastOf = periodsKept(restorable, policy, calendar);
  const newestVerified = restorable.find((point) => point.verified);

  const reasonsOf = (point: RetentionPoint): KeepReason[] => {
    const reasons: KeepReason[] = [];
    if (point === restorable[0]) reasons.push({ because: "newest" });
    if (point === newestVerified) reasons.push({ because: "newest-verified" });
    if (point.bookmark !== undefined) reasons.push({ because: "bookmark", name: point.bookmark });
    for (const who of point.pins ?? []) reasons.push({ because: "pin", who });
    if (newestMs - point.cutAtMs <= policy.journalWindowMs) reasons.push({ because: "journal-window" });
    reasons.push(...(lastOf.get(point) ?? []));
    if (reasons.length === 0) for (const stop of stops) reasons.push({ because: "stopped", stop });
    return reasons;
  };
  return {
    newestMs,
    stops,
    points: newestFirst.map((point): PointPlan => {
      const { barrier, cutAtMs } = point;
      const reasons = reasonsOf(point);
      if (reasons.length > 0) return { barrier, cutAtMs, keep: true, reasons };
      if (restorable.length === 0) return { barrier, cutAtMs, keep: true, reasons: [{ because: "newest" }] };
      return { barrier, cutAtMs, keep: false, text: textOfGoing(point, policy, newestMs) };
    }),
  };
}

/** One line for people: the reasons in the order of their weight. */
export function textOfKeeping(reasons: readonly KeepReason[]): string {
  return reasons.map(textOf).join(", ");
}

const PERIOD_NAMES: Readonly<Record<Period, string>> = {
  hourly: "hour",
  daily: "day",
  weekly: "week of",
  monthly: "month",
  yearly: "year",
};

const STOP_TEXTS: Readonly<Record<ExpiryStop, string>> = {
  "source-lost": "nothing expires while the source is lost",
  "failover-uncommitted": "nothing expires before the failover is committed",
  "group-held": "nothing expires while the group is held",
  "not-enabled": "nothing expires yet",
};

function textOf(reason: KeepReason): string {
  switch (reason.because) {
    case "newest":
      return "newest point";
    case "newest-verified":
      return "newest verified point";
    case "journal-window":
      return "journal window";
    case "period":
      return `last of ${PERIOD_NAMES[reason.period]} ${reason.name}`;
    case "bookmark":
      return `bookmark "${reason.name}"`;
    case "pin":
      return reason.who;
    case "stopped":
      return STOP_TEXTS[reason.stop];
  }
}

function textOfGoing(point: RetentionPoint, policy: RetentionPolicy, newestMs: number): string {
  const hours = (ms: number): string => `${Math.round(ms / 360_000) / 10} h`;
  const age = `${hours(newestMs - point.cutAtMs)} older than the newest point, journal window ${hours(policy.journalWindowMs)}`;
  return point.restorable ? `${age}; its periods keep a later point` : `${age}; it cannot be restored`;
}

/** The last point of each period that counts, with the periods whose last it is. */
function periodsKept(
  newestFirst: readonly RetentionPoint[],
  policy: RetentionPolicy,
  calendar: Calendar,
): ReadonlyMap<RetentionPoint, KeepReason[]> {
  const kept = new Map<RetentionPoint, KeepReason[]>();
  for (const period of PERIODS) {
    let left = policy[period];
    let last = "";
    for (const point of newestFirst) {
      const name = calendar(period, point.cutAtMs);
      if (name === last) continue;
      if (left-- === 0) break;
      last = name;
      kept.set(point, [...(kept.get(point) ?? []), { because: "period", period, name }]);
    }
  }
  return kept;
}
