/** `leeward status`: roles, groups and what is wrong, even when groups cannot be asked. */
import { Fault, isFault } from "#model/fault.ts";
import { certificateProblems } from "./certificates.ts";
import type { RoleView, StatusView } from "./contract.ts";
import { controlView, supersededProblems } from "./control-view.ts";
import type { ApiDependencies } from "./dependencies.ts";
import type { GroupDirectory } from "./group-directory.ts";
import { viewOf } from "./group-view.ts";
import { lookAtAgents } from "./sites.ts";

export async function statusOf(dependencies: ApiDependencies, directory: GroupDirectory): Promise<StatusView> {
  const [temporalReachable, redisReachable, roleViews, listed] = await Promise.all([
    dependencies.workflows.reachable(),
    dependencies.redisReachable(),
    roles(dependencies),
    groupsOrProblem(dependencies, directory),
  ]);
  return {
    version: dependencies.version,
    roles: roleViews,
    temporal: {
      reachable: temporalReachable,
      ...(dependencies.temporalUiUrl === undefined ? {} : { uiUrl: dependencies.temporalUiUrl }),
    },
    redis: { reachable: redisReachable },
    ...controlView(dependencies),
    groups: listed.groups,
    problems: [...supersededProblems(dependencies), ...listed.problems, ...certificateProblems(dependencies)],
  };
}

async function roles(dependencies: ApiDependencies): Promise<readonly RoleView[]> {
  const listed = dependencies.connected().map(({ identity, connectedAtMs }) => ({
    site: identity.site,
    role: identity.role as string,
    name: identity.name,
    connected: true,
    connectedAt: new Date(connectedAtMs).toISOString(),
  }));
  const agents = (await lookAtAgents(dependencies)).map((agent) => ({
    site: agent.site,
    role: "agent",
    name: agent.machine,
    connected: agent.connected,
  }));
  const seen: readonly RoleView[] = [...listed, ...agents];
  const absent = dependencies.enrolment
    .enrolled()
    .filter(({ site, role, name }) => !seen.some((one) => one.site === site && one.role === role && one.name === name))
    .map(({ site, role, name }) => ({ site, role, name, connected: false }));
  const named = ({ site, role, name }: Pick<RoleView, "site" | "role" | "name">): string => `${site}/${role}/${name}`;
  const lives = new Map(dependencies.enrolment.enrolled().map((one) => [named(one), one.life]));
  return [...seen, ...absent]
    .map((one) => {
      const life = lives.get(named(one));
      return life === undefined ? one : { ...one, certificateUntil: new Date(life.notAfterMs).toISOString() };
    })
    .sort((a, b) => named(a).localeCompare(named(b)));
}

async function groupsOrProblem(
  dependencies: ApiDependencies,
  directory: GroupDirectory,
): Promise<Pick<StatusView, "groups" | "problems">> {
  const problem = ({ code, message, hint }: Fault): StatusView["problems"][number] => ({
    code,
    message,
    ...(hint === undefined ? {} : { hint }),
  });
  try {
    const { states, broken } = await directory.look();
    return {
      groups: await Promise.all(states.map((state) => viewOf(dependencies, state))),
      problems: broken.map(problem),
    };
  } catch (error) {
    if (!isFault(error)) throw error;
    return { groups: [], problems: [problem(error)] };
  }
}
