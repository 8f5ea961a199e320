/** What the API does with recovery plans: keep them, list them, say what changed. */
import { isFault } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import { planChanges } from "#model/plan/plan-changes.ts";
import { groupsOfPlan, type RecoveryPlan } from "#model/plan/recovery-plan.ts";
import type { ApiClient, PlanSummary, PlanView } from "../contract.ts";
import type { ApiDependencies } from "../dependencies.ts";
import type { GroupDirectory } from "../group-directory.ts";
import { siteAccess } from "../sites.ts";
import { parsePlan } from "./parse-plan.ts";
import { planLibrary, type PlanVersion } from "./plan-library.ts";

type PlanService = Pick<ApiClient, "applyPlan" | "plans" | "plan">;

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

  return {
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

  async function newestOf(name: string) {
    try {
      return await library().read(name);
    } catch (error) {
      if (isFault(error, "NOT_FOUND")) return undefined;
      throw error;
    }
  }
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
