/** Points of a group as the API looks at them. */
import { isFault } from "#model/fault.ts";
import { namesOnePoint, selectPoint } from "#model/point-selector.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { GroupState } from "../workflows/messages.ts";
import type { ApiDependencies } from "./dependencies.ts";
import { lineOf, siteAccess } from "./sites.ts";

/** All points; with a selector that chooses along a line of history, those of the line that the group is on. */
export async function pointsOf(
  dependencies: ApiDependencies,
  state: GroupState,
  selector?: string,
): Promise<readonly RecoveryPoint[]> {
  const line = selector === undefined || namesOnePoint(selector) ? {} : lineOf(state);
  return await siteAccess(dependencies, state.targetSite).masterTarget.listPoints({ groupId: state.groupId, ...line });
}

/**
 * A point that is named must be there before anything is fenced or stopped: a slip of the pen changes nothing. What is newest is for the
 * move to choose. A target that does not answer does not hold up the order; the move will say so.
 */
export async function assertSelectable(dependencies: ApiDependencies, group: string, point: string): Promise<void> {
  if (point.startsWith("latest")) return;
  const state = await dependencies.workflows.state(group);
  let points: readonly RecoveryPoint[];
  try {
    points = await pointsOf(dependencies, state);
  } catch (error) {
    if (isFault(error) && error.retryable) return;
    throw error;
  }
  selectPoint(points, point, dependencies.clock.now());
}
