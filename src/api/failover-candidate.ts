/**
 * `leeward failover` alone, at three in the morning: for each group the newest point of each grade and its age, what blocks it, and the very
 * command to type.
 */
import { isFault } from "#model/fault.ts";
import { refusalOf } from "#model/group-phase.ts";
import { selectPoint } from "#model/point-selector.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { GroupState } from "../workflows/messages.ts";
import type { FailoverCandidate } from "./contract.ts";
import type { ApiDependencies } from "./dependencies.ts";
import { moveFacts } from "./dry-run.ts";
import { lineOf, look, lookAtGroup, siteAccess } from "./sites.ts";

export async function failoverCandidate(dependencies: ApiDependencies, state: GroupState): Promise<FailoverCandidate> {
  const { masterTarget } = siteAccess(dependencies, state.targetSite);
  const [live, points] = await Promise.all([
    lookAtGroup(dependencies, state),
    look(dependencies, () => masterTarget.listPoints({ groupId: state.groupId, ...lineOf(state) })),
  ]);
  const facts = moveFacts(dependencies, state, live, (points?.length ?? 0) > 0);
  const planned = refusalOf(facts, "planned-failover");
  const forced = refusalOf(facts, "failover", { sourceLost: true });
  const blockers = [
    ...(points === undefined ? [`The master target of site "${state.targetSite}" does not answer`] : []),
    ...(forced === undefined
      ? planned === undefined
        ? []
        : [`${planned.message}. ${planned.hint}`]
      : [`${forced.message}. ${forced.hint}`]),
  ];
  const command =
    planned === undefined
      ? facts.reversed === true
        ? `leeward failback ${state.name} --yes`
        : `leeward failover ${state.name} --planned --yes`
      : forced === undefined
        ? `leeward failover ${state.name} --source-lost --yes`
        : undefined;
  const moves = state.allowedOperations.flatMap((operation) => COMMANDS[operation]?.(state.name) ?? []);
  const first = command ?? `leeward group show ${state.name}`;
  return {
    group: state.name,
    phase: state.phase,
    points: newestOfEachGrade(points ?? [], dependencies.clock.now()),
    blockers,
    command: first,
    commands: command === undefined ? moves : [first, ...moves],
  };
}

/** How a move is typed. Failovers are not here: which one is right depends on the source. */
const COMMANDS: Readonly<Record<string, (group: string) => string>> = {
  "change-point": (group) => `leeward change-point ${group} --point POINT`,
  commit: (group) => `leeward commit ${group}`,
  undo: (group) => `leeward undo ${group}`,
  reprotect: (group) => `leeward reprotect ${group}`,
};

function newestOfEachGrade(points: readonly RecoveryPoint[], nowMs: number): FailoverCandidate["points"] {
  const bookmark = points.filter((point) => point.name !== undefined).toSorted((a, b) => b.barrier - a.barrier)[0];
  const selectors = [
    "latest",
    "latest-app",
    "latest-verified",
    ...(bookmark?.name === undefined ? [] : [`@${bookmark.name}`]),
  ];
  return selectors.flatMap((selector) => {
    try {
      const point = selectPoint(points, selector, nowMs);
      return [
        {
          selector,
          pointId: point.id,
          cutAt: new Date(point.cutAtMs).toISOString(),
          ageMs: nowMs - point.cutAtMs,
          grade: point.grade,
        },
      ];
    } catch (error) {
      if (isFault(error, "POINT_NOT_FOUND") || isFault(error, "NO_POINT")) return []; // Nothing of that grade.
      throw error;
    }
  });
}
