/**
 * Which groups and operations there are. Temporal's list lags behind a start by a moment, and may be away; control's own orders know most
 * groups too. A group whose workflow cannot be asked must not keep anybody from the others.
 */
import { Fault, isFault } from "#model/fault.ts";
import { planOfRun } from "#model/plan/run-id.ts";
import type { GroupState, OperationState } from "../workflows/messages.ts";
import type { ApiDependencies } from "./dependencies.ts";
import { checkOperationId, groupOfOperation } from "./operation-id.ts";

export interface GroupDirectory {
  /** Groups that exist or that something still happens to. */
  states(): Promise<readonly GroupState[]>;
  /** As `states`; and why others could not be asked. */
  look(): Promise<{ readonly states: readonly GroupState[]; readonly broken: readonly Fault[] }>;
  /** Throws NOT_FOUND. */
  operation(operationId: string): Promise<OperationState>;
  /** A failover or a change of point: only what started machines can have left one behind. Throws REFUSED for another kind. */
  replicaOperation(operationId: string): Promise<OperationState>;
}

export function groupDirectory({ workflows, planRuns, orders, log }: ApiDependencies): GroupDirectory {
  async function groupIds(): Promise<readonly string[]> {
    const known = orders().map((order) => order.groupId);
    try {
      return [...new Set([...(await workflows.groupIds()), ...known])].sort();
    } catch (error) {
      if (!isFault(error) || known.length === 0) throw error;
      log.warn("Temporal's list of groups is not to be had", { fault: error });
      return known.toSorted();
    }
  }

  const directory: GroupDirectory = {
    states: async () => (await directory.look()).states,

    async look() {
      const broken: Fault[] = [];
      const all = await Promise.all(
        (await groupIds()).map(async (groupId) => {
          try {
            return await workflows.state(groupId);
          } catch (error) {
            if (isFault(error, "NOT_FOUND")) return undefined; // Ended between the list and the question.
            if (!isFault(error, "OPERATION_FAILED")) throw error;
            broken.push(error);
            return undefined;
          }
        }),
      );
      return { states: all.filter((state) => state !== undefined).filter(isShown), broken };
    },

    async operation(operationId) {
      const plan = planOfRun(operationId);
      if (plan !== undefined) return await planRuns.state(plan, operationId);
      const group = groupOfOperation(operationId);
      const candidates = group === undefined ? await groupIds() : [group];
      for (const groupId of candidates) {
        try {
          const found = (await workflows.state(groupId)).operations.find((one) => one.operationId === operationId);
          if (found !== undefined) return found;
        } catch (error) {
          if (!isFault(error, "NOT_FOUND")) throw error;
        }
      }
      throw new Fault("NOT_FOUND", `No operation "${operationId}"`, {
        details: { operationId },
        hint: "See `leeward operation list`",
      });
    },

    async replicaOperation(operationId) {
      const operation = await directory.operation(checkOperationId(operationId));
      if (operation.kind === "failover" || operation.kind === "changePoint") return operation;
      throw new Fault(
        "REFUSED",
        `Operation "${operationId}" is a ${operation.kind}, expected a failover or a change of point`,
        { details: { operationId }, hint: "See `leeward operation list`" },
      );
    },
  };
  return directory;
}

function isShown(state: GroupState): boolean {
  return state.phase !== "unprotected" || state.operations.some((operation) => operation.state === "running");
}
