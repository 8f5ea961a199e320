/**
 * One round of expiry at a site: the master target lets the points of its groups go that no policy keeps, and collects what nothing needs. A Schedule of the site starts it
 * (main/retention-schedule.ts); it decides nothing, and a round that was missed or cut short is made up for by the next.
 */
import { setCurrentDetails } from "@temporalio/workflow";
import type { GroupExpiry } from "#ports/master-target.ts";
import { act } from "./act.ts";
import type { RetentionInput } from "./messages.ts";

/** What a round may take; the next begins an hour after this one began. */
const BUDGET_MS = 20 * 60_000;

export async function retention({ site }: RetentionInput): Promise<readonly GroupExpiry[]> {
  setCurrentDetails(`Lets points expire at ${site}, and deletes what nothing needs any more.`);
  const groups = await act(
    "expirePoints",
    { site, budgetMs: BUDGET_MS },
    { at: site, summary: `expiry at ${site}`, attempts: 3 },
  );
  setCurrentDetails(groups.map(lineOf).join("\n\n") || "There is no group here.");
  return groups;
}

function lineOf({ groupId, stopped, fault, ...done }: GroupExpiry): string {
  if (fault !== undefined) return `**${groupId}**: ${fault.code}: ${fault.message}`;
  if (stopped.length > 0) return `**${groupId}**: nothing expires (${stopped.join(", ")})`;
  return `**${groupId}**: ${done.pointsKept} points kept, ${done.pointsLeaving} leaving, ${done.deleted} objects deleted, ${done.condemned} condemned`;
}
