/** How long points are kept: every cut for a while, then ever sparser ones. */
import { Fault } from "../fault.ts";

export interface RetentionPolicy {
  /** Every point whose cut is at most this much older than the newest one's stays. */
  readonly journalWindowMs: number;
  /** The last point of each of so many hours, days, … that have any. */
  readonly hourly: number;
  readonly daily: number;
  readonly weekly: number;
  readonly monthly: number;
  readonly yearly: number;
}

export const HOUR_MS = 3_600_000;
export const DAY_MS: number = 24 * HOUR_MS;

export const DEFAULT_RETENTION: RetentionPolicy = {
  journalWindowMs: DAY_MS,
  hourly: 48,
  daily: 14,
  weekly: 8,
  monthly: 12,
  yearly: 0,
};

/** Anchors serve windows up to this (`anchor-choice.ts`). */
export const JOURNAL_WINDOW_MS_MOST: number = 3 * DAY_MS;
export const JOURNAL_WINDOW_MS_LEAST: number = HOUR_MS;

/** The `retention` of a group's policy as its record has it; undefined when it has none, or one that means nothing: then nothing expires. */
export function retentionOf(policy: unknown): RetentionPolicy | undefined {
  const retention = (policy as { readonly retention?: Partial<RetentionPolicy> } | undefined)?.retention;
  if (typeof retention !== "object" || retention === null) return undefined;
  const { journalWindowMs = Number.NaN, hourly = -1, daily = -1, weekly = -1, monthly = -1, yearly = -1 } = retention;
  const read = { journalWindowMs, hourly, daily, weekly, monthly, yearly };
  try {
    checkRetention(read);
  } catch {
    return undefined; // Whoever set it was told; what stands here was written by another version, or is damaged.
  }
  return read;
}

/** Throws USAGE for a policy that nobody can mean. */
export function checkRetention(policy: RetentionPolicy): void {
  const { journalWindowMs, ...counts } = policy;
  if (!(journalWindowMs >= JOURNAL_WINDOW_MS_LEAST && journalWindowMs <= JOURNAL_WINDOW_MS_MOST)) {
    throw new Fault("USAGE", `Expected a journal window of 1 h to 3 days, got ${journalWindowMs / HOUR_MS} h`);
  }
  for (const [period, count] of Object.entries(counts)) {
    if (!Number.isSafeInteger(count) || count < 0)
      throw new Fault("USAGE", `Expected a whole number of ${period} points, got ${count}`);
  }
}
