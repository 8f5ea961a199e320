/** The groups' commands as a plan's run gives them, over the same client that the API uses. */
import { isFaultCode } from "#model/fault.ts";
import type { GroupCommands } from "#ports/group-commands.ts";
import type { OperationState } from "../../workflows/messages.ts";
import type { GroupWorkflows } from "../group-workflows.ts";

export function groupCommands(workflows: Pick<GroupWorkflows, "update" | "state" | "cancel">): GroupCommands {
  const find = async (groupId: string, operationId: string): Promise<OperationState | undefined> =>
    (await workflows.state(groupId)).operations.find((one) => one.operationId === operationId);
  return {
    command: async (groupId, name, request) => void (await workflows.update(groupId, name, request)),

    async operation(groupId, operationId) {
      const found = await find(groupId, operationId);
      if (found === undefined) return undefined;
      const { state, steps, waitsFor, fault, machines = [], pointId, pointCutAtMs } = found;
      const step = steps.find((one) => one.state === "running")?.name;
      const detail = steps.findLast((one) => one.detail !== undefined)?.detail;
      return {
        state,
        up: state === "running" && step === "lease",
        machines: machines.map(({ name, site, forwards }) => ({ name, site, forwards })),
        ...(step === undefined ? {} : { step }),
        ...(waitsFor === undefined ? {} : { waitsFor }),
        ...(fault === undefined || !isFaultCode(fault.code)
          ? {}
          : { fault: { ...fault, code: fault.code, details: {} } }),
        ...(pointId === undefined ? {} : { pointId }),
        ...(pointCutAtMs === undefined ? {} : { pointCutAtMs }),
        ...(detail === undefined ? {} : { detail }),
      };
    },

    async cancel(groupId, operationId) {
      const found = await find(groupId, operationId);
      if (found?.state === "running") await workflows.cancel(found.workflowId);
    },
  };
}
