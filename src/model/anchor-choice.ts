/**
 * Which anchors a manifest goes on listing.
 *
 * All of the last three days, so that any cut of a journal window is a bounded replay away; of older days and of each branch the last one, so
 * that a manifest grows by one line a day, and an old cut that is still there needs a day's commits at most.
 * Ages count from the newest cut, not from a clock.
 */
import type { Anchor } from "./format/manifest.ts";
import { DAY_MS, JOURNAL_WINDOW_MS_MOST } from "./retention/policy.ts";

/** The longest journal window that a policy offers. */
export const ANCHOR_WINDOW_MS: number = JOURNAL_WINDOW_MS_MOST;

/** `isNeeded`: whoever has only this anchor to open the disk by, or reads by it. */
export function thinAnchors(anchors: readonly Anchor[], isNeeded: (anchor: Anchor) => boolean = () => false): Anchor[] {
  const newestMs = Math.max(0, ...anchors.map(({ cutAtMs }) => cutAtMs));
  const lastOfDay = new Map<string, Anchor>();
  for (const anchor of anchors) {
    const day = `${anchor.branch}/${Math.floor(anchor.cutAtMs / DAY_MS)}`;
    if (anchor.seq >= (lastOfDay.get(day)?.seq ?? 0)) lastOfDay.set(day, anchor);
  }
  const kept = new Set(lastOfDay.values());
  return anchors.filter(
    (anchor) => anchor.cutAtMs > newestMs - ANCHOR_WINDOW_MS || kept.has(anchor) || isNeeded(anchor),
  );
}
