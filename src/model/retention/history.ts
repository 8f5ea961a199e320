/**
 * Does the history reach as far back as the policy says? If not, until when it will, as long as points go on being made.
 *
 * A young group is *growing*: nothing is wrong. A hole, where nothing was cut for longer than a point may be away from the next, is *broken*: what was
 * not replicated then cannot be made up for, and the window is whole again only when the hole has left it.
 */
import type { RetentionPolicy } from "./policy.ts";

export type HistoryState =
  | { readonly state: "met" }
  | { readonly state: "none" }
  | { readonly state: "growing"; readonly reachesMs: number; readonly metAtMs: number }
  | { readonly state: "broken"; readonly fromMs: number; readonly toMs: number; readonly metAtMs: number };

/**
 * `cuts` of restorable points, ascending. `gapMs`: longest time between two cuts that is no hole; an idle disk makes no points, so the
 * caller counts a cut that found nothing changed too.
 * `metAtMs` counts as the cuts do: from the newest one on.
 */
export function historyOf(
  cuts: readonly number[],
  policy: Pick<RetentionPolicy, "journalWindowMs">,
  gapMs: number,
): HistoryState {
  const newest = cuts.at(-1);
  const oldest = cuts[0];
  if (newest === undefined || oldest === undefined) return { state: "none" };
  const from = newest - policy.journalWindowMs;
  for (let index = cuts.length - 1; index > 0 && cuts[index]! > from; index--) {
    const [fromMs, toMs] = [cuts[index - 1]!, cuts[index]!];
    if (toMs - fromMs > gapMs) return { state: "broken", fromMs, toMs, metAtMs: toMs + policy.journalWindowMs };
  }
  if (oldest <= from) return { state: "met" };
  return { state: "growing", reachesMs: newest - oldest, metAtMs: oldest + policy.journalWindowMs };
}
