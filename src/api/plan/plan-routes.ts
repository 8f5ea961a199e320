/** Routes of recovery plans; see routes.ts. */
import type { z } from "@hono/zod-openapi";
import type { Endpoint } from "../routes.ts";
import { answers, bodies, queries } from "../schemas.ts";
import type { ApiService } from "../service.ts";

type Add = <Query extends z.ZodObject = typeof queries.none, Body extends z.ZodObject = typeof bodies.nothing>(
  endpoint: Endpoint<Query, Body>,
) => void;

export function addPlanRoutes(add: Add, service: ApiService): void {
  add({
    method: "get",
    path: "/v1/plans",
    summary: "Recovery plans, each by its newest version",
    answers: answers.plans,
    handle: () => service.plans(),
  });
  add({
    method: "post",
    path: "/v1/plans",
    summary: "Keep a recovery plan as its next version",
    body: bodies.plan,
    answers: answers.appliedPlan,
    handle: ({ body }) => service.applyPlan(body),
  });
  add({
    method: "get",
    path: "/v1/plans/{plan}",
    summary: "One plan, and what changed since the version before",
    query: queries.version,
    answers: answers.plan,
    handle: ({ params, query }) => service.plan(params["plan"]!, query),
  });
  add({
    method: "post",
    path: "/v1/plans/{plan}/dry-run",
    summary: "The very steps that a run would execute now, what they are expected to take, and what blocks them",
    body: bodies.runPlan,
    answers: answers.resolvedPlan,
    handle: ({ params, body }) => service.resolvePlan(params["plan"]!, body),
  });
  add({
    method: "post",
    path: "/v1/plans/{plan}/runs",
    summary: "Run a plan",
    body: bodies.runPlan,
    answers: answers.operation,
    handle: ({ params, body }) => service.runPlan(params["plan"]!, body),
  });
  add({
    method: "post",
    path: "/v1/operations/{operation}/decisions",
    summary: "What a person decides about a step of a plan's run that asks",
    body: bodies.decide,
    answers: answers.operation,
    handle: ({ params, body }) => service.decide(params["operation"]!, body),
  });
  add({
    method: "get",
    path: "/v1/plans/{plan}/runs",
    summary: "Records of its runs, newest first",
    answers: answers.runs,
    handle: ({ params }) => service.planRuns(params["plan"]!),
  });
  add({
    method: "post",
    path: "/v1/plans/{plan}/drills",
    summary: "A drill now: the plan in test mode, with nobody to ask",
    body: bodies.drill,
    answers: answers.operation,
    handle: ({ params, body }) => service.runDrill(params["plan"]!, body),
  });
  add({
    method: "get",
    path: "/v1/drill-schedules",
    summary: "When drills run by themselves",
    answers: answers.drillSchedules,
    handle: () => service.drillSchedules(),
  });
  add({
    method: "post",
    path: "/v1/plans/{plan}/drill-schedule",
    summary: "Run drills of the plan by themselves",
    body: bodies.drillSchedule,
    answers: answers.drillSchedule,
    handle: ({ params, body }) => service.scheduleDrill(params["plan"]!, body),
  });
  add({
    method: "delete",
    path: "/v1/plans/{plan}/drill-schedule",
    summary: "No more",
    answers: answers.nothing,
    handle: ({ params }) => service.unscheduleDrill(params["plan"]!),
  });
}
