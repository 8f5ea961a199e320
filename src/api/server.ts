/**
 * The API over HTTP, on a loopback address: one bearer token, kept in control's state folder, opens everything but enrolment, which has
 * its own one-time tokens. Every error is a Fault as JSON. The description stands at /v1/openapi.json, without a token.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import type { AddressInfo } from "node:net";
import { serve, type ServerType } from "@hono/node-server";
import { OpenAPIHono } from "@hono/zod-openapi";
import { bodyLimit } from "hono/body-limit";
import { Fault, isFault } from "#model/fault.ts";
import type { Address } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import { statusOf } from "./http-faults.ts";
import { addRoutes } from "./routes.ts";
import type { ApiService } from "./service.ts";

const BODY_BYTES_MAX = 1024 * 1024;
const OPEN_PATHS = new Set(["/v1/enroll", "/v1/openapi.json"]);

export interface ApiServer {
  readonly url: string;
  close(): Promise<void>;
}

/** Throws PORT_IN_USE. Port 0 picks a free one. */
export async function serveApi(
  address: Address,
  {
    service,
    token,
    version,
    log,
  }: { readonly service: ApiService; readonly token: string; readonly version: string; readonly log: Log },
): Promise<ApiServer> {
  const app = createApi({ service, token, version, log });
  const server = await new Promise<ServerType>((resolve, reject) => {
    const made = serve({ fetch: app.fetch, hostname: address.host, port: address.port }, () => resolve(made));
    made.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EADDRINUSE") return reject(error);
      reject(
        new Fault("PORT_IN_USE", `Port ${address.host}:${address.port} is in use by another program`, {
          cause: error,
          hint: "Choose another port for the API in control's configuration",
        }),
      );
    });
  });
  const bound = server.address() as AddressInfo; // Listening on TCP, so it is neither a pipe nor null.
  return {
    url: `http://${address.host}:${bound.port}`,
    async close() {
      const done = new Promise<void>((resolve) => server.close(() => resolve()));
      if ("closeAllConnections" in server) server.closeAllConnections();
      await done;
    },
  };
}

/** The application alone, for tests. */
export function createApi({
  service,
  token,
  version,
  log,
}: {
  readonly service: ApiService;
  readonly token: string;
  readonly version: string;
  readonly log: Log;
}): OpenAPIHono {
  const app = new OpenAPIHono({
    defaultHook: (result) => {
      if (result.success) return;
      const [issue] = result.error.issues;
      const where = issue === undefined || issue.path.length === 0 ? "the request" : `"${issue.path.join(".")}"`;
      throw new Fault("USAGE", `In ${where}: ${issue?.message ?? "not as described"}`, {
        hint: "See /v1/openapi.json for what is expected",
      });
    },
  });

  app.onError((error, context) => {
    const fault = asFault(error, log, context.req.path);
    return context.json(fault.toJSON(), statusOf(fault) as 500); // Hono wants a literal; any status is fine.
  });
  app.notFound((context) => {
    const fault = new Fault("NOT_FOUND", `No such resource: ${context.req.method} ${context.req.path}`, {
      hint: "See /v1/openapi.json",
    });
    return context.json(fault.toJSON(), 404);
  });
  app.use("/v1/*", async (context, next) => {
    if (!OPEN_PATHS.has(context.req.path) && !isBearer(context.req.header("authorization"), token)) {
      throw new Fault("CREDENTIALS_REJECTED", "Expected the API token as a bearer token", {
        hint: "It is in control's state folder, in the file api-token",
      });
    }
    await next();
  });
  app.use(
    "/v1/*",
    bodyLimit({
      maxSize: BODY_BYTES_MAX,
      onError: () => {
        throw new Fault("USAGE", `Expected a body of at most ${BODY_BYTES_MAX} bytes`);
      },
    }),
  );
  addRoutes(app, service);
  app.openAPIRegistry.registerComponent("securitySchemes", "token", { type: "http", scheme: "bearer" });
  app.doc31("/v1/openapi.json", {
    openapi: "3.1.0",
    info: {
      title: "Leeward",
      version,
      description: "Protect, watch and move machines. Bytes, milliseconds and RFC 3339 times.",
    },
    security: [{ token: [] }],
  });
  return app;
}

/** Compares digests, so that neither length nor content shows in the time it takes. */
function isBearer(header: string | undefined, token: string): boolean {
  const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(header ?? ""), digest(`Bearer ${token}`));
}

function asFault(error: Error, log: Log, path: string): Fault {
  if (isFault(error)) {
    log.debug("A request was answered with a fault", { path, fault: error });
    return error;
  }
  // Hono throws this for a body that is not JSON.
  if ("status" in error && error.status === 400) return new Fault("USAGE", "Expected a JSON body", { cause: error });
  log.error("A request failed", { path, error });
  return new Fault("OPERATION_FAILED", "Control failed to answer; its log has the reason", {
    hint: "Look into control's log",
  });
}
