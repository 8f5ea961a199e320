/**
 * An operation as a runbook: named steps whose state everybody can see, each with the compensation that was registered before it.
 *
 * Invariants:
 * - a compensation is registered before the step that it undoes, is idempotent, and runs in reverse order, not cancellable;
 * - a failed compensation does not keep the others from running; what is left is named in the result;
 * - `changed` hears of every change of the state, in order; the state is plain JSON and a new object each time.
 */
import { CancellationScope, isCancellation } from "@temporalio/workflow";
import type { OperationState, OperationStep } from "./messages.ts";
import { faultOf } from "./failures.ts";
import { now } from "./workflow-time.ts";

export interface Runbook {
  /** Run a step. `note` says what was found; it stays with the step. `budgetMs` is shown as "until when". */
  step<T>(
    name: string,
    work: (note: (detail: string) => void) => Promise<T>,
    options?: { readonly waitsFor?: string; readonly budgetMs?: number },
  ): Promise<T>;
  /** A step that there is no need for; `detail` says why. */
  skip(name: string, detail: string): void;
  /** Undo what `step` is about to do, should the operation fail. */
  undo(step: string, work: () => Promise<void>): void;
  /** From here on nothing is undone: the operation's result stands whatever fails later. */
  keep(): void;
  set(more: Pick<OperationState, "machines" | "otherPoints" | "pointId" | "pointCutAtMs" | "setAside">): void;
}

export interface RunResult {
  readonly operation: OperationState;
  /** Steps whose compensation failed. */
  readonly notUndone: readonly string[];
}

/**
 * Run `work` as operation. Never throws for a failure of the world: the result says failed or cancelled, with its fault, and what was
 * undone. `steps` are shown as waiting from the start.
 */
export async function runOperation(
  header: Omit<OperationState, "state" | "steps" | "startedAtMs">,
  steps: readonly string[],
  changed: (state: OperationState) => void,
  work: (run: Runbook) => Promise<void>,
): Promise<RunResult> {
  let state: OperationState = {
    ...header,
    state: "running",
    startedAtMs: now(),
    steps: steps.map((name) => ({ name, state: "waiting" })),
  };
  let undos: { readonly step: string; readonly work: () => Promise<void> }[] = [];
  const notUndone: string[] = [];
  const update = (next: OperationState): void => {
    state = next;
    changed(state);
  };
  const mark = (name: string, more: Partial<OperationStep>): void => update(withStep(state, name, more));
  const run: Runbook = {
    async step(name, work, options = {}) {
      let detail: string | undefined;
      const { waitsUntilMs: _previous, ...rest } = state;
      state = {
        ...rest,
        waitsFor: options.waitsFor ?? name,
        ...(options.budgetMs === undefined ? {} : { waitsUntilMs: now() + options.budgetMs }),
      };
      mark(name, { state: "running", startedAtMs: now() });
      const told = (): Partial<OperationStep> => ({ endedAtMs: now(), ...(detail === undefined ? {} : { detail }) });
      try {
        const result = await work((text) => {
          detail = text;
        });
        mark(name, { state: "done", ...told() });
        return result;
      } catch (error) {
        mark(name, { state: "failed", ...told(), detail: faultOf(error).message });
        throw error;
      }
    },
    skip: (name, detail) => mark(name, { state: "skipped", detail }),
    undo: (step, work) => void undos.push({ step, work }),
    keep: () => void (undos = []),
    set: (more) => update({ ...state, ...more }),
  };
  update(state);
  try {
    await work(run);
    update(ended(state, "done"));
  } catch (error) {
    const fault = faultOf(error);
    await CancellationScope.nonCancellable(async () => {
      for (const { step, work } of undos.reverse()) {
        update({ ...state, waitsFor: `undo: ${step}` });
        try {
          await work();
          // A step that never began needs no mark.
          if (state.steps.some((one) => one.name === step && one.state !== "waiting")) mark(step, { state: "undone" });
        } catch (undoError) {
          // The others are still undone; the caller decides what this means.
          notUndone.push(step);
          mark(step, { detail: `not undone: ${faultOf(undoError).message}` });
        }
      }
    });
    const { details: _details, ...told } = fault.toJSON();
    update({ ...ended(state, isCancellation(error) ? "cancelled" : "failed"), fault: told });
  }
  return { operation: state, notUndone };
}

function ended(state: OperationState, how: "done" | "failed" | "cancelled"): OperationState {
  const { waitsFor: _waitsFor, waitsUntilMs: _waitsUntilMs, ...rest } = state;
  return {
    ...rest,
    state: how,
    endedAtMs: now(),
    steps: state.steps.map((step) => (step.state === "waiting" ? { ...step, state: "skipped" } : step)),
  };
}

function withStep(state: OperationState, name: string, more: Partial<OperationStep>): OperationState {
  const known = state.steps.some((step) => step.name === name);
  const steps = known
    ? state.steps.map((step) => (step.name === name ? { ...step, ...more } : step))
    : [...state.steps, { name, state: "running" as const, ...more }];
  return { ...state, steps };
}
