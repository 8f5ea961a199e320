/**
 * The API over HTTP. Depends on nothing but fetch, so that a command starts quickly.
 *
 * A call that changes something carries an operation id made here, and is repeated with it while control cannot be reached: a control that
 * is restarted in between is a pause, not an error, and nothing is done twice.
 */
import { Fault, faultFromJson } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import { planOfRun } from "#model/plan/run-id.ts";
import type { Random } from "#ports/random.ts";
import type { ApiClient } from "./contract.ts";
import { groupOfOperation, newOperationId, type OperationKind } from "./operation-id.ts";

const REQUEST_MS = 150_000;
const RETRY_MS = 400;

export interface ApiClientOptions {
  /** http://HOST:PORT */
  readonly url: string;
  readonly token: string;
  /** How long to go on while nobody answers; default 10 000. */
  readonly patienceMs?: number;
}

interface Request {
  readonly method: "GET" | "POST" | "DELETE";
  readonly path: string;
  readonly query?: Readonly<Record<string, string | number | boolean | undefined>>;
  readonly body?: object;
}

export function createApiClient({ url, token, patienceMs = 10_000 }: ApiClientOptions): ApiClient {
  async function send<T>(request: Request): Promise<T> {
    const deadline = performance.now() + patienceMs;
    for (;;) {
      try {
        return (await sendOnce(request)) as T; // The server's routes are typed by the same contract.
      } catch (error) {
        if (!(error instanceof Unanswered)) throw error;
        if (performance.now() > deadline) {
          throw new Fault("PEER_UNREACHABLE", `Control does not answer at "${url}"`, {
            cause: error.cause,
            hint: "Is it running? `leeward up --detach` starts the embedded installation; its logs are below the state folder",
          });
        }
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  async function sendOnce({ method, path, query = {}, body }: Request): Promise<unknown> {
    const target = new URL(path, url);
    for (const [name, value] of Object.entries(query))
      if (value !== undefined) target.searchParams.set(name, `${value}`);
    let response: Response;
    let text: string;
    try {
      response = await fetch(target, {
        method,
        headers: {
          authorization: `Bearer ${token}`,
          ...(body === undefined ? {} : { "content-type": "application/json" }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(REQUEST_MS),
      });
      text = await response.text();
    } catch (error) {
      if (error instanceof Error && error.name === "TimeoutError") {
        throw new Fault("TIMED_OUT", `No answer from control to ${method} ${path} within ${REQUEST_MS / 1000} s`, {
          hint: "It may still be done; look with `leeward operation list`",
        });
      }
      throw new Unanswered(error);
    }
    const json = parse(text);
    if (!response.ok) throw faultFromJson(json);
    return json;
  }

  const get = <T>(path: string, query?: Request["query"]): Promise<T> =>
    send<T>({ method: "GET", path, ...(query === undefined ? {} : { query }) });
  const post = <T>(path: string, body: object): Promise<T> => send<T>({ method: "POST", path, body });
  const groupPath = (group: string, rest = ""): string => `/v1/groups/${encodeURIComponent(group)}${rest}`;
  const identified = <T extends object>(
    group: string,
    kind: OperationKind,
    body: T & { readonly operationId?: string },
  ): object => ({
    ...body,
    operationId: body.operationId ?? newOperationId(group, kind, webRandom),
  });

  return {
    status: () => get("/v1/status"),
    groups: () => get("/v1/groups"),
    group: (name) => get(groupPath(name)),
    protect: (body) => post("/v1/groups", identified(body.name, "protect", body)),
    points: (group) => get(groupPath(group, "/points")),
    bookmark: (group, name) => post(groupPath(group, "/bookmarks"), identified(group, "bookmark", { name })),
    pause: (group) => post(groupPath(group, "/pause"), identified(group, "pause", {})),
    resume: (group) => post(groupPath(group, "/resume"), identified(group, "resume", {})),
    unprotect: (group, body = {}) => post(groupPath(group, "/unprotect"), identified(group, "unprotect", body)),
    dryRun: (group, body) => post(groupPath(group, "/dry-run"), body),
    failover: (group, body) => post(groupPath(group, "/failover"), identified(group, "failover", body)),
    changePoint: (group, body) => post(groupPath(group, "/change-point"), identified(group, "change-point", body)),
    commit: (group, body = {}) => post(groupPath(group, "/commit"), identified(group, "commit", body)),
    undo: (group, body = {}) => post(groupPath(group, "/undo"), identified(group, "undo", body)),
    reprotect: (group, body = {}) => post(groupPath(group, "/reprotect"), identified(group, "reprotect", body)),
    failback: (group, body = {}) => post(groupPath(group, "/failback"), identified(group, "failback", body)),
    startTestFailover: (group, body) => post(groupPath(group, "/test-failovers"), identified(group, "test", body)),
    listTestFailovers: (group) => get(groupPath(group, "/test-failovers")),
    cleanUpTestFailover: (group, operationId, { force = false } = {}) =>
      send({
        method: "DELETE",
        path: groupPath(group, `/test-failovers/${encodeURIComponent(operationId)}`),
        query: { force, operationId: newOperationId(group, "cleanup", webRandom) },
      }),
    operations: () => get("/v1/operations"),
    operation: (operationId, { waitMs } = {}) =>
      get(`/v1/operations/${encodeURIComponent(operationId)}`, { wait: waitMs }),
    cancelOperation: (operationId) => post(`/v1/operations/${encodeURIComponent(operationId)}/cancel`, {}),
    retryOperation: (id, body = {}) =>
      post(
        `/v1/operations/${encodeURIComponent(id)}/retry`,
        identified(groupOfOperation(id) ?? "group", "retry", body),
      ),
    skipOperation: (id, body = {}) =>
      post(`/v1/operations/${encodeURIComponent(id)}/skip`, identified(groupOfOperation(id) ?? "group", "skip", body)),
    openExport: (group, body) => post(groupPath(group, "/exports"), identified(group, "export", body)),
    closeExport: async (operationId) => {
      await send({ method: "DELETE", path: `/v1/exports/${encodeURIComponent(operationId)}` });
    },
    failoverCandidates: () => get("/v1/failover-candidates"),
    resolvePlan: (name, body) => post(`/v1/plans/${encodeURIComponent(name)}/dry-run`, body),
    runPlan: (name, body) => post(`/v1/plans/${encodeURIComponent(name)}/runs`, identified(name, "run", body)),
    runDrill: (plan, body) => post(`/v1/plans/${encodeURIComponent(plan)}/drills`, identified(plan, "drill", body)),
    scheduleDrill: (plan, body) => post(`/v1/plans/${encodeURIComponent(plan)}/drill-schedule`, body),
    unscheduleDrill: async (plan) => {
      await send({ method: "DELETE", path: `/v1/plans/${encodeURIComponent(plan)}/drill-schedule` });
    },
    drillSchedules: () => get("/v1/drill-schedules"),
    planRuns: (plan) => get(`/v1/plans/${encodeURIComponent(plan)}/runs`),
    decide: (id, body) =>
      post(`/v1/operations/${encodeURIComponent(id)}/decisions`, identified(planOfRun(id) ?? "plan", "decide", body)),
    applyPlan: (body) => post("/v1/plans", body),
    plans: () => get("/v1/plans"),
    plan: (name, { version } = {}) => get(`/v1/plans/${encodeURIComponent(name)}`, { version }),
    agents: () => get("/v1/machines"),
    enrolmentToken: (body) => post("/v1/machines/tokens", body),
    createMachine: (site, body) => post(`/v1/sites/${encodeURIComponent(site)}/machines`, body),
    machines: (site) => get(`/v1/sites/${encodeURIComponent(site)}/machines`),
    shutdownMachine: (site, machineId, options) => post(machinePath(site, machineId, "shutdown"), options),
    powerOffMachine: (site, machineId) => post(machinePath(site, machineId, "power-off"), {}),
  };
}

/** Nobody answered; whether the request was heard is not known. */
class Unanswered extends Error {
  constructor(cause: unknown) {
    super("Not answered", { cause });
  }
}

const webRandom: Random = { bytes: (length) => crypto.getRandomValues(new Uint8Array(length)) };

function machinePath(site: string, machineId: string, action: string): string {
  return `/v1/sites/${encodeURIComponent(site)}/machines/${encodeURIComponent(machineId)}/${action}`;
}

function parse(text: string): JsonValue {
  try {
    return JSON.parse(text) as JsonValue; // JSON.parse yields nothing else.
  } catch (error) {
    throw new Fault("PROTOCOL_INVALID", `Expected JSON from control, got "${text.slice(0, 100)}"`, {
      cause: error,
      hint: "Something else may listen at this address",
    });
  }
}
