/** Resolution of plans: order, filters, blockers and predictions; and on random plans, against a dumb executor. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { planProblems } from "#model/plan/check-plan.ts";
import { planChanges } from "#model/plan/plan-changes.ts";
import { PLAN_MODES, type PlanAction, type PlanMember, type RecoveryPlan } from "#model/plan/recovery-plan.ts";
import { resolvePlan, type PlanFacts, type PlanGroupFacts } from "#model/plan/resolve-plan.ts";

const POLICY = { onOverrun: "ask", retries: 0, onFailure: "ask" } as const;

function member(group: string, more: Partial<PlanMember> = {}): PlanMember {
  return { group, after: [], checks: [], ...POLICY, ...more };
}

function script(name: string, more: Partial<PlanAction> = {}): PlanAction {
  const call = { do: "script", script: "run", timeoutMs: 1_000 } as const;
  return { name, call, undo: call, modes: PLAN_MODES, ...POLICY, ...more };
}

function planOf(boot: RecoveryPlan["boot"], more: Partial<RecoveryPlan> = {}): RecoveryPlan {
  return { plan: "shop", objectives: {}, scripts: { run: "exit 0" }, boot, ...more };
}

const well: PlanGroupFacts = { reversed: false, lossMs: 2_000, machines: [{ name: "m", ports: [80] }] };
const facts = (
  groups: Readonly<Record<string, Partial<PlanGroupFacts>>>,
  times: PlanFacts["times"] = {},
): PlanFacts => ({
  groups: Object.fromEntries(Object.entries(groups).map(([name, more]) => [name, { ...well, ...more }])),
  times,
  runs: Math.max(0, ...Object.values(times).map((one) => one.length)),
});

const TWO = planOf([
  {
    name: "data",
    pre: [script("stop"), script("tell", { modes: ["planned"] })],
    groups: [
      member("db", { checks: [{ check: "tcp", port: 80, withinMs: 5_000, ...POLICY }] }),
      member("cache", { after: ["db"] }),
    ],
    post: [script("home-only", { direction: "home" })],
  },
  { name: "front", pre: [], groups: [member("web", { point: "@good" })], post: [script("open")] },
]);

test("steps wait for what comes before them; what the mode or the direction leaves out is said", () => {
  const resolved = resolvePlan(TWO, facts({ db: {}, cache: {}, web: {} }), {
    version: 3,
    mode: "unplanned",
    sourceLost: true,
  });
  assert.deepEqual(
    resolved.steps.map(({ id, after }) => [id, ...after]),
    [
      ["data/pre/stop"],
      ["data/db", "data/pre/stop"],
      ["data/db/check-1", "data/db"],
      ["data/cache", "data/pre/stop", "data/db/check-1"],
      ["front/web", "data/db/check-1", "data/cache"],
      ["front/post/open", "front/web"],
    ],
  );
  assert.deepEqual(resolved.leftOut, [
    { step: "data/pre/tell", why: 'not in mode "unplanned", only in planned' },
    { step: "data/post/home-only", why: 'not in direction "out", only "home"' },
  ]);
  assert.deepEqual([resolved.onCancel, resolved.sourceLost, resolved.version], ["keep", true, 3]);
  assert.deepEqual(resolved.steps[0]?.undo, { do: "script", script: "run", text: "exit 0", timeoutMs: 1_000 });
  assert.deepEqual(resolved.steps[4]?.work, { do: "move", group: "web", move: "unplanned", point: "@good" });
  assert.deepEqual(resolved.blockers, []);
});

test("a planned move takes its final cut, loses nothing, and goes back when it is cancelled", () => {
  const resolved = resolvePlan(TWO, facts({ db: {}, cache: {}, web: {} }), { version: 1, mode: "planned" });
  assert.deepEqual(resolved.steps.find(({ id }) => id === "front/web")?.work, {
    do: "move",
    group: "web",
    move: "planned",
    point: "latest",
  });
  assert.equal(resolved.predicted.rpoMs, 0);
  assert.equal(resolved.onCancel, "undo");
  assert.ok(
    resolvePlan(TWO, facts({ db: {} }), { version: 1, mode: "failback" }).steps.some(
      ({ id }) => id === "data/post/home-only",
    ),
  );
});

test("what blocks is named with its step: a group that is gone, a refusal, no point, a port that nobody publishes", () => {
  const { blockers } = resolvePlan(
    TWO,
    facts({
      db: { machines: [{ name: "m", ports: [22] }] },
      cache: { refusal: { message: "is paused", hint: "resume" } },
    }),
    { version: 1, mode: "test" },
  );
  assert.deepEqual(
    blockers.map(({ step, message }) => `${step}: ${message}`),
    [
      'data/db/check-1: Nothing of group "db" publishes port 80',
      "data/cache: is paused",
      'front/web: Group "web" is not protected',
    ],
  );
  const { blockers: others } = resolvePlan(
    TWO,
    facts({ db: { pointFault: { message: "no point" } }, cache: {}, web: {} }),
    {
      version: 1,
      mode: "test",
    },
  );
  assert.deepEqual(others, [{ step: "data/db", message: "no point" }]);
});

test("the time to recover is that of the longest way, from the median of each step; unknown while one was never timed", () => {
  const all = facts(
    { db: { lossMs: 9_000 }, cache: {}, web: {} },
    {
      "data/pre/stop": [1, 100, 3],
      "data/db": [1_000, 2_000],
      "data/db/check-1": [40],
      "data/cache": [7],
      "front/web": [600],
      "front/post/open": [5],
    },
  );
  const { predicted } = resolvePlan(TWO, all, { version: 1, mode: "unplanned" });
  assert.deepEqual(predicted, { rtoMs: 3 + 1_500 + 40 + 7 + 600 + 5, rpoMs: 9_000, runs: 3 });
  const { "front/web": _one, ...others } = all.times;
  assert.equal(
    resolvePlan(TWO, { ...all, times: others }, { version: 1, mode: "unplanned" }).predicted.rtoMs,
    undefined,
  );
  assert.equal(
    resolvePlan(TWO, facts({ db: { lossMs: null }, cache: {}, web: {} }), { version: 1, mode: "test" }).predicted.rpoMs,
    null,
  );
});

test("on any plan without problems every step can begin, each exactly once, and nothing of a later boot group before an earlier one has ended", () => {
  const shape = fc.array(
    fc.record({
      pre: fc.nat(3),
      post: fc.nat(3),
      members: fc.array(fc.record({ checks: fc.nat(2), after: fc.array(fc.nat(4), { maxLength: 3 }) }), {
        minLength: 1,
        maxLength: 5,
      }),
    }),
    { minLength: 1, maxLength: 4 },
  );
  fc.assert(
    fc.property(shape, fc.constantFrom(...PLAN_MODES), fc.infiniteStream(fc.nat()), (boots, mode, choices) => {
      const plan = planOf(
        boots.map((boot, index) => ({
          name: `b${index}`,
          pre: Array.from({ length: boot.pre }, (_, at) => script(`s${at}`, at === 1 ? { modes: ["planned"] } : {})),
          groups: boot.members.map((one, at) =>
            member(`g${index}-${at}`, {
              after: one.after.filter((other) => other < boot.members.length).map((other) => `g${index}-${other}`),
              checks: Array.from({ length: one.checks }, () => ({
                check: "tcp" as const,
                port: 80,
                withinMs: 1,
                ...POLICY,
              })),
            }),
          ),
          post: Array.from({ length: boot.post }, (_, at) => script(`s${at}`)),
        })),
      );
      const problems = planProblems(plan).filter(({ path }) => path[0] !== "scripts");
      const isCyclic = boots.some((boot) =>
        hasCycle(boot.members.map((one) => one.after.filter((other) => other < boot.members.length))),
      );
      assert.equal(problems.length > 0, isCyclic, JSON.stringify(problems));
      if (isCyclic) return;
      const groups = Object.fromEntries(plan.boot.flatMap((boot) => boot.groups.map(({ group }) => [group, {}])));
      const { steps, leftOut } = resolvePlan(plan, facts(groups), { version: 1, mode });
      const written = plan.boot.reduce(
        (sum, boot) =>
          sum +
          boot.pre.length +
          boot.post.length +
          boot.groups.reduce((count, one) => count + 1 + one.checks.length, 0),
        0,
      );
      assert.equal(steps.length + leftOut.length, written);
      assert.equal(new Set(steps.map(({ id }) => id)).size, steps.length);
      // The dumb executor: begin whatever may begin, in any order, one at a time.
      const ended = new Set<string>();
      while (ended.size < steps.length) {
        const ready = steps.filter(({ id, after }) => !ended.has(id) && after.every((one) => ended.has(one)));
        assert.ok(ready.length > 0, "nothing can begin");
        const step = ready[choices.next().value % ready.length]!;
        for (const other of steps)
          if (other.boot < step.boot) assert.ok(ended.has(other.id), `${step.id} before ${other.id}`);
        const member = plan.boot[step.boot]?.groups.find(({ group }) => step.id === `b${step.boot}/${group}`);
        for (const name of member?.after ?? [])
          for (const other of steps)
            if (other.id.startsWith(`b${step.boot}/${name}`))
              assert.ok(ended.has(other.id), `${step.id} before ${other.id}`);
        ended.add(step.id);
      }
    }),
    { numRuns: 300 },
  );
});

/** By walking every way as long as there can be one. */
function hasCycle(after: readonly (readonly number[])[]): boolean {
  let ways: readonly (readonly number[])[] = after.map((_, at) => [at]);
  for (let length = 0; length <= after.length; length += 1)
    ways = ways.flatMap((way) => (after[way.at(-1) ?? 0] ?? []).map((next) => [...way, next])).slice(0, 5_000);
  return ways.length > 0;
}

test("changes between two versions are named by place; entries of a list are known by their name, and their order counts", () => {
  const json = (value: unknown) => JSON.parse(JSON.stringify(value)) as Parameters<typeof planChanges>[0];
  const [data, front] = TWO.boot;
  const later = {
    ...TWO,
    boot: [
      { ...data!, groups: [member("db", { budgetMs: 5 }), ...data!.groups.slice(1)] },
      { ...front!, post: [] },
    ],
    scripts: { run: "exit 1" },
  };
  assert.deepEqual(
    planChanges(json(TWO), json(later)).map(({ at }) => at),
    ["scripts.run", "boot.data.groups.db.checks", "boot.data.groups.db.budgetMs", "boot.front.post.open"],
  );
  assert.deepEqual(planChanges(json(TWO), json(TWO)), []);
  assert.deepEqual(planChanges(json(TWO), json({ ...TWO, boot: [front, data] })), [
    { at: "boot", was: ["data", "front"], is: ["front", "data"] },
  ]);
});
