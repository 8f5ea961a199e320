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
}
