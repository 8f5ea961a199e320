/**
 * Pays what a plan's run left unpaid when it was ended from outside, or could not pay itself: see plan-debts.ts. Started before the run's first step, and
 * outlives it (ABANDON).
 */
import { CancellationScope, isCancellation, log, setCurrentDetails, setHandler } from "@temporalio/workflow";
import { act } from "./act.ts";
import { faultOf } from "./failures.ts";
import { owe, paid, payDebt, type Creditor, type Debt } from "./plan-debts.ts";
import { release } from "./signals.ts";

/** A script or a call that fails for so long needs a person. Tests are ended until it works. */
const CALL_MS = 600_000;

export interface PlanJanitorInput extends Creditor {
  readonly plan: string;
  readonly watches: { readonly workflowId: string; readonly runId: string };
}

export async function planJanitor(
  input: PlanJanitorInput,
): Promise<{ readonly paid: number; readonly left: readonly string[] }> {
  const { watches, site } = input;
  const debts: Debt[] = [];
  let released = false;
  const watching = new CancellationScope();
  const tell = (what: string): void =>
    setCurrentDetails([`**Clean-up of plan ${input.plan}**`, "", what, ...debts.map(({ id }) => `- ${id}`)].join("\n"));
  const standBy = (): void =>
    tell(`Stands by for \`${watches.workflowId}\`. If that ends without saying so, it pays what is owed:`);
  setHandler(owe, (debt) => {
    if (!debts.some(({ id }) => id === debt.id)) debts.push(debt);
    standBy();
  });
  setHandler(paid, ({ id }) => {
    const at = debts.findIndex((one) => one.id === id);
    if (at >= 0) debts.splice(at, 1);
    standBy();
  });
  setHandler(release, () => {
    released = true;
    watching.cancel();
  });
  standBy();
  try {
    await watching.run(async () => {
      let closed = false;
      while (!closed)
        ({ closed } = await act("awaitWorkflowEnd", watches, { at: site, summary: `watch ${watches.workflowId}` }));
    });
  } catch (error) {
    // Released: the scope was cancelled by us. Cancelled from outside: pay, that is what a janitor is for.
    if (!isCancellation(error)) throw error;
  }
  if (released) {
    tell("Released: nothing was left to pay.");
    return { paid: 0, left: [] };
  }
  const left: string[] = [];
  let count = 0;
  for (let debt = debts.pop(); debt !== undefined; debt = debts.pop()) {
    tell(`Pays ${debt.id}; then:`);
    try {
      await payDebt(input, debt, debt.pays.with === "end-test" ? "until-it-works" : CALL_MS);
      count += 1;
    } catch (error) {
      // The others are still paid; a person finds this one by the workflow's result.
      left.push(`${debt.id}: ${faultOf(error).message}`);
      log.warn("A debt of a plan could not be paid", { id: debt.id, error: String(error) });
    }
  }
  tell(left.length === 0 ? "All is paid." : `Could not be paid, and needs a person: ${left.join("; ")}`);
  return { paid: count, left };
}
