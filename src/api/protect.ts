/**
 * From what a person typed to a protect request: which machine, which site, which disks; everything that can be wrong about it is found here,
 * before anything is changed.
 */
import { Fault, isFault } from "#model/fault.ts";
import { checkRetention } from "#model/retention/policy.ts";
import type { MachineConfig } from "#ports/hypervisor.ts";
import type { ProcessServer } from "#ports/process-server.ts";
import type { Random } from "#ports/random.ts";
import {
  DEFAULT_POLICY,
  type GroupState,
  type ProtectedDisk,
  type ProtectRequest,
  type ReplicationPolicy,
} from "../workflows/messages.ts";
import type { AgentView, ProtectBody } from "./contract.ts";
import type { ApiDependencies } from "./dependencies.ts";
import { checkGroupName, randomText } from "./operation-id.ts";
import { lookAtAgents, siteAccess } from "./sites.ts";

const DEFAULT_CONFIG: MachineConfig = { cpus: 1, memoryMiB: 256, firmware: "bios" };
const INTERVAL_MS_MIN = 200;

/**
 * Throws USAGE (names, numbers, sources), REFUSED (the name is taken), AGENT_UNREACHABLE, IMAGE_MISSING, IMAGE_INVALID, DISK_ALREADY_PROTECTED.
 */
export async function planProtection(
  dependencies: ApiDependencies,
  body: ProtectBody & { readonly operationId: string; readonly by: string },
): Promise<ProtectRequest> {
  const groupId = checkGroupName(body.name);
  const policy = checkedPolicy(body.policy);
  const disks = checkedSources(body.disks);
  await refuseTakenName(dependencies, groupId, body.operationId);
  const agent = chooseAgent(dependencies, body, await lookAtAgents(dependencies));
  const targetSite = chooseTarget(dependencies, agent.site);
  await refuseTakenDisks(dependencies, { groupId, machine: agent.machine, site: agent.site, disks });
  const { processServer } = siteAccess(dependencies, agent.site);
  const seen = await processServer.inspectDisks({ machine: agent.machine, sources: disks, groupId });
  return {
    operationId: body.operationId,
    by: body.by,
    groupId,
    name: groupId,
    policy,
    sourceSite: agent.site,
    targetSite,
    machines: [
      {
        name: agent.machine,
        config: { ...DEFAULT_CONFIG, ...body.config },
        disks: disks.map((source, index) => protectedDisk(source, index, seen, dependencies.random)),
        forwards: body.forwards ?? [],
      },
    ],
  };
}

function protectedDisk(
  source: string,
  index: number,
  seen: Awaited<ReturnType<ProcessServer["inspectDisks"]>>,
  random: Random,
): ProtectedDisk {
  const found = seen.find((one) => one.source === source);
  if (found === undefined) {
    throw new Fault("IMAGE_MISSING", `The agent does not report "${source}"`, {
      hint: "Check the path on that machine",
    });
  }
  const { sizeBytes, sectorBytes } = found;
  // Never reused: what an earlier protection of the same image left in the store is another disk.
  const diskId = `d${index + 1}-${randomText(8, random)}`;
  return { diskId, source, sizeBytes, sectorBytes, ...(index === 0 ? { bootIndex: 1 } : {}) };
}

function checkedPolicy(given: Partial<ReplicationPolicy> = {}): ReplicationPolicy {
  const policy = { ...DEFAULT_POLICY, ...given };
  if (policy.retention !== undefined) checkRetention(policy.retention);
  if (policy.intervalMs < INTERVAL_MS_MIN) {
    throw new Fault("USAGE", `Expected an interval of at least ${INTERVAL_MS_MIN} ms, got ${policy.intervalMs} ms`);
  }
  if (policy.rpoThresholdMs < policy.intervalMs) {
    throw new Fault(
      "USAGE",
      `Expected an RPO of at least the interval (${policy.intervalMs} ms), got ${policy.rpoThresholdMs} ms`,
    );
  }
  return policy;
}

function checkedSources(disks: readonly string[]): readonly string[] {
  if (disks.length === 0)
    throw new Fault("USAGE", "Expected at least one disk", { hint: "Name one with --disk tap:IMAGE" });
  const sources = disks.map((disk) => (/^[a-z]+:/.test(disk) ? disk : `tap:${disk}`));
  for (const source of sources) {
    if (!/^tap:\/./.test(source)) {
      throw new Fault("USAGE", `Expected a disk as "tap:/PATH/OF/IMAGE", got "${source}"`, {
        details: { source },
        hint: "The path is absolute, on the machine whose agent has the disk; other kinds of source are not there yet",
      });
    }
  }
  const twice = sources.find((source, index) => sources.indexOf(source) !== index);
  if (twice !== undefined) throw new Fault("USAGE", `Disk "${twice}" is named twice`, { details: { source: twice } });
  return sources;
}

async function refuseTakenName({ workflows }: ApiDependencies, groupId: string, operationId: string): Promise<void> {
  const state = await stateIfThere(workflows.state(groupId));
  if (state === undefined || state.phase === "unprotected") return;
  if (state.operations.some((operation) => operation.operationId === operationId)) return; // The same call again.
  throw new Fault("REFUSED", `Group "${groupId}" exists already, it is "${state.phase}"`, {
    details: { group: groupId, phase: state.phase },
    hint: `Choose another name. Allowed now for "${groupId}": ${state.allowedOperations.join(", ") || "nothing but waiting"}`,
  });
}

/** The process server knows what it taps; this also finds groups whose order did not reach it yet. */
async function refuseTakenDisks(
  { workflows, log }: ApiDependencies,
  wanted: {
    readonly groupId: string;
    readonly machine: string;
    readonly site: string;
    readonly disks: readonly string[];
  },
): Promise<void> {
  const others = (await workflows.groupIds()).filter((groupId) => groupId !== wanted.groupId);
  const states = await Promise.all(
    others.map((groupId) =>
      stateIfThere(workflows.state(groupId)).catch((error: unknown) => {
        if (!isFault(error)) throw error;
        log.warn("A group could not be asked for its disks", { groupId, fault: error }); // The process server still checks.
        return undefined;
      }),
    ),
  );
  for (const state of states) {
    if (state === undefined || state.phase === "unprotected") continue;
    const machines = [
      ...(state.sourceSite === wanted.site ? state.machines : []),
      // Replicated to its own site: its old disks there are needed for the way home.
      ...(state.homeSite === wanted.site ? (state.homeMachines ?? []) : []),
    ];
    const taken = machines
      .filter((machine) => machine.name === wanted.machine)
      .flatMap((machine) => machine.disks)
      .find((disk) => wanted.disks.includes(disk.source));
    if (taken === undefined) continue;
    throw new Fault("DISK_ALREADY_PROTECTED", `Disk "${taken.source}" is protected already, in group "${state.name}"`, {
      details: { source: taken.source, group: state.name },
      hint: `End that first: leeward group unprotect ${state.name}`,
    });
  }
}

async function stateIfThere(asked: Promise<GroupState>): Promise<GroupState | undefined> {
  try {
    return await asked;
  } catch (error) {
    if (isFault(error, "NOT_FOUND")) return undefined;
    throw error;
  }
}

/** Left out, the machine is the only one there is; sites other than control's come first, for they are what one protects. */
function chooseAgent(
  dependencies: ApiDependencies,
  { machine, site }: ProtectBody,
  agents: readonly AgentView[],
): AgentView {
  if (site !== undefined) siteAccess(dependencies, site);
  const named = agents.filter(
    (agent) =>
      agent.connected &&
      (site === undefined || agent.site === site) &&
      (machine === undefined || agent.machine === machine),
  );
  const elsewhere = named.filter((agent) => agent.site !== dependencies.controlSite);
  const candidates = site === undefined && elsewhere.length > 0 ? elsewhere : named;
  const [only, another] = candidates;
  if (only === undefined) {
    const wanted = `${machine === undefined ? "" : ` of machine "${machine}"`}${site === undefined ? "" : ` at site "${site}"`}`;
    throw new Fault("AGENT_UNREACHABLE", `No agent${wanted} is connected`, {
      hint:
        agents.length === 0
          ? "Enrol one: leeward machine enroll NAME"
          : `Connected: ${
              agents
                .filter((agent) => agent.connected)
                .map((agent) => `${agent.machine} at ${agent.site}`)
                .join(", ") || "none"
            }`,
    });
  }
  if (another !== undefined) {
    throw new Fault("USAGE", `Expected a machine's name, there are ${candidates.length}`, {
      hint: `Say which with --machine: ${candidates.map((agent) => agent.machine).join(", ")}`,
    });
  }
  return only;
}

/** The recovery site, where control is; for a machine that is there, the other one. */
function chooseTarget({ controlSite, sites }: ApiDependencies, sourceSite: string): string {
  if (sourceSite !== controlSite) return controlSite;
  const others = [...sites.keys()].filter((site) => site !== sourceSite);
  if (others.length === 1 && others[0] !== undefined) return others[0];
  throw new Fault("USAGE", `Expected one site to protect "${sourceSite}" at, there are ${others.length}`, {
    hint: "Protect it from another site",
  });
}
