/**
 * From a plan, what is known of its groups and what earlier runs took, to the steps of one run. Pure: whoever asks gathers the facts.
 *
 * Invariants:
 * - every step names what it waits for, only steps before it in the list, so the list is an order in which it can be executed;
 * - a blocker keeps nobody from reading the plan: the whole of it is resolved, and each blocker names its step.
 */
import {
  RESOLVED_FORMAT,
  type BoundCall,
  type PlanBlocker,
  type PlanStep,
  type ResolvedPlan,
  type StepWork,
} from "./resolved-plan.ts";
import type {
  ActionCall,
  BootGroup,
  PlanAction,
  PlanDirection,
  PlanMember,
  PlanMode,
  RecoveryPlan,
  StepPolicy,
} from "./recovery-plan.ts";

export interface PlanFacts {
  /** By name; a group that is not there does not exist. */
  readonly groups: Readonly<Record<string, PlanGroupFacts>>;
  /** Of runs in the same mode: how long each step took, by id, newest first. */
  readonly times: Readonly<Record<string, readonly number[]>>;
  readonly runs: number;
}

export interface PlanGroupFacts {
  /** Why the move of this mode is not allowed now. */
  readonly refusal?: { readonly message: string; readonly hint: string };
  /** Why no point can be taken. */
  readonly pointFault?: { readonly message: string; readonly hint?: string };
  readonly reversed: boolean;
  /** What the move would lose now; null when that is not known. */
  readonly lossMs: number | null;
  readonly machines: readonly { readonly name: string; readonly ports: readonly number[] }[];
}

export interface ResolveOptions {
  readonly version: number;
  readonly mode: PlanMode;
  readonly sourceLost?: boolean;
}

/** Without a budget of its own. A move's own steps are bounded by its workflow. */
const BUDGET_MS = { move: 3_600_000, approval: 86_400_000, margin: 30_000 } as const;

export function resolvePlan(plan: RecoveryPlan, facts: PlanFacts, options: ResolveOptions): ResolvedPlan {
  const { mode, version, sourceLost = false } = options;
  const direction = directionOf(plan, facts, mode);
  const leftOut: { step: string; why: string }[] = [];
  const blockers: PlanBlocker[] = [];
  const steps: PlanStep[] = [];
  const add = (step: Omit<PlanStep, "expectedMs">): string => {
    const expectedMs = median(facts.times[step.id] ?? []);
    steps.push({ ...step, ...(expectedMs === undefined ? {} : { expectedMs }) });
    return step.id;
  };

  let gate: readonly string[] = [];
  plan.boot.forEach((boot, index) => {
    const actions = (side: "pre" | "post"): void => {
      for (const action of boot[side]) {
        const id = `${boot.name}/${side}/${action.name}`;
        const why = leavesOut(action, mode, direction);
        if (why === undefined) gate = [add(actionStep(plan, action, { id, boot: index, after: gate }))];
        else leftOut.push({ step: id, why });
      }
    };
    actions("pre");
    const opened = gate;
    const ends = new Map<string, readonly string[]>();
    for (const member of inOrder(boot)) {
      const after = [...new Set([...opened, ...member.after.flatMap((name) => ends.get(name) ?? [])])];
      const id = add(memberStep(boot, member, { mode, index, after }));
      blockers.push(...memberBlockers(id, member, facts.groups[member.group]));
      const checks = member.checks.map((check, at) => {
        const { budgetMs: _budget, withinMs, onOverrun, retries, onFailure, ...what } = check;
        const work = { do: "check" as const, group: member.group, ...what, withinMs };
        const policy = { onOverrun, retries, onFailure, budgetMs: check.budgetMs ?? withinMs + BUDGET_MS.margin };
        return add({ id: `${id}/check-${at + 1}`, boot: index, after: [id], work, ...policy });
      });
      ends.set(member.group, checks.length === 0 ? [id] : checks);
    }
    gate = [...ends.values()].flat();
    actions("post");
  });

  return {
    format: RESOLVED_FORMAT,
    plan: plan.plan,
    version,
    mode,
    direction,
    sourceLost,
    onCancel: mode === "test" ? "undo" : (plan.onCancel ?? (mode === "unplanned" ? "keep" : "undo")),
    objectives: plan.objectives,
    steps,
    leftOut,
    predicted: { ...longestWay(steps), rpoMs: loss(plan, facts, mode), runs: facts.runs },
    blockers,
  };
}

/** A failback goes home; so does whatever is done with groups that are all reversed. */
function directionOf(plan: RecoveryPlan, facts: PlanFacts, mode: PlanMode): PlanDirection {
  if (mode === "failback") return "home";
  const groups = plan.boot.flatMap(({ groups }) => groups.map(({ group }) => facts.groups[group]?.reversed ?? false));
  return groups.every(Boolean) ? "home" : "out";
}

function leavesOut(action: PlanAction, mode: PlanMode, direction: PlanDirection): string | undefined {
  if (!action.modes.includes(mode)) return `not in mode "${mode}", only in ${action.modes.join(", ")}`;
  if (action.direction !== undefined && action.direction !== direction)
    return `not in direction "${direction}", only "${action.direction}"`;
  return undefined;
}

/** Members so that each comes after those that it waits for. The plan was checked: there is no cycle. */
function inOrder({ groups, name }: BootGroup): readonly PlanMember[] {
  const done: PlanMember[] = [];
  while (done.length < groups.length) {
    const next = groups.find(
      (one) => !done.includes(one) && one.after.every((other) => done.some(({ group }) => group === other)),
    );
    if (next === undefined) throw new RangeError(`Boot group "${name}" cannot be ordered; it was never checked`);
    done.push(next);
  }
  return done;
}

interface Place {
  readonly id: string;
  readonly boot: number;
  readonly after: readonly string[];
}

function actionStep(plan: RecoveryPlan, action: PlanAction, place: Place): Omit<PlanStep, "expectedMs"> {
  const { call, undo, cleanup } = action;
  const work: StepWork = call.do === "approval" ? call : bind(plan, call);
  const usual = call.do === "approval" ? BUDGET_MS.approval : call.timeoutMs + BUDGET_MS.margin;
  return {
    ...place,
    work,
    ...policyOf(action, usual),
    ...(undo === "none" ? {} : { undo: bind(plan, undo) }),
    ...(cleanup === undefined ? {} : { cleanup: bind(plan, cleanup) }),
  };
}

function memberStep(
  boot: BootGroup,
  member: PlanMember,
  { mode, index, after }: { readonly mode: PlanMode; readonly index: number; readonly after: readonly string[] },
): Omit<PlanStep, "expectedMs"> {
  // A planned move takes the final cut: an older point would lose what it is there to keep.
  const point = mode === "planned" || mode === "failback" ? "latest" : (member.point ?? "latest");
  const work: StepWork = { do: "move", group: member.group, move: mode, point };
  return { id: `${boot.name}/${member.group}`, boot: index, after, work, ...policyOf(member, BUDGET_MS.move) };
}

function policyOf(
  policy: StepPolicy,
  usualMs: number,
): Pick<PlanStep, "budgetMs" | "onOverrun" | "retries" | "onFailure"> {
  const { budgetMs = usualMs, onOverrun, retries, onFailure } = policy;
  return { budgetMs, onOverrun, retries, onFailure };
}

function bind(plan: RecoveryPlan, call: ActionCall): BoundCall {
  if (call.do === "http") return call;
  const text = plan.scripts[call.script];
  if (text === undefined) throw new RangeError(`No script "${call.script}"; the plan was never checked`);
  return { ...call, text };
}

function memberBlockers(step: string, member: PlanMember, facts: PlanGroupFacts | undefined): PlanBlocker[] {
  if (facts === undefined)
    return [
      { step, message: `Group "${member.group}" is not protected`, hint: "Protect it, or take it out of the plan" },
    ];
  const blockers: PlanBlocker[] = [];
  if (facts.refusal !== undefined) blockers.push({ step, ...facts.refusal });
  else if (facts.pointFault !== undefined) blockers.push({ step, ...facts.pointFault });
  member.checks.forEach(({ port, machine }, at) => {
    const machines = facts.machines.filter(({ name }) => machine === undefined || name === machine);
    const check = `${step}/check-${at + 1}`;
    if (machines.length === 0)
      blockers.push({
        step: check,
        message: `Group "${member.group}" has no machine "${machine}"`,
        hint: `It has ${facts.machines.map(({ name }) => name).join(", ")}`,
      });
    else if (!machines.some(({ ports }) => ports.includes(port)))
      blockers.push({
        step: check,
        message: `Nothing of group "${member.group}" publishes port ${port}`,
        hint: `Published: ${machines.flatMap(({ ports }) => ports).join(", ") || "none"}`,
      });
  });
  return blockers;
}

function loss(plan: RecoveryPlan, facts: PlanFacts, mode: PlanMode): number | null {
  if (mode === "planned" || mode === "failback") return 0;
  const losses = plan.boot.flatMap(({ groups }) => groups.map(({ group }) => facts.groups[group]?.lossMs ?? null));
  const known = losses.filter((one) => one !== null);
  return known.length < losses.length ? null : Math.max(0, ...known);
}

/** When the last step ends, if each takes as long as it used to. An approval that was never timed counts as none. */
function longestWay(steps: readonly PlanStep[]): { readonly rtoMs?: number } {
  const ends = new Map<string, number>();
  for (const { id, after, expectedMs, work } of steps) {
    const took = expectedMs ?? (work.do === "approval" ? 0 : undefined);
    if (took === undefined) return {};
    ends.set(id, Math.max(0, ...after.map((one) => ends.get(one) ?? 0)) + took);
  }
  return { rtoMs: Math.max(0, ...ends.values()) };
}

function median(values: readonly number[]): number | undefined {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length % 2 === 1) return sorted[middle];
  return sorted.length === 0 ? undefined : Math.round(((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2);
}
