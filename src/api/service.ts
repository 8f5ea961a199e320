/**
 * What the API does, without HTTP: one method per question and command of the contract. Commands are idempotent by operation id, and checked
 * by the group's own workflow: what is decided here is only who is asked, and how the answer reads.
 */
import { Fault } from "#model/fault.ts";
import { selectPoint } from "#model/point-selector.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import { groupWorkflowId, type GroupState, type Operation } from "../workflows/messages.ts";
import type {
  ApiClient,
  ChangePointBody,
  FailbackBody,
  GroupView,
  MoveBody,
  ReprotectBody,
  UnprotectBody,
} from "./contract.ts";
import type { ApiDependencies } from "./dependencies.ts";
import { dryRun } from "./dry-run.ts";
import { failoverCandidate } from "./failover-candidate.ts";
import { assertNameFree, assertSelectable, pointsOf } from "./group-points.ts";
import { groupDirectory } from "./group-directory.ts";
import { viewOf } from "./group-view.ts";
import { checkGroupName, checkOperationId, newOperationId, type OperationKind } from "./operation-id.ts";
import { planService } from "./plan/plan-service.ts";
import { planProtection } from "./protect.ts";
import { look, lookAtAgents, siteAccess } from "./sites.ts";
import { statusOf } from "./status.ts";

/** How often a long poll looks. */
const POLL_MS = 200;
const WAIT_MS_MAX = 60_000;
const LEASE_MS = 8 * 3_600_000;
const ENROLLED_ROLES = ["agent", "process-server", "master-target", "worker"] as const;

type Identified = { readonly operationId?: string };

/** The contract, with the operation ids that the HTTP client sends. */
export interface ApiService extends Omit<
  ApiClient,
  | "bookmark"
  | "changePoint"
  | "commit"
  | "undo"
  | "reprotect"
  | "failback"
  | "pause"
  | "resume"
  | "unprotect"
  | "cleanUpTestFailover"
  | "openExport"
> {
  bookmark(group: string, body: { readonly name: string } & Identified): Promise<RecoveryPoint>;
  pause(group: string, body: Identified): Promise<GroupView>;
  resume(group: string, body: Identified): Promise<GroupView>;
  unprotect(group: string, body: UnprotectBody & Identified): ReturnType<ApiClient["unprotect"]>;
  changePoint(group: string, body: ChangePointBody & Identified): ReturnType<ApiClient["changePoint"]>;
  commit(group: string, body: MoveBody & Identified): ReturnType<ApiClient["commit"]>;
  undo(group: string, body: MoveBody & Identified): ReturnType<ApiClient["undo"]>;
  reprotect(group: string, body: ReprotectBody & Identified): ReturnType<ApiClient["reprotect"]>;
  failback(group: string, body: FailbackBody & Identified): ReturnType<ApiClient["failback"]>;
  cleanUpTestFailover(
    group: string,
    testOperationId: string,
    options: { readonly force: boolean } & Identified,
  ): ReturnType<ApiClient["cleanUpTestFailover"]>;
  openExport(
    group: string,
    body: Parameters<ApiClient["openExport"]>[1] & Identified,
  ): ReturnType<ApiClient["openExport"]>;
  enrol(token: string, csr: string): Promise<{ readonly cert: string; readonly ca: string; readonly orderKey: string }>;
}

/** `by` is stamped on every operation. */
export function createApiService(dependencies: ApiDependencies, by = "operator"): ApiService {
  const { workflows, sites, clock, random } = dependencies;
  const directory = groupDirectory(dependencies);
  const view = (state: GroupState): Promise<GroupView> => viewOf(dependencies, state);

  const identify = (group: string, kind: OperationKind, given: string | undefined): Operation => ({
    operationId: given === undefined ? newOperationId(group, kind, random) : checkOperationId(given),
    by,
  });

  return {
    status: () => statusOf(dependencies, directory),

    groups: async () => await Promise.all((await directory.states()).map(view)),

    group: async (name) => await view(await workflows.state(checkGroupName(name))),

    async protect(body) {
      const operation = identify(checkGroupName(body.name), "protect", body.operationId);
      const request = await planProtection(dependencies, { ...body, ...operation });
      const started = await workflows.protect(request);
      return { ...started, group: await view(await workflows.state(request.groupId)) };
    },

    points: async (name) => await pointsOf(dependencies, await workflows.state(checkGroupName(name))),

    async bookmark(name, body) {
      if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(body.name)) {
        throw new Fault("USAGE", `Expected a bookmark name of letters, digits, dots and dashes, got "${body.name}"`);
      }
      const request = { ...identify(checkGroupName(name), "bookmark", body.operationId), name: body.name };
      await assertNameFree(dependencies, await workflows.state(name), request);
      return await workflows.update(name, "bookmark", request);
    },

    async pause(name, body) {
      await workflows.update(checkGroupName(name), "pause", identify(name, "pause", body.operationId));
      return await view(await workflows.state(name));
    },

    async resume(name, body) {
      await workflows.update(checkGroupName(name), "resume", identify(name, "resume", body.operationId));
      return await view(await workflows.state(name));
    },

    unprotect: async (name, { operationId, ...body }) =>
      await workflows.update(checkGroupName(name), "unprotect", {
        ...identify(name, "unprotect", operationId),
        ...body,
      }),

    dryRun: async (name, body) => await dryRun(dependencies, await workflows.state(checkGroupName(name)), body),

    async failover(name, { mode, point = "latest", sourceLost = false, operationId, ...more }) {
      if (mode === "planned" && sourceLost)
        throw new Fault("USAGE", "A planned failover needs its source; it cannot be lost");
      await assertSelectable(dependencies, checkGroupName(name), point);
      const request = {
        ...identify(checkGroupName(name), "failover", operationId),
        mode,
        point,
        sourceLost,
        ...more,
      };
      return await workflows.update(name, "failover", request);
    },

    async changePoint(name, { operationId, ...body }) {
      await assertSelectable(dependencies, checkGroupName(name), body.point);
      return await workflows.update(name, "changePoint", {
        ...identify(checkGroupName(name), "change-point", operationId),
        ...body,
      });
    },

    async commit(name, { operationId, ...body }) {
      const request = { ...identify(checkGroupName(name), "commit", operationId), ...body };
      await workflows.update(name, "commit", request);
      return await view(await workflows.state(name));
    },

    undo: async (name, { operationId, ...body }) =>
      await workflows.update(name, "undo", { ...identify(checkGroupName(name), "undo", operationId), ...body }),

    reprotect: async (name, { operationId, ...body }) =>
      await workflows.update(name, "reprotect", {
        ...identify(checkGroupName(name), "reprotect", operationId),
        ...body,
      }),

    async failback(name, { operationId, point = "latest", ...body }) {
      await assertSelectable(dependencies, checkGroupName(name), point);
      // Only the final cut of machines that were shut down first loses nothing; an older point needs none.
      const mode = point === "latest" ? "planned" : "unplanned";
      const request = { mode, point, sourceLost: false, failback: true, ...body };
      return await workflows.update(name, "failover", { ...identify(name, "failback", operationId), ...request });
    },

    async startTestFailover(name, { point = "latest", leaseMs = LEASE_MS, operationId }) {
      await assertSelectable(dependencies, checkGroupName(name), point);
      const request = { ...identify(checkGroupName(name), "test", operationId), point, leaseMs };
      return await workflows.update(name, "testFailoverStart", request);
    },

    listTestFailovers: async (name) =>
      (await workflows.state(checkGroupName(name))).operations.filter((operation) => operation.kind === "testFailover"),

    async cleanUpTestFailover(name, testOperationId, { force, operationId }) {
      const request = {
        ...identify(checkGroupName(name), "cleanup", operationId),
        testOperationId: checkOperationId(testOperationId),
        force,
      };
      return await workflows.update(name, "testFailoverCleanup", request);
    },

    async operations() {
      const [states, runs] = await Promise.all([directory.states(), dependencies.planRuns.list()]);
      const all = [...states.flatMap((state) => state.operations), ...runs];
      return all.toSorted((a, b) => b.startedAtMs - a.startedAtMs);
    },

    async operation(operationId, { waitMs = 0 } = {}) {
      const deadline = clock.monotonic() + Math.min(waitMs, WAIT_MS_MAX);
      for (;;) {
        const state = await directory.operation(checkOperationId(operationId));
        const left = deadline - clock.monotonic();
        if (state.state !== "running" || left <= 0) return state;
        await clock.sleep(Math.min(POLL_MS, left));
      }
    },

    async cancelOperation(operationId) {
      const operation = await directory.operation(checkOperationId(operationId));
      if (operation.state !== "running") {
        throw new Fault("REFUSED", `Operation "${operationId}" is ${operation.state}, it cannot be cancelled`, {
          details: { operationId },
        });
      }
      if (operation.plan !== undefined) {
        await dependencies.planRuns.cancel(operation.plan.name, operationId);
        return await directory.operation(operationId);
      }
      if (operation.workflowId === groupWorkflowId(operation.groupId)) {
        throw new Fault(
          "REFUSED",
          `Operation "${operationId}" is part of the group itself and cannot be cancelled alone`,
          {
            details: { operationId },
            hint: `End the protection instead: leeward group unprotect ${operation.groupId}`,
          },
        );
      }
      await workflows.cancel(operation.workflowId);
      return await directory.operation(operationId);
    },

    async retryOperation(replicaId, { operationId, ...body } = {}) {
      const { groupId } = await directory.replicaOperation(replicaId);
      return await workflows.update(groupId, "retryMembers", { ...identify(groupId, "retry", operationId), ...body });
    },

    async skipOperation(replicaId, { operationId } = {}) {
      const { groupId } = await directory.replicaOperation(replicaId);
      const request = identify(groupId, "skip", operationId);
      await workflows.update(groupId, "skipMembers", request);
      return await directory.operation(request.operationId);
    },

    async openExport(name, { point = "latest", writable = false, operationId }) {
      const state = await workflows.state(checkGroupName(name));
      const { masterTarget } = siteAccess(dependencies, state.targetSite);
      const chosen = selectPoint(await pointsOf(dependencies, state, point), point, clock.now());
      return await masterTarget.openExport({
        groupId: state.groupId,
        operationId: identify(name, "export", operationId).operationId,
        point: chosen.id,
        mode: writable ? "throw-away" : "read-only",
      });
    },

    async closeExport(operationId) {
      checkOperationId(operationId);
      for (const { masterTarget } of sites.values()) {
        const found = (await look(dependencies, () => masterTarget.listExports({})))?.find(
          (one) => one.operationId === operationId,
        );
        if (found === undefined) continue;
        const owner = await look(dependencies, () => directory.operation(operationId));
        if (owner !== undefined || found.mode === "read-write") {
          throw new Fault("REFUSED", `Export "${operationId}" belongs to machines that run on it`, {
            details: { operationId },
            hint: `See \`leeward operation show ${operationId}\``,
          });
        }
        await masterTarget.closeExport({ operationId, discard: true });
        return;
      }
      throw new Fault("NOT_FOUND", `No export "${operationId}"`, { details: { operationId } });
    },

    ...planService(dependencies, { directory, by }),

    failoverCandidates: async () =>
      await Promise.all((await directory.states()).map((state) => failoverCandidate(dependencies, state))),

    agents: () => lookAtAgents(dependencies),

    async enrolmentToken({ site, role, name }) {
      siteAccess(dependencies, site);
      const known = ENROLLED_ROLES.find((one) => one === role);
      if (known === undefined)
        throw new Fault("USAGE", `Expected a role of ${ENROLLED_ROLES.join(", ")}, got "${role}"`);
      if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name)) {
        throw new Fault("USAGE", `Expected a name of letters, digits, dots and dashes, got "${name}"`);
      }
      const { token, expiresAtMs } = await dependencies.enrolment.issueToken({ site, role: known, name });
      return {
        token,
        expiresAt: new Date(expiresAtMs).toISOString(),
        caFingerprint: dependencies.enrolment.caFingerprint,
      };
    },

    async enrol(token, csr) {
      const { cert, ca } = await dependencies.enrolment.redeem(token, csr);
      return { cert, ca, orderKey: dependencies.orderPublicKey };
    },

    async createMachine(site, { start, ...request }) {
      const { hypervisor } = siteAccess(dependencies, site);
      const machine = await hypervisor.createMachine(request);
      return start && machine.power === "off" ? await hypervisor.start(machine.id) : machine;
    },

    machines: async (site) => await siteAccess(dependencies, site).hypervisor.list(),

    shutdownMachine: async (site, machineId, options) =>
      await siteAccess(dependencies, site).hypervisor.shutdown(machineId, options),

    powerOffMachine: async (site, machineId) => await siteAccess(dependencies, site).hypervisor.powerOff(machineId),
  };
}
