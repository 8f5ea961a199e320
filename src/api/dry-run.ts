/**
 * What a move would do, without doing anything: whether it is allowed now, its steps in order, the point it would take and how old that is,
 * what it sets aside, and what a person should know before saying yes.
 *
 * The steps are those that the workflows themselves take (#model/move-steps.ts), the refusal is the group's own (#model/group-phase.ts). It is
 * a look: between it and the move the world may change, and the move looks again.
 */
import { refusalOf, runsAtTarget, type GroupFacts, type GroupOperation } from "#model/group-phase.ts";
import { MOVE_STEPS } from "#model/move-steps.ts";
import { namesOnePoint, selectPoint } from "#model/point-selector.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { GroupState, SetAside } from "../workflows/messages.ts";
import type { DryRun, DryRunBody } from "./contract.ts";
import type { ApiDependencies } from "./dependencies.ts";
import { isConnected, lineOf, look, lookAtGroup, siteAccess, type LiveFacts } from "./sites.ts";

export const DRY_MOVES = [
  "failover",
  "planned-failover",
  "failback",
  "reprotect",
  "change-point",
  "commit",
  "undo",
  "test-failover",
  "unprotect",
] as const satisfies readonly GroupOperation[];

/** Throws what choosing the point throws: USAGE, NO_POINT, POINT_NOT_FOUND. */
export async function dryRun(dependencies: ApiDependencies, state: GroupState, body: DryRunBody): Promise<DryRun> {
  const { move, ...options } = body;
  const live = await lookAtGroup(dependencies, state);
  const nowMs = dependencies.clock.now();
  const refusal = refusalOf(moveFacts(dependencies, state, live), move, options);
  const point = await chosen(dependencies, state, body);
  const planned = move === "planned-failover" || move === "failback";
  return {
    group: state.name,
    move,
    phase: state.phase,
    ...(refusal === undefined ? {} : { refusal }),
    steps: MOVE_STEPS[move === "unprotect" && state.replicaMachines !== undefined ? "unprotect-replica" : move],
    ...(point === undefined ? {} : { point: pointOf(point, nowMs) }),
    ...(move === "failover" || planned ? { lossMs: planned ? 0 : lossMs(state, live, point, nowMs) } : {}),
    ...(move === "undo" || move === "change-point" ? { setsAside: setsAside(state, live, nowMs) } : {}),
    warnings: warnings(state, live, body),
  };
}

/** An idle disk makes no points, and loses nothing by that: the newest one holds for as long as the cuts after it found nothing. */
function lossMs(state: GroupState, live: LiveFacts, point: RecoveryPoint | undefined, nowMs: number): number | null {
  if (point === undefined) return null;
  const progress = live.progress ?? state.progress;
  const asOfMs = progress?.barrier === point.barrier ? progress.currentAsOfMs : 0;
  return Math.max(0, nowMs - Math.max(point.cutAtMs, asOfMs));
}

/** The group's own facts, with what its sites say right now. */
export function moveFacts(
  dependencies: ApiDependencies,
  state: GroupState,
  live: LiveFacts,
  hasPoint = (live.newestPoint ?? state.newestPoint) !== undefined || (state.progress?.barrier ?? 0) > 0,
): GroupFacts {
  return {
    name: state.name,
    phase: state.phase,
    conditions: state.conditions,
    hasPoint,
    sourceConnected: runsAtTarget(state.phase)
      ? isConnected(dependencies, state.sourceSite, "process-server")
      : (live.progress?.connected ?? state.progress?.connected),
    reversed: state.sourceSite !== state.homeSite,
    ...(state.replicaMachines === undefined
      ? {}
      : {
          replica: state.replicaMachines,
          missing: state.machines.some(
            ({ name }) => !state.replicaMachines?.running.includes(name) && !state.replicaMachines?.off.includes(name),
          ),
        }),
  };
}

/** None for a move that takes no point, and when the target cannot be asked. */
async function chosen(
  dependencies: ApiDependencies,
  state: GroupState,
  { move, point: selector = "latest" }: DryRunBody,
): Promise<RecoveryPoint | undefined> {
  if (move !== "failover" && move !== "change-point" && move !== "test-failover") return undefined;
  const { masterTarget } = siteAccess(dependencies, state.targetSite);
  const branch = state.replicaMachines?.sourceBranch;
  const line = namesOnePoint(selector) ? {} : branch === undefined ? lineOf(state) : { branch };
  const points = await look(dependencies, () => masterTarget.listPoints({ groupId: state.groupId, ...line }));
  return points === undefined ? undefined : selectPoint(points, selector, dependencies.clock.now());
}

function pointOf(point: RecoveryPoint, nowMs: number): NonNullable<DryRun["point"]> {
  const { id, cutAtMs, consistency, grade } = point;
  const branch = [...new Set(point.members.map((member) => member.branch))].join(",");
  return {
    id,
    cutAt: new Date(cutAtMs).toISOString(),
    ageMs: Math.max(0, nowMs - cutAtMs),
    branch,
    consistency,
    grade,
  };
}

function setsAside(state: GroupState, live: LiveFacts, nowMs: number): SetAside {
  const startedAtMs = state.replicaMachines?.startedAtMs;
  return {
    branch: state.branch,
    ...(startedAtMs === undefined ? {} : { ranMs: Math.max(0, nowMs - startedAtMs) }),
    bytes: (live.replica ?? state.replica)?.overlayBytes ?? 0,
  };
}

function warnings(state: GroupState, live: LiveFacts, body: DryRunBody): readonly string[] {
  const found: string[] = [];
  const progress = live.progress ?? state.progress;
  if (body.move === "failover" && progress?.connected === true && progress.state !== "fenced") {
    found.push(
      `Site "${state.sourceSite}" IS connected and replicating: "leeward failover ${state.name} --planned" shuts it down first and loses nothing`,
    );
    if (body.sourceLost === true)
      found.push(
        "With --source-lost its machines are left running there, and what they write from now on is not replicated",
      );
  }
  if (
    (body.move === "failover" || body.move === "planned-failover" || body.move === "failback") &&
    state.conditions.includes("Testing")
  )
    found.push("A test failover of it runs: it is ended");
  const running = state.replicaMachines?.running ?? [];
  if (body.move === "unprotect" && running.length > 0)
    found.push(
      `Machine ${running.map((name) => `"${name}"`).join(", ")} runs at "${state.targetSite}" on disks that the group serves: it is shut down and removed. What it wrote stays in the store, as branch ${state.branch}`,
    );
  return found;
}
