/** What the API does with recovery plans: keep them, list them, say what changed. */
import { Fault, isFault } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import { planChanges } from "#model/plan/plan-changes.ts";
import { groupsOfPlan, type RecoveryPlan } from "#model/plan/recovery-plan.ts";
import { resolvePlan } from "#model/plan/resolve-plan.ts";
import type { ResolvedPlan } from "#model/plan/resolved-plan.ts";
import { planOfRun } from "#model/plan/run-id.ts";
import type { ApiClient, OperationState, PlanSummary, PlanView, RunPlanBody } from "../contract.ts";
import type { ApiDependencies } from "../dependencies.ts";
import type { GroupDirectory } from "../group-directory.ts";
import { siteAccess } from "../sites.ts";
import { checkOperationId, newOperationId } from "../operation-id.ts";
import { parsePlan } from "./parse-plan.ts";
import { planFacts } from "./plan-facts.ts";
import { planLibrary, type PlanVersion } from "./plan-library.ts";

/** As many as one answer holds, and more than two years of nights. */
const RUNS_SHOWN = 1_000;

type PlanService = Pick<
  ApiClient,
  | "applyPlan"
  | "plans"
  | "plan"
  | "resolvePlan"
  | "runPlan"
  | "decide"
  | "runDrill"
  | "scheduleDrill"
  | "unscheduleDrill"
  | "drillSchedules"
  | "planRuns"
>;

export function planService(
  dependencies: ApiDependencies,
  { directory, by }: { readonly directory: GroupDirectory; readonly by: string },
): PlanService {
  const library = () => planLibrary(siteAccess(dependencies, dependencies.controlSite).masterTarget);
  const knownGroups = async (): Promise<readonly string[]> => (await directory.states()).map(({ name }) => name);

  async function view(name: string, version?: number): Promise<PlanView> {
    const { plan, before, versions } = await library().read(name, version);
    return viewOf(plan, before, versions);
  }

  async function resolve(name: string, { mode, sourceLost = false, version }: RunPlanBody): Promise<ResolvedPlan> {
    const stored = await library().read(name, version);
    const plan = parsePlan(stored.plan.source);
    const facts = await planFacts(dependencies, plan, { mode, sourceLost });
    return resolvePlan(plan, facts, { version: stored.plan.version, mode, sourceLost });
  }

  async function run(
    name: string,
    { operationId, ...body }: RunPlanBody & { readonly operationId?: string },
    { kind }: { readonly kind: "run" | "drill" },
  ): Promise<OperationState> {
    const { planRuns, controlSite: site, random } = dependencies;
    const id = operationId === undefined ? newOperationId(name, kind, random) : checkOperationId(operationId);
    if (planOfRun(id) !== name)
      throw new Fault("USAGE", `Expected an operation id such as "${name}.${kind}.1", got "${id}"`);
    const resolved = await resolve(name, body);
    const repeated = await stateOf(name, id);
    if (repeated !== undefined) return repeated;
    if (resolved.blockers.length > 0 && body.force !== true) throw blocked(resolved);
    const { note } = body;
    await planRuns.start({
      operationId: id,
      by,
      plan: resolved,
      site,
      ...(note === undefined ? {} : { note }),
      ...(kind === "drill" ? { drill: true } : {}),
    });
    return await planRuns.state(name, id);
  }

  return {
    resolvePlan: resolve,

    runPlan: (name, body) => run(name, body, { kind: "run" }),

    runDrill: (name, body) => run(name, { ...body, mode: "test" }, { kind: "drill" }),

    async scheduleDrill(name, body) {
      await library().read(name);
      const { drills, controlSite: site } = dependencies;
      await drills.put(name, body, { plan: name, site, by: `${by}'s schedule` });
      const found = (await drills.list()).find((one) => one.plan === name);
      return found ?? { plan: name, cron: body.cron, paused: false };
    },

    async unscheduleDrill(name) {
      if (await dependencies.drills.remove(name)) return;
      throw new Fault("NOT_FOUND", `No drills of "${name}" are scheduled`, { hint: "See `leeward drill list`" });
    },

    drillSchedules: () => dependencies.drills.list(),

    async planRuns(name) {
      const { masterTarget } = siteAccess(dependencies, dependencies.controlSite);
      const [series] = await masterTarget.readRecords({ collection: "runs", name, newest: RUNS_SHOWN });
      return (series?.records ?? []).map(({ number, writtenAtMs, record }) => ({
        number,
        writtenAt: new Date(writtenAtMs).toISOString(),
        record,
      }));
    },

    async decide(runId, { operationId, decision, step, note }) {
      const { planRuns, random } = dependencies;
      const plan = planOfRun(checkOperationId(runId));
      if (plan === undefined)
        throw new Fault("REFUSED", `Operation "${runId}" is not the run of a plan, nothing of it is to be decided`);
      const state = await planRuns.state(plan, runId);
      const request = {
        operationId: operationId === undefined ? newOperationId(plan, "decide", random) : checkOperationId(operationId),
        by,
        decision,
        step: step ?? onlyStep(state, decision),
        ...(note === undefined ? {} : { note }),
      };
      await planRuns.decide(plan, runId, request);
      return await planRuns.state(plan, runId);
    },

    async applyPlan({ source, note, dryRun = false }) {
      const parsed = parsePlan(source, await knownGroups());
      const noted = { source, by, ...(note === undefined ? {} : { note }) };
      if (!dryRun) {
        const { stored } = await library().keep(parsed.plan, noted);
        return { ...(await view(parsed.plan)), stored };
      }
      const newest = await newestOf(parsed.plan);
      const next = {
        ...noted,
        name: parsed.plan,
        version: (newest?.plan.version ?? 0) + 1,
        writtenAtMs: dependencies.clock.now(),
      };
      return { ...viewOf(next, newest?.plan, newest?.versions ?? []), stored: false };
    },

    async plans() {
      const known = await knownGroups();
      return (await library().list()).map(({ name, plan }) => summaryOf(name, plan, known));
    },

    plan: async (name, { version } = {}) => await view(name, version),
  };

  async function stateOf(name: string, id: string): Promise<OperationState | undefined> {
    try {
      return await dependencies.planRuns.state(name, id);
    } catch (error) {
      if (isFault(error, "NOT_FOUND")) return undefined;
      throw error;
    }
  }

  async function newestOf(name: string) {
    try {
      return await library().read(name);
    } catch (error) {
      if (isFault(error, "NOT_FOUND")) return undefined;
      throw error;
    }
  }
}

function onlyStep(state: OperationState, decision: string): string {
  const asking = state.steps.filter(({ choices }) => choices?.includes(decision) === true).map(({ name }) => name);
  const [step, ...others] = asking;
  if (step !== undefined && others.length === 0) return step;
  throw new Fault(
    step === undefined ? "REFUSED" : "USAGE",
    step === undefined
      ? `No step of ${state.operationId} waits for somebody to ${decision} it`
      : `${asking.length} steps of ${state.operationId} wait for somebody to ${decision} them, expected which`,
    { hint: step === undefined ? `It waits for ${state.waitsFor ?? "nothing"}` : `Name one: ${asking.join(", ")}` },
  );
}

function blocked({ plan, mode, blockers }: ResolvedPlan): Fault {
  const [first, ...others] = blockers.map(({ step, message }) => `${step}: ${message}`);
  return new Fault("REFUSED", `Plan "${plan}" cannot be run in mode "${mode}" now: ${first}`, {
    details: { blockers: blockers.length },
    hint: [
      ...(blockers[0]?.hint === undefined ? [] : [blockers[0].hint]),
      ...(others.length === 0 ? [] : [`Also ${others.join("; ")}`]),
      "--force runs it all the same",
    ].join(". "),
  });
}

function viewOf(plan: PlanVersion, before: PlanVersion | undefined, versions: readonly number[]): PlanView {
  const { name, version, writtenAtMs, by, note, source } = plan;
  const parsed = parsePlan(source);
  return {
    name,
    version,
    appliedAt: new Date(writtenAtMs).toISOString(),
    by,
    ...(note === undefined ? {} : { note }),
    source,
    objectives: parsed.objectives,
    boot: parsed.boot.map((boot) => ({ name: boot.name, groups: boot.groups.map(({ group }) => group) })),
    versions,
    changes: before === undefined ? [] : planChanges(jsonOf(parsePlan(before.source)), jsonOf(parsed)),
  };
}

function jsonOf(plan: RecoveryPlan): JsonValue {
  return JSON.parse(JSON.stringify(plan)) as JsonValue; // JSON.parse yields nothing else.
}

/** A plan that has become wrong is found here, and not when it is needed. */
function summaryOf(name: string, plan: PlanVersion | undefined, known: readonly string[]): PlanSummary {
  if (plan === undefined)
    return { name, version: 0, appliedAt: "", by: "", groups: [], problem: "No version of it can be read" };
  const { version, writtenAtMs, by } = plan;
  const head = { name, version, appliedAt: new Date(writtenAtMs).toISOString(), by };
  try {
    const groups = groupsOfPlan(parsePlan(plan.source));
    const gone = groups.filter((group) => !known.includes(group));
    return { ...head, groups, ...(gone.length === 0 ? {} : { problem: `Not protected: ${gone.join(", ")}` }) };
  } catch (error) {
    if (!isFault(error, "PLAN_INVALID")) throw error;
    return { ...head, groups: [], problem: error.message };
  }
}
