/**
 * Plans on a real Temporal server over fake sites, one pair for each group: what the tests of plan runs share. Each activity goes to the pair whose group it
 * names. Actions are recorded, and fail where a test says.
 */
import { randomUUID } from "node:crypto";
import { Client } from "@temporalio/client";
import { Fault } from "#model/fault.ts";
import type { RecoveryPlan } from "#model/plan/recovery-plan.ts";
import type { ResolvedPlan } from "#model/plan/resolved-plan.ts";
import { resolvePlan, type PlanFacts } from "#model/plan/resolve-plan.ts";
import type { PlanMode } from "#model/plan/recovery-plan.ts";
import { runRecordOf, type RunReport } from "#model/plan/run-report.ts";
import type { Activities } from "../../src/activities/contract.ts";
import { createPlanActivities } from "../../src/activities/plan-activities.ts";
import type { PlanActivities } from "../../src/activities/plan-contract.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { createGroupWorkflows } from "../../src/api/group-workflows.ts";
import { groupCommands } from "../../src/api/plan/group-commands.ts";
import { parsePlan } from "../../src/api/plan/parse-plan.ts";
import { createPlanRuns, type PlanRuns } from "../../src/api/plan/plan-runs.ts";
import type { Fleet } from "../../src/main/worker-fleet.ts";
import type { OperationState } from "../../src/workflows/messages.ts";
import type { PlanStart } from "../../src/workflows/plan-messages.ts";
import { createFakeSites, SOURCE, TARGET, type FakeSites } from "./fake-sites.ts";
import { isOpen, openGroup, terminateAll, type TestGroup } from "./group-harness.ts";
import { startTemporal, type TestTemporal } from "./temporal.ts";

/** Fails the Nth call of an action whose id contains `name`. */
export interface ActionRule {
  readonly name: string;
  readonly at: number;
  readonly times: number;
}

export interface PlanWorld {
  readonly planName: string;
  /** What a drill of the plan is given when it asks for it. */
  drillOf(yaml: string): void;
  readonly groups: Readonly<Record<string, TestGroup>>;
  /** `data/pre/stop`, `data/pre/stop undo`: every action that was carried out, in order. */
  readonly done: string[];
  /** Ids of all calls, with repeats. */
  readonly called: string[];
  failAction(rule: ActionRule): void;
  /** Ports that answer no check. */
  readonly silent: Set<number>;
  /** An action of this name goes on until it is stopped. */
  readonly hanging: Set<string>;
  readonly runs: PlanRuns;
  /** Resolve as if nothing blocked, and start. */
  start(yaml: string, mode: PlanMode, more?: Partial<PlanStart>): Promise<string>;
  state(operationId: string): Promise<OperationState>;
  until(
    operationId: string,
    what: string,
    holds: (state: OperationState) => boolean,
    timeoutMs?: number,
  ): Promise<OperationState>;
  ended(operationId: string, timeoutMs?: number): Promise<OperationState>;
  decide(
    operationId: string,
    decision: "approve" | "reject" | "retry" | "skip",
    step: string,
    more?: { readonly id?: string; readonly note?: string },
  ): Promise<void>;
  reports(): readonly RunReport[];
  leftovers(): readonly string[];
}

export interface PlanHarness {
  readonly temporal: TestTemporal;
  world(names: readonly string[]): Promise<PlanWorld>;
  /** Workers of the current world, started anew: as after a restart. */
  restart(): Promise<void>;
  stop(): Promise<void>;
}

export const LIMITS = { retryMs: 50, remindMs: 300, debtMs: 5_000 } as const;

export async function openPlanHarness(): Promise<PlanHarness> {
  const temporal = await startTemporal();
  let current: { readonly sites: readonly FakeSites[]; readonly plan: PlanActivities } | undefined;
  const activities = new Proxy({} as Activities, {
    ownKeys: () => [...names, ...planNames],
    getOwnPropertyDescriptor: () => ({ enumerable: true, configurable: true }),
    get: (_target, name: string) => async (input: object) => {
      if (planNames.includes(name)) return await current!.plan[name as keyof PlanActivities](input as never);
      const text = JSON.stringify(input);
      const owner = current!.sites.find(({ groupId }) => text.includes(groupId)) ?? current!.sites[0]!;
      return await (owner.activities[name as keyof Activities] as (input: object) => Promise<unknown>)(input);
    },
  });
  let fleet: Fleet;
  const startFleet = async (): Promise<void> => {
    fleet = await temporal.work(activities, [TARGET, SOURCE]);
    fleet.ended.catch((error: unknown) => {
      console.error("a worker failed", error);
      process.exitCode = 1;
    });
  };
  const stopFleet = async (): Promise<void> => {
    fleet.stop();
    await fleet.ended;
  };
  await startFleet();
  return {
    temporal,
    world: async (groupNames) => {
      await terminateAll(temporal);
      const suffix = randomUUID().slice(0, 6);
      const sites = groupNames.map((name) =>
        createFakeSites({
          groupId: `${name}-${suffix}`,
          // Whatever names a machine names its group, too.
          machineNames: [`${name}-${suffix}`],
          isOpen: async (workflowId, runId) => await isOpen(temporal, workflowId, runId),
        }),
      );
      const { world, activities: plan } = openWorld(temporal, groupNames, sites, suffix);
      current = { sites, plan };
      await Promise.all(
        Object.values(world.groups).map(async (group) => await group.protected({ windowMs: 500, answerMs: 500 })),
      );
      return world;
    },
    restart: async () => {
      await stopFleet();
      await startFleet();
    },
    stop: async () => {
      await terminateAll(temporal);
      await stopFleet();
      await temporal.stop();
    },
  };
}

const names = Object.keys(createFakeSites({ groupId: "names" }).activities);
const planNames: readonly string[] = Object.keys(createPlanActivities({} as never));

function openWorld(temporal: TestTemporal, groupNames: readonly string[], sites: readonly FakeSites[], suffix: string) {
  const done: string[] = [];
  const called: string[] = [];
  const answers = new Map<string, "done" | Fault>();
  const rules: { rule: ActionRule; seen: number }[] = [];
  const silent = new Set<number>();
  const hanging = new Set<string>();
  const client = new Client({ connection: temporal.connection });
  const deps = { client, clock: systemClock, address: temporal.address };
  const runs = createPlanRuns(deps);
  const groups = Object.fromEntries(
    groupNames.map((name, at) => [name, openGroup(temporal, `${name}-${suffix}`, sites[at]!, [`${name}-${suffix}`])]),
  );
  const first = sites[0]!;
  const resolving = { now: async (): Promise<ResolvedPlan> => Promise.reject(new Fault("NOT_FOUND", "No plan")) };
  const activities = createPlanActivities({
    groups: groupCommands(createGroupWorkflows(deps)),
    actions: {
      run: async ({ id }, signal) => {
        called.push(id);
        const known = answers.get(id);
        if (known instanceof Fault) throw known;
        if (known !== undefined) return { outcome: "exit 0", output: "" };
        for (const one of rules) {
          if (!id.includes(one.rule.name)) continue;
          one.seen += 1;
          if (one.seen < one.rule.at || one.seen >= one.rule.at + one.rule.times) continue;
          const fault = new Fault("ACTION_FAILED", `Script "${one.rule.name}" ended with exit code 1`);
          answers.set(id, fault);
          throw fault;
        }
        if ([...hanging].some((name) => id.includes(name)))
          await new Promise((_resolve, reject) => {
            signal.addEventListener("abort", () => reject(new Error("stopped")), { once: true });
          });
        answers.set(id, "done");
        done.push(id.slice(id.indexOf("/") + 1).replace(/#\d+$/, ""));
        return { outcome: "exit 0", output: `ran ${id}` };
      },
    },
    probe: async ({ hostPort }) => ({ holds: !silent.has(hostPort) && !silent.has(0), detail: `port ${hostPort}` }),
    masterTarget: () => first.dependencies.masterTarget(TARGET),
    resolve: async () => await resolving.now(),
    clock: systemClock,
  });
  let count = 0;
  const named = (yaml: string): RecoveryPlan =>
    parsePlan(
      groupNames.reduce(
        (text, name) => text.replaceAll(`$${name}`, `${name}-${suffix}`),
        yaml.replace("$PLAN", `plan-${suffix}`),
      ),
    );
  const world: PlanWorld = {
    planName: `plan-${suffix}`,
    drillOf: (yaml) => {
      resolving.now = async () => resolvePlan(named(yaml), factsOf(groups), { version: 1, mode: "test" });
    },
    groups,
    done,
    called,
    silent,
    hanging,
    runs,
    failAction: (rule) => void rules.push({ rule, seen: 0 }),
    start: async (yaml, mode, more = {}) => {
      const plan = named(yaml);
      const resolved = resolvePlan(plan, factsOf(groups), { version: 1, mode, sourceLost: mode === "unplanned" });
      if (resolved.blockers.length > 0) throw new Error(JSON.stringify(resolved.blockers));
      count += 1;
      const operationId = `${plan.plan}.run.${count}`;
      await runs.start({ operationId, by: "tester", plan: resolved, site: TARGET, limits: LIMITS, ...more });
      return operationId;
    },
    state: async (operationId) => await runs.state(`plan-${suffix}`, operationId),
    until: async (operationId, what, holds, timeoutMs = 25_000) => {
      const end = Date.now() + timeoutMs;
      for (;;) {
        const state = await world.state(operationId);
        if (holds(state)) return state;
        if (Date.now() > end || state.state !== "running")
          throw new Error(
            `Not "${what}": ${JSON.stringify([state, await pendingOf(temporal, state.workflowId)], null, 1)}`,
          );
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    },
    ended: async (operationId, timeoutMs = 60_000) =>
      await world.until(operationId, "ended", ({ state }) => state !== "running", timeoutMs),
    decide: async (operationId, decision, step, { id = randomUUID(), note } = {}) =>
      void (await runs.decide(`plan-${suffix}`, operationId, {
        operationId: id,
        by: "alice",
        step,
        decision,
        ...(note === undefined ? {} : { note }),
      })),
    reports: () =>
      [...(first.world.kept.get(`runs/plan-${suffix}`)?.values() ?? [])].flatMap(({ record }) => {
        const known = runRecordOf(record);
        return known === undefined ? [] : [known.report];
      }),
    leftovers: () => sites.flatMap((one) => one.leftovers()),
  };
  return { world, activities };
}

function factsOf(groups: PlanWorld["groups"]): PlanFacts {
  const facts = { reversed: false, lossMs: 0, machines: [{ name: "web", ports: [80] }] };
  return {
    groups: Object.fromEntries(Object.values(groups).map(({ groupId }) => [groupId, facts])),
    times: {},
    runs: 0,
  };
}

/** What its activities wait for: why a run does not go on. */
async function pendingOf(temporal: TestTemporal, workflowId: string): Promise<readonly unknown[]> {
  const { raw } = await temporal.client.workflow.getHandle(workflowId).describe();
  return (raw.pendingActivities ?? []).map(({ activityType, attempt, lastFailure }) => [
    activityType?.name,
    attempt,
    lastFailure?.message,
  ]);
}
