/** What is wrong with a plan beyond its shape. Each finding says where, as a path into the document; line and column are the parser's. */
import { groupsOfPlan, type ActionCall, type PlanAction, type RecoveryPlan } from "./recovery-plan.ts";

export interface PlanProblem {
  readonly path: readonly (string | number)[];
  readonly message: string;
  readonly hint?: string;
}

/** In the order of the document. `known` are the protection groups that exist; left out: any may. */
export function planProblems(plan: RecoveryPlan, known?: readonly string[]): readonly PlanProblem[] {
  return [
    ...repeated(
      plan.boot.map(({ name }) => name),
      (index) => ["boot", index, "name"],
      "boot group",
    ),
    ...plan.boot.flatMap((boot, index) => [
      ...memberProblems(plan, index, known),
      ...(["pre", "post"] as const).flatMap((side) => [
        ...repeated(
          boot[side].map(({ name }) => name),
          (at) => ["boot", index, side, at, "name"],
          `${side} action`,
        ),
        ...boot[side].flatMap((action, at) => actionProblems(plan, action, ["boot", index, side, at])),
      ]),
    ]),
    ...Object.keys(plan.scripts).flatMap((script) =>
      usesScript(plan, script)
        ? []
        : [{ path: ["scripts", script], message: `Script "${script}" is used by no action, undo or clean-up` }],
    ),
  ];
}

function memberProblems(plan: RecoveryPlan, index: number, known: readonly string[] | undefined): PlanProblem[] {
  const problems: PlanProblem[] = [];
  const members = plan.boot[index]?.groups ?? [];
  const everywhere = groupsOfPlan(plan);
  const before = plan.boot.slice(0, index).flatMap(({ groups }) => groups.map(({ group }) => group));
  members.forEach(({ group, after, onOverrun, checks }, at) => {
    const here = ["boot", index, "groups", at] as const;
    if (before.includes(group) || members.findIndex((one) => one.group === group) < at)
      problems.push({ path: [...here, "group"], message: `Group "${group}" is in the plan twice, expected once` });
    if (known !== undefined && !known.includes(group))
      problems.push({
        path: [...here, "group"],
        message: `Group "${group}" is not protected`,
        hint: known.length === 0 ? "Nothing is protected yet" : `Protected: ${known.join(", ")}`,
      });
    if (onOverrun === "retry")
      problems.push({
        path: [...here, "onOverrun"],
        message: `A move of group "${group}" cannot be begun again while it runs, expected "wait" or "ask"`,
      });
    after.forEach((name, position) => {
      const path = [...here, "after", position];
      if (members.some((one) => one.group === name)) return;
      const message = everywhere.includes(name)
        ? `Group "${name}" is in another boot group, expected one of "${plan.boot[index]?.name}"`
        : `Group "${name}" is not in the plan`;
      problems.push({ path, message, hint: "Boot groups come one after the other as they are written" });
    });
    checks.forEach((check, position) => {
      if (check.check === "tcp" && (check.path !== undefined || check.status !== undefined))
        problems.push({ path: [...here, "checks", position], message: "A tcp check has neither path nor status" });
    });
  });
  const cycle = findCycle(new Map(members.map(({ group, after }) => [group, after])));
  if (cycle !== undefined) {
    const at = members.findIndex(({ group }) => group === cycle[0]);
    problems.push({
      path: ["boot", index, "groups", at, "after"],
      message: `Each waits for the next, and none can begin: ${cycle.join(" → ")}`,
    });
  }
  return problems;
}

function actionProblems(plan: RecoveryPlan, action: PlanAction, here: readonly (string | number)[]): PlanProblem[] {
  const missing = (call: ActionCall, path: readonly (string | number)[]): PlanProblem[] =>
    call.do === "script" && !Object.hasOwn(plan.scripts, call.script)
      ? [
          {
            path,
            message: `Script "${call.script}" is not in the plan`,
            hint: `Write it below "scripts"; there: ${Object.keys(plan.scripts).join(", ") || "none"}`,
          },
        ]
      : [];
  const { call, undo, cleanup, modes } = action;
  return [
    ...(call.do === "approval" ? [] : missing(call, [...here, call.do])),
    ...(undo === "none" ? [] : missing(undo, [...here, "undo", undo.do])),
    ...(cleanup === undefined ? [] : missing(cleanup, [...here, "cleanup", cleanup.do])),
    ...(call.do === "approval" && modes.includes("test")
      ? [
          {
            path: [...here, "modes"],
            message: `Approval "${action.name}" would hold up every drill until somebody comes`,
          },
        ]
      : []),
    ...(action.onOverrun === "retry" && call.do === "approval"
      ? [
          {
            path: [...here, "onOverrun"],
            message: `Approval "${action.name}" waits for a person and is never repeated`,
          },
        ]
      : []),
  ];
}

function repeated(
  names: readonly string[],
  path: (index: number) => readonly (string | number)[],
  what: string,
): PlanProblem[] {
  return names.flatMap((name, index) =>
    names.indexOf(name) < index
      ? [{ path: path(index), message: `There are two of ${what} "${name}", expected different names` }]
      : [],
  );
}

function usesScript(plan: RecoveryPlan, script: string): boolean {
  const is = (call: PlanAction["call"] | PlanAction["undo"] | undefined): boolean =>
    typeof call === "object" && call.do === "script" && call.script === script;
  return plan.boot.some(({ pre, post }) =>
    [...pre, ...post].some(({ call, undo, cleanup }) => is(call) || is(undo) || is(cleanup)),
  );
}

/** A way from a name back to itself, the name at both ends; undefined when there is none. */
function findCycle(after: ReadonlyMap<string, readonly string[]>): readonly string[] | undefined {
  const done = new Set<string>();
  const visit = (name: string, way: readonly string[]): readonly string[] | undefined => {
    const from = way.indexOf(name);
    if (from >= 0) return [...way.slice(from), name];
    if (done.has(name)) return undefined;
    for (const next of after.get(name) ?? []) {
      const found = visit(next, [...way, name]);
      if (found !== undefined) return found;
    }
    done.add(name);
    return undefined;
  };
  for (const name of after.keys()) {
    const found = visit(name, []);
    if (found !== undefined) return found;
  }
  return undefined;
}
