/** What a resolution needs to know of a plan's groups and of its earlier runs; asked now, of those who know. */
import { isFault } from "#model/fault.ts";
import { groupsOfPlan, type PlanMode, type RecoveryPlan } from "#model/plan/recovery-plan.ts";
import type { PlanFacts, PlanGroupFacts } from "#model/plan/resolve-plan.ts";
import { runRecordOf, timesOf, type RunReport } from "#model/plan/run-report.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import type { GroupState } from "../../workflows/messages.ts";
import type { DryRunBody } from "../contract.ts";
import type { ApiDependencies } from "../dependencies.ts";
import { dryRun } from "../dry-run.ts";
import { siteAccess } from "../sites.ts";

/** Of so many runs the times are taken. */
const RUNS = 10;

const MOVES: Readonly<Record<PlanMode, DryRunBody["move"]>> = {
  test: "test-failover",
  unplanned: "failover",
  planned: "planned-failover",
  failback: "failback",
};

export async function planFacts(
  dependencies: ApiDependencies,
  plan: RecoveryPlan,
  options: { readonly mode: PlanMode; readonly sourceLost: boolean },
): Promise<PlanFacts> {
  const points = new Map(plan.boot.flatMap(({ groups }) => groups.map(({ group, point }) => [group, point] as const)));
  const [groups, reports] = await Promise.all([
    Promise.all(
      groupsOfPlan(plan).map(
        async (group) => [group, await factsOf(dependencies, group, points.get(group), options)] as const,
      ),
    ),
    runsOf(siteAccess(dependencies, dependencies.controlSite).masterTarget, plan.plan, RUNS),
  ]);
  const known = groups.flatMap(([group, facts]) => (facts === undefined ? [] : [[group, facts] as const]));
  return {
    groups: Object.fromEntries(known),
    times: timesOf(reports, options.mode),
    runs: reports.filter(({ mode }) => mode === options.mode).length,
  };
}

/** Newest first. */
export async function runsOf(masterTarget: MasterTarget, name: string, newest: number): Promise<readonly RunReport[]> {
  const [series] = await masterTarget.readRecords({ collection: "runs", name, newest });
  return (series?.records ?? []).flatMap(({ record }) => {
    const known = runRecordOf(record);
    return known === undefined ? [] : [known.report];
  });
}

async function factsOf(
  dependencies: ApiDependencies,
  group: string,
  point: string | undefined,
  { mode, sourceLost }: { readonly mode: PlanMode; readonly sourceLost: boolean },
): Promise<PlanGroupFacts | undefined> {
  let state: GroupState;
  try {
    state = await dependencies.workflows.state(group);
  } catch (error) {
    if (isFault(error, "NOT_FOUND")) return undefined;
    throw error;
  }
  if (state.phase === "unprotected") return undefined;
  const facts = {
    reversed: state.sourceSite !== state.homeSite,
    machines: state.machines.map(({ name, forwards }) => ({ name, ports: forwards.map(({ guestPort }) => guestPort) })),
  };
  const asked = { ...(point === undefined ? {} : { point }), sourceLost };
  try {
    const { refusal } = await dryRun(dependencies, state, { move: MOVES[mode], ...asked });
    // A test loses nothing; what is held against the promise is what a failover would lose now.
    const { lossMs } = await dryRun(dependencies, state, { move: "failover", ...asked });
    return { ...facts, ...(refusal === undefined ? {} : { refusal }), lossMs: lossMs ?? null };
  } catch (error) {
    if (!isFault(error)) throw error;
    const { message, hint } = error;
    return { ...facts, pointFault: { message, ...(hint === undefined ? {} : { hint }) }, lossMs: null };
  }
}
