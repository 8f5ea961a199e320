/** The routes of the API, one entry each. A route checks its input against its schema and asks the service; nothing is decided here. */
import { createRoute, z, type OpenAPIHono } from "@hono/zod-openapi";
import type { Context } from "hono";
import { answers, bodies, fault, queries } from "./schemas.ts";
import { addPlanRoutes } from "./plan/plan-routes.ts";
import type { ApiService } from "./service.ts";

export interface Endpoint<Query extends z.ZodObject, Body extends z.ZodObject> {
  readonly method: "get" | "post" | "delete";
  /** With {name} for parameters. */
  readonly path: string;
  readonly summary: string;
  readonly query?: Query;
  readonly body?: Body;
  readonly answers: z.ZodType;
  /** Needs no token. */
  readonly open?: boolean;
  handle(input: {
    readonly params: Readonly<Record<string, string>>;
    readonly query: z.output<Query>;
    readonly body: z.output<Body>;
  }): Promise<unknown>;
}

export function addRoutes(app: OpenAPIHono, service: ApiService): void {
  function add<Query extends z.ZodObject = typeof queries.none, Body extends z.ZodObject = typeof bodies.nothing>(
    endpoint: Endpoint<Query, Body>,
  ): void {
    const names = [...endpoint.path.matchAll(/\{(\w+)\}/g)].map(([, name = ""]) => name);
    const route = createRoute({
      method: endpoint.method,
      path: endpoint.path,
      summary: endpoint.summary,
      ...(endpoint.open === true ? { security: [] } : {}),
      request: {
        params: z.object(Object.fromEntries(names.map((name) => [name, z.string().min(1).max(200)]))),
        query: endpoint.query ?? queries.none,
        ...(endpoint.body === undefined
          ? {}
          : { body: { content: { "application/json": { schema: endpoint.body } }, required: true } }),
      },
      responses: {
        200: { description: "Done", content: { "application/json": { schema: endpoint.answers } } },
        default: { description: "A fault", content: { "application/json": { schema: fault } } },
      },
    });
    // The schemas above are what was validated; their types are lost in the generic route, hence the casts.
    const handler = async (context: Context): Promise<Response> => {
      const answer = await endpoint.handle({
        params: context.req.valid("param" as never) as Record<string, string>,
        query: context.req.valid("query" as never) as z.output<Query>,
        body: (endpoint.body === undefined ? {} : context.req.valid("json" as never)) as z.output<Body>,
      });
      return context.json(answer ?? null, 200);
    };
    app.openapi(route, handler as never);
  }

  const get = "get" as const;
  const post = "post" as const;

  add({
    method: get,
    path: "/v1/status",
    summary: "Sites, roles, groups",
    answers: answers.status,
    handle: () => service.status(),
  });

  add({
    method: get,
    path: "/v1/groups",
    summary: "All protection groups",
    answers: answers.groups,
    handle: () => service.groups(),
  });
  add({
    method: post,
    path: "/v1/groups",
    summary: "Protect the disks of a machine",
    body: bodies.protect,
    answers: answers.protected,
    handle: ({ body }) => service.protect(body),
  });
  add({
    method: get,
    path: "/v1/groups/{name}",
    summary: "One group",
    answers: answers.group,
    handle: ({ params }) => service.group(params["name"]!),
  });
  add({
    method: get,
    path: "/v1/groups/{name}/points",
    summary: "Its recovery points, newest first",
    answers: answers.points,
    handle: ({ params }) => service.points(params["name"]!),
  });
  add({
    method: post,
    path: "/v1/groups/{name}/bookmarks",
    summary: "Cut now and keep that point under a name",
    body: bodies.bookmark,
    answers: answers.point,
    handle: ({ params, body }) => service.bookmark(params["name"]!, body),
  });
  for (const verb of ["pause", "resume"] as const) {
    add({
      method: post,
      path: `/v1/groups/{name}/${verb}`,
      summary: verb === "pause" ? "Stop shipping; changes are still tracked" : "Go on shipping",
      body: bodies.operation,
      answers: answers.group,
      handle: ({ params, body }) => service[verb](params["name"]!, body),
    });
  }
  add({
    method: post,
    path: "/v1/groups/{name}/unprotect",
    summary: "End protection; the store keeps what it has",
    body: bodies.unprotect,
    answers: answers.started,
    handle: ({ params, body }) => service.unprotect(params["name"]!, body),
  });
  add({
    method: post,
    path: "/v1/groups/{name}/dry-run",
    summary: "What a move would do now: its steps, its point, what it sets aside, what keeps it from being done",
    body: bodies.dryRun,
    answers: answers.dryRun,
    handle: ({ params, body }) => service.dryRun(params["name"]!, body),
  });
  add({
    method: post,
    path: "/v1/groups/{name}/failover",
    summary: "Bring the group up at the other site",
    body: bodies.failover,
    answers: answers.started,
    handle: ({ params, body }) => service.failover(params["name"]!, body),
  });
  add({
    method: post,
    path: "/v1/groups/{name}/change-point",
    summary: "After a failover: go on from another point; what was written since becomes a kept branch",
    body: bodies.changePoint,
    answers: answers.leaving,
    handle: ({ params, body }) => service.changePoint(params["name"]!, body),
  });
  add({
    method: post,
    path: "/v1/groups/{name}/commit",
    summary: "After a failover: end the right to undo and to change the point; deletes nothing",
    body: bodies.move,
    answers: answers.group,
    handle: ({ params, body }) => service.commit(params["name"]!, body),
  });
  add({
    method: post,
    path: "/v1/groups/{name}/undo",
    summary: "After a failover: give the group back to its source; what ran here becomes a kept branch",
    body: bodies.move,
    answers: answers.leaving,
    handle: ({ params, body }) => service.undo(params["name"]!, body),
  });
  add({
    method: post,
    path: "/v1/groups/{name}/reprotect",
    summary: "After a committed failover: replicate what runs here to the site that it came from",
    body: bodies.reprotect,
    answers: answers.started,
    handle: ({ params, body }) => service.reprotect(params["name"]!, body),
  });
  add({
    method: post,
    path: "/v1/groups/{name}/failback",
    summary: "Bring a reversed group back to the site that its machines are from",
    body: bodies.failback,
    answers: answers.started,
    handle: ({ params, body }) => service.failback(params["name"]!, body),
  });
  add({
    method: get,
    path: "/v1/groups/{name}/test-failovers",
    summary: "Test failovers of the group",
    answers: answers.operations,
    handle: ({ params }) => service.listTestFailovers(params["name"]!),
  });
  add({
    method: post,
    path: "/v1/groups/{name}/test-failovers",
    summary: "Boot the group from a point, isolated, on a throw-away overlay",
    body: bodies.testFailover,
    answers: answers.started,
    handle: ({ params, body }) => service.startTestFailover(params["name"]!, body),
  });
  add({
    method: "delete",
    path: "/v1/groups/{name}/test-failovers/{operation}",
    summary: "Clean a test failover up",
    query: queries.cleanup,
    answers: answers.started,
    handle: ({ params, query }) => {
      const { force, ...identified } = query;
      return service.cleanUpTestFailover(params["name"]!, params["operation"]!, {
        force: force === "true",
        ...identified,
      });
    },
  });
  add({
    method: post,
    path: "/v1/groups/{name}/exports",
    summary: "Serve a point over NBD",
    body: bodies.export,
    answers: answers.export,
    handle: ({ params, body }) => service.openExport(params["name"]!, body),
  });
  add({
    method: "delete",
    path: "/v1/exports/{operation}",
    summary: "Stop serving a point",
    answers: answers.nothing,
    handle: ({ params }) => service.closeExport(params["operation"]!),
  });
  add({
    method: get,
    path: "/v1/failover-candidates",
    summary: "What could be failed over, to which point, and what to type",
    answers: answers.candidates,
    handle: () => service.failoverCandidates(),
  });

  add({
    method: get,
    path: "/v1/operations",
    summary: "Operations, newest first",
    answers: answers.operations,
    handle: () => service.operations(),
  });
  add({
    method: get,
    path: "/v1/operations/{operation}",
    summary: "One operation; with `wait`, once it ended or that time passed",
    query: queries.wait,
    answers: answers.operation,
    handle: ({ params, query }) =>
      service.operation(params["operation"]!, query.wait === undefined ? {} : { waitMs: query.wait }),
  });
  add({
    method: post,
    path: "/v1/operations/{operation}/cancel",
    summary: "Cancel a running operation; what it made is undone",
    body: bodies.nothing,
    answers: answers.operation,
    handle: ({ params }) => service.cancelOperation(params["operation"]!),
  });

  add({
    method: post,
    path: "/v1/operations/{operation}/retry",
    summary: "Start the machines that did not start in a failover or a change of point",
    body: bodies.retry,
    answers: answers.started,
    handle: ({ params, body }) => service.retryOperation(params["operation"]!, body),
  });
  add({
    method: post,
    path: "/v1/operations/{operation}/skip",
    summary: "Go on without the machines that did not start",
    body: bodies.operation,
    answers: answers.operation,
    handle: ({ params, body }) => service.skipOperation(params["operation"]!, body),
  });

  addPlanRoutes(add, service);

  add({
    method: get,
    path: "/v1/machines",
    summary: "Agents and their disks",
    answers: answers.agents,
    handle: () => service.agents(),
  });
  add({
    method: post,
    path: "/v1/machines/tokens",
    summary: "A one-time enrolment token for a role",
    body: bodies.token,
    answers: answers.token,
    handle: ({ body }) => service.enrolmentToken(body),
  });
  add({
    method: post,
    path: "/v1/enroll",
    summary: "A certificate for a one-time token and a request",
    open: true,
    body: bodies.enrol,
    answers: answers.enrolment,
    handle: ({ body }) => service.enrol(body.token, body.csr),
  });

  add({
    method: get,
    path: "/v1/sites/{site}/machines",
    summary: "Machines that the site's hypervisor runs",
    answers: answers.machines,
    handle: ({ params }) => service.machines(params["site"]!),
  });
  add({
    method: post,
    path: "/v1/sites/{site}/machines",
    summary: "Make (or find) a machine, and start it",
    body: bodies.machine,
    answers: answers.machine,
    handle: ({ params, body }) => service.createMachine(params["site"]!, body),
  });
  add({
    method: post,
    path: "/v1/sites/{site}/machines/{machine}/shutdown",
    summary: "Ask the guest to shut down; answers when it is off",
    body: bodies.shutdown,
    answers: answers.machine,
    handle: ({ params, body }) => service.shutdownMachine(params["site"]!, params["machine"]!, body),
  });
  add({
    method: post,
    path: "/v1/sites/{site}/machines/{machine}/power-off",
    summary: "Power a machine off at once",
    body: bodies.nothing,
    answers: answers.machine,
    handle: ({ params }) => service.powerOffMachine(params["site"]!, params["machine"]!),
  });
}
