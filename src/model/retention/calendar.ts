/**
 * Which hour, day, week, month and year an instant belongs to. Two instants are in the same period exactly when the names are equal.
 *
 * A site may want its own days; whoever plans passes the calendar. Names are for people too: they stand in the plan.
 */
import { DAY_MS } from "./policy.ts";

export const PERIODS = ["hourly", "daily", "weekly", "monthly", "yearly"] as const;
export type Period = (typeof PERIODS)[number];

export type Calendar = (period: Period, timeMs: number) => string;

/** Days begin at midnight UTC, weeks on Monday. A week is named by its Monday. */
export const utcCalendar: Calendar = (period, timeMs) => {
  const text = new Date(period === "weekly" ? mondayOf(timeMs) : timeMs).toISOString();
  return text.slice(0, NAME_LENGTH[period]);
};

const NAME_LENGTH = { hourly: 13, daily: 10, weekly: 10, monthly: 7, yearly: 4 } as const;

function mondayOf(timeMs: number): number {
  const day = Math.floor(timeMs / DAY_MS);
  return (day - ((day + 3) % 7)) * DAY_MS; // Day 0 of 1970 was a Thursday.
}
