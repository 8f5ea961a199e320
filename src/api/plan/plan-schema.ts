/**
 * The shape of a plan's document: what editors complete (docs/recovery-plan.schema.json is made from it), and how it becomes a RecoveryPlan.
 * What a shape cannot say stands in #model/plan/check-plan.ts.
 */
import { z } from "zod";
import { durationOfText } from "#model/duration-text.ts";
import {
  changesNothing,
  DEFAULT_ACTION_MODES,
  PLAN_DIRECTIONS,
  PLAN_MODES,
  type ActionCall,
  type PlanAction,
  type PlanCheck,
  type PlanMember,
  type RecoveryPlan,
  type StepPolicy,
} from "#model/plan/recovery-plan.ts";

const SCRIPT_MS = 60_000;
const HTTP_MS = 30_000;
const CHECK_MS = 180_000;
const REMIND_MS = 900_000;

const name = z
  .string()
  .regex(/^[a-z0-9][a-z0-9-]{0,40}$/, "Expected lower-case letters, digits and dashes, at most 41")
  .describe("Lower-case letters, digits and dashes");
const duration = z
  .string({ error: 'Expected a duration such as "90s", "15m" or "2h"' })
  .regex(/^\d+(\.\d+)?(ms|s|m|h|d)$/, 'Expected a duration such as "90s", "15m" or "2h"')
  .describe('Such as "90s", "15m" or "2h"');
const text = z.string().min(1).max(4_096);

const policy = {
  budget: duration.optional().describe("How long the step may take; after it, onOverrun says what becomes of it"),
  onOverrun: z
    .enum(["wait", "retry", "ask"])
    .default("ask")
    .describe("wait: go on. retry: stop it and begin it again. ask: go on, and ask a person"),
  retries: z.int().min(0).max(20).default(0).describe("How often a failed step is begun again by itself"),
  onFailure: z
    .enum(["ask", "continue", "abort"])
    .default("ask")
    .describe("After the retries. ask: a person says retry, skip or abort. abort: cancel the run"),
};

const http = z
  .strictObject({
    method: z.enum(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]).default("POST"),
    url: z
      .string()
      .regex(/^https?:\/\/[^\s/]+/, "Expected an address that begins with http:// or https://")
      .max(2_048),
    headers: z.record(z.string(), text).default({}),
    body: z.string().max(65_536).optional().describe("Left out: the run's context as JSON, unless GET or HEAD"),
    expect: z.array(z.int().min(100).max(599)).default([]).describe("Statuses that mean success; left out: any 2xx"),
    timeout: duration.optional(),
  })
  .describe("An HTTP call. It carries the header Idempotency-Key, the same for each attempt of a step");
const scriptName = name.describe('A script of "scripts"');

const call = z.strictObject({
  script: scriptName.optional(),
  http: http.optional(),
  timeout: duration.optional().describe("Of a script"),
});

const action = z.strictObject({
  name,
  script: scriptName.optional(),
  http: http.optional(),
  approval: z
    .strictObject({
      question: z.string().min(1).max(500),
      remindEvery: duration.optional(),
    })
    .optional()
    .describe("A person decides, never time"),
  timeout: duration.optional().describe("Of a script"),
  undo: z
    .union([z.literal("none"), call])
    .optional()
    .describe('How it is undone when the run is cancelled, or "none": must be said of what changes something'),
  cleanup: call.optional().describe("At the end of every run that began it, however that ended"),
  modes: z.array(z.enum(PLAN_MODES)).min(1).optional().describe("Left out: all but test"),
  direction: z.enum(PLAN_DIRECTIONS).optional().describe("home: only on the way back"),
  ...policy,
});

const check = z.strictObject({
  tcp: z.strictObject({ port: z.int().min(1).max(65_535), machine: text.optional() }).optional(),
  http: z
    .strictObject({
      port: z.int().min(1).max(65_535),
      machine: text.optional(),
      path: z.string().regex(/^\//, "Expected a path that begins with /").max(2_048).default("/"),
      status: z.int().min(100).max(599).default(200),
    })
    .optional(),
  within: duration.optional().describe("How long it is asked until it holds"),
  ...policy,
});

const member = z.strictObject({
  group: name.describe("A protection group; it moves as a whole"),
  after: z.array(name).default([]).describe("Members of this boot group that come first, with their checks"),
  point: text
    .optional()
    .describe("latest, latest-app, latest-verified, @name, an RFC 3339 time; for test and unplanned"),
  checks: z.array(check).max(32).default([]).describe("Must hold before what comes after begins"),
  ...policy,
});

export const planSchema = z.strictObject({
  plan: name,
  description: z.string().max(2_000).optional(),
  objectives: z
    .strictObject({ rto: duration.optional(), rpo: duration.optional() })
    .default({})
    .describe("What is promised; a run is held against it"),
  onCancel: z
    .enum(["undo", "keep"])
    .optional()
    .describe("What becomes of groups that have been moved. Left out: keep in mode unplanned, undo in the others"),
  scripts: z
    .record(name, z.string().min(1).max(65_536))
    .default({})
    .describe("By name; each begins with #! or is for sh"),
  boot: z
    .array(
      z.strictObject({
        name,
        pre: z.array(action).default([]).describe("One after the other, before its groups"),
        groups: z.array(member).min(1),
        post: z.array(action).default([]).describe("One after the other, when its groups are ready"),
      }),
    )
    .min(1)
    .describe("Boot groups, one after the other"),
});

type PlanDocument = z.output<typeof planSchema>;

/** Something of the document that its shape allows and that means nothing. */
export interface ShapeProblem {
  readonly path: readonly (string | number)[];
  readonly message: string;
}

/** The plan that a document means; `problems` hears of what cannot be meant, and then the answer is of no use. */
export function planOfDocument(document: PlanDocument, problem: (problem: ShapeProblem) => void): RecoveryPlan {
  const { description, objectives, onCancel, boot, plan, scripts } = document;
  return {
    plan,
    ...(description === undefined ? {} : { description }),
    objectives: { ...given("rtoMs", objectives.rto), ...given("rpoMs", objectives.rpo) },
    ...(onCancel === undefined ? {} : { onCancel }),
    scripts,
    boot: boot.map((one, index) => ({
      name: one.name,
      pre: one.pre.map((each, at) => actionOf(each, ["boot", index, "pre", at], problem)),
      groups: one.groups.map((each, at) => memberOf(each, ["boot", index, "groups", at], problem)),
      post: one.post.map((each, at) => actionOf(each, ["boot", index, "post", at], problem)),
    })),
  };
}

type Path = readonly (string | number)[];
type Tell = (problem: ShapeProblem) => void;

function memberOf(from: z.output<typeof member>, path: Path, problem: Tell): PlanMember {
  return {
    group: from.group,
    after: from.after,
    ...(from.point === undefined ? {} : { point: from.point }),
    checks: from.checks.map((each, at) => checkOf(each, [...path, "checks", at], problem)),
    ...policyOf(from),
  };
}

function checkOf(from: z.output<typeof check>, path: Path, problem: Tell): PlanCheck {
  const { tcp, http: web } = from;
  if ((tcp === undefined) === (web === undefined)) problem({ path, message: 'Expected either "tcp" or "http"' });
  const what = tcp ?? web;
  return {
    check: web === undefined ? "tcp" : "http",
    port: what?.port ?? 0,
    ...(what?.machine === undefined ? {} : { machine: what.machine }),
    ...(web === undefined ? {} : { path: web.path, status: web.status }),
    withinMs: ms(from.within) ?? CHECK_MS,
    ...policyOf(from),
  };
}

function actionOf(from: z.output<typeof action>, path: Path, problem: Tell): PlanAction {
  const { approval, undo, cleanup, modes = DEFAULT_ACTION_MODES, direction } = from;
  const kinds = [from.script, from.http, approval].filter((one) => one !== undefined);
  if (kinds.length !== 1) problem({ path, message: 'Expected one of "script", "http" or "approval"' });
  const made: PlanAction["call"] =
    approval === undefined
      ? callOf(from, path, kinds.length === 1 ? problem : () => undefined)
      : { do: "approval", question: approval.question, remindEveryMs: ms(approval.remindEvery) ?? REMIND_MS };
  if (undo === undefined && !changesNothing(made))
    problem({
      path,
      message: `Action "${from.name}" changes something and says no undo, expected how, or "undo: none"`,
    });
  return {
    name: from.name,
    call: made,
    undo: undo === undefined || undo === "none" ? "none" : callOf(undo, [...path, "undo"], problem),
    ...(cleanup === undefined ? {} : { cleanup: callOf(cleanup, [...path, "cleanup"], problem) }),
    modes,
    ...(direction === undefined ? {} : { direction }),
    ...policyOf(from),
  };
}

function callOf(from: z.output<typeof call>, path: Path, problem: Tell): ActionCall {
  if ((from.script === undefined) === (from.http === undefined))
    problem({ path, message: 'Expected either "script" or "http"' });
  if (from.http !== undefined) {
    const { timeout, body, ...rest } = from.http;
    return { do: "http", ...rest, ...(body === undefined ? {} : { body }), timeoutMs: ms(timeout) ?? HTTP_MS };
  }
  return { do: "script", script: from.script ?? "", timeoutMs: ms(from.timeout) ?? SCRIPT_MS };
}

function policyOf(from: {
  readonly budget?: string | undefined;
  readonly onOverrun: StepPolicy["onOverrun"];
  readonly retries: number;
  readonly onFailure: StepPolicy["onFailure"];
}): StepPolicy {
  const { budget, onOverrun, retries, onFailure } = from;
  return { ...given("budgetMs", budget), onOverrun, retries, onFailure };
}

function ms(written: string | undefined): number | undefined {
  return written === undefined ? undefined : durationOfText(written);
}

function given<Name extends string>(key: Name, written: string | undefined): { readonly [key in Name]?: number } {
  const value = ms(written);
  return (value === undefined ? {} : { [key]: value }) as { readonly [key in Name]?: number }; // One key, of that name.
}
