/** Asking sites: which one, and what they say right now without letting one that hangs hold up the answer. */
import { Fault, isFault } from "#model/fault.ts";
import { runsAtTarget } from "#model/group-phase.ts";
import type { ExportStatus } from "#ports/master-target.ts";
import type { ProcessServer, SourceState } from "#ports/process-server.ts";
import type { GroupProgress, RecoveryPoint } from "#ports/replication.ts";
import type { GroupState } from "../workflows/messages.ts";
import type { AgentView } from "./contract.ts";
import type { ApiDependencies, SiteAccess } from "./dependencies.ts";

/** A look is for a person who waits; what takes longer is left out. */
const LOOK_MS = 2_500;

/** Throws USAGE. */
export function siteAccess({ sites }: ApiDependencies, site: string): SiteAccess {
  const access = sites.get(site);
  if (access !== undefined) return access;
  throw new Fault("USAGE", `No site "${site}"`, { details: { site }, hint: `Sites: ${[...sites.keys()].join(", ")}` });
}

export function isConnected({ connected }: ApiDependencies, site: string, role: string): boolean {
  return connected().some(({ identity }) => identity.site === site && identity.role === role);
}

/** Undefined when it is a Fault, or takes too long. */
export async function look<T>(dependencies: ApiDependencies, ask: () => Promise<T>): Promise<T | undefined> {
  const stop = new AbortController();
  const answer = ask().catch((error: unknown) => {
    if (!isFault(error)) throw error;
    dependencies.log.debug("A site could not be asked", { fault: error });
    return undefined;
  });
  try {
    const late = dependencies.clock.sleep(LOOK_MS, stop.signal).then(
      () => undefined,
      () => undefined, // Aborted below: the answer came first.
    );
    return await Promise.race([answer, late]);
  } finally {
    stop.abort();
  }
}

/** Seen just now; what could not be asked is left out. */
export interface LiveFacts {
  readonly progress?: GroupProgress;
  readonly newestPoint?: RecoveryPoint;
  readonly source?: SourceState;
  readonly replica?: ExportStatus;
}

/** What a group's sites say about it right now. */
export async function lookAtGroup(dependencies: ApiDependencies, state: GroupState): Promise<LiveFacts> {
  const { groupId } = state;
  if (state.phase === "unprotected" || !dependencies.sites.has(state.targetSite)) return {};
  const { masterTarget } = siteAccess(dependencies, state.targetSite);
  const targetIsThere = isConnected(dependencies, state.targetSite, "master-target");
  const ask = <T>(there: boolean, question: () => Promise<T>): Promise<T | undefined> =>
    there ? look(dependencies, question) : Promise.resolve(undefined);
  const replicaId = runsAtTarget(state.phase) ? state.replica?.operationId : undefined;
  const [progress, points, source, replica] = await Promise.all([
    ask(targetIsThere && !runsAtTarget(state.phase), () =>
      masterTarget.observeGroup({ groupId, cursor: "", waitMs: 0 }),
    ),
    ask(targetIsThere, () => masterTarget.listPoints({ groupId, limit: 1, ...lineOf(state) })),
    ask(dependencies.sites.has(state.sourceSite) && isConnected(dependencies, state.sourceSite, "process-server"), () =>
      siteAccess(dependencies, state.sourceSite).processServer.groupState({ groupId }),
    ),
    ask(targetIsThere && replicaId !== undefined, () => masterTarget.exportStatus({ operationId: replicaId ?? "" })),
  ]);
  const newestPoint = points?.[0];
  return {
    ...(progress === undefined ? {} : { progress }),
    ...(newestPoint === undefined ? {} : { newestPoint }),
    ...(source === undefined ? {} : { source }),
    ...(replica === undefined ? {} : { replica }),
  };
}

/** Only points of the line that the group is on now: what an undo set aside is listed, but is not its newest state. */
export function lineOf({ branch }: Pick<GroupState, "branch">): { readonly branch?: string } {
  return branch === "" ? {} : { branch };
}

/** Agents of all sites whose process server answers. */
export async function lookAtAgents(dependencies: ApiDependencies): Promise<readonly AgentView[]> {
  const ofSite = async ([site, { processServer }]: readonly [
    string,
    { readonly processServer: ProcessServer },
  ]): Promise<readonly AgentView[]> => {
    if (!isConnected(dependencies, site, "process-server")) return [];
    const agents = (await look(dependencies, () => processServer.listAgents({}))) ?? [];
    return agents.map(({ machine, connected, disks }) => ({ machine, site, connected, disks }));
  };
  return (await Promise.all([...dependencies.sites].map(ofSite))).flat();
}
