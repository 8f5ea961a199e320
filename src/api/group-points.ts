/** Points of a group as the API looks at them. */
import { Fault, isFault } from "#model/fault.ts";
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

/**
 * A name means one point: a second bookmark of that name is refused, also when nothing was written in between and it would be the same point.
 * A call that is repeated is no second bookmark.
 */
export async function assertNameFree(
  dependencies: ApiDependencies,
  state: GroupState,
  { name, operationId }: { readonly name: string; readonly operationId: string },
): Promise<void> {
  if (state.operations.some((one) => one.operationId === operationId)) return;
  let points: readonly RecoveryPoint[];
  try {
    points = await pointsOf(dependencies, state);
  } catch (error) {
    if (isFault(error) && error.retryable) return; // The bookmark itself will say so.
    throw error;
  }
  const taken = points.find((point) => point.name === name);
  if (taken === undefined) return;
  throw new Fault(
    "REFUSED",
    `Bookmark "@${name}" of "${state.name}" exists, cut at ${new Date(taken.cutAtMs).toISOString()}`,
    {
      details: { point: taken.id },
      hint: "Choose another name; a bookmark keeps its point for ever",
    },
  );
}
