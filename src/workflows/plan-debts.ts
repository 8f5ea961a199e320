/**
 * What a run owes the world: what must be taken away when it ends, however it ends. The run pays its debts itself; a janitor, told of each one before it is
 * incurred, pays when the run was ended from outside.
 *
 * Invariants:
 * - a debt is told before what makes it, and its payment is idempotent: one that was never incurred is paid by doing nothing, or by an undo of nothing, for
 *   which scripts must be ready;
 * - of a real failover nothing is undone behind a person's back: there only clean-ups are owed, and `undo` is a decision of the plan or of a person.
 */
import { CancellationScope, defineSignal } from "@temporalio/workflow";
import type { JsonObject } from "#model/json.ts";
import type { BoundCall } from "#model/plan/resolved-plan.ts";
import { act, PRIORITY } from "./act.ts";

export interface Debt {
  /** Of the step, and what for: `data/pre/stop undo`. */
  readonly id: string;
  readonly pays:
    | { readonly with: "call"; readonly call: BoundCall }
    | {
        readonly with: "end-test";
        readonly group: string;
        readonly testOperationId: string;
        readonly operationId: string;
      };
}

export interface Creditor {
  readonly site: string;
  readonly operationId: string;
  readonly by: string;
  readonly context: JsonObject;
}

/** To a run's janitor. */
export const owe = defineSignal<[Debt]>("owe");
export const paid = defineSignal<[{ readonly id: string }]>("paid");

/** `budgetMs`: how long it is tried. Not cancellable. */
export async function payDebt(
  { site, operationId, by, context }: Creditor,
  { id, pays }: Debt,
  budgetMs: number | "until-it-works",
): Promise<string> {
  const at = { at: site, priority: PRIORITY.test, budgetMs };
  return await CancellationScope.nonCancellable(async () => {
    if (pays.with === "end-test") {
      const { with: _with, ...test } = pays;
      await act("endTest", { ...test, by }, { ...at, summary: `end the test failover of ${test.group}` });
      return `the test failover of ${test.group} is gone`;
    }
    const request = { id: `${operationId}/${id}`, call: pays.call, context: { ...context, step: id } };
    const { outcome } = await act("runAction", request, { ...at, summary: id });
    return outcome;
  });
}
