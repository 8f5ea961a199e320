/** A plan's HTTP calls, and the questions of its readiness checks. Bounded in time and in what is read of an answer. */
import { connect } from "node:net";
import { Fault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { HttpCall } from "#model/plan/recovery-plan.ts";
import type { ActionAnswer, ReadinessProbe } from "#ports/action-runner.ts";

const OUTPUT_BYTES = 4_096;
const ASK_MS = 5_000;

/** `id` travels as Idempotency-Key: the far end can tell a repeat. Redirects are not followed. */
export async function callHttp(
  { id, call, context }: { readonly id: string; readonly call: HttpCall; readonly context: JsonObject },
  signal: AbortSignal,
): Promise<ActionAnswer> {
  const { method, url, headers, body, expect, timeoutMs } = call;
  const sent = method === "GET" || method === "HEAD" ? undefined : (body ?? JSON.stringify(context));
  let status: number;
  let output: string;
  try {
    const response = await fetch(url, {
      method,
      headers: {
        "idempotency-key": id,
        ...(sent !== undefined && body === undefined ? { "content-type": "application/json" } : {}),
        ...headers,
      },
      ...(sent === undefined ? {} : { body: sent }),
      redirect: "manual",
      signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
    });
    status = response.status;
    output = await beginningOf(response);
  } catch (error) {
    signal.throwIfAborted();
    const why = error instanceof Error ? ((error.cause as Error | undefined)?.message ?? error.message) : String(error);
    throw new Fault("ACTION_FAILED", `${method} ${url} was not answered: ${why}`, {
      cause: error,
      hint: "Is the address right, and reachable from the recovery site's worker?",
    });
  }
  const right = expect.length === 0 ? status >= 200 && status < 300 : expect.includes(status);
  if (right) return { outcome: `status ${status}`, output };
  throw new Fault(
    "ACTION_FAILED",
    `${method} ${url} answered ${status}, expected ${expect.length === 0 ? "200 to 299" : expect.join(" or ")}`,
    { details: { status }, ...(output.trim() === "" ? {} : { hint: `It said: ${output.trim().slice(0, 500)}` }) },
  );
}

export const probeReadiness: ReadinessProbe = async ({ check, hostPort, path = "/", status = 200 }) => {
  if (check === "tcp") return await probeTcp(hostPort);
  try {
    const response = await fetch(`http://127.0.0.1:${hostPort}${path}`, {
      redirect: "manual",
      signal: AbortSignal.timeout(ASK_MS),
    });
    const said = (await beginningOf(response)).trim().slice(0, 200);
    return { holds: response.status === status, detail: `status ${response.status}${said === "" ? "" : `: ${said}`}` };
  } catch (error) {
    const why = error instanceof Error ? ((error.cause as Error | undefined)?.message ?? error.message) : String(error);
    return { holds: false, detail: `no answer: ${why}` };
  }
};

/**
 * A connection alone proves nothing: QEMU's user network accepts on the host's side before the guest does, and then hangs up. So it must stay
 * open for a moment, or something must be said.
 */
async function probeTcp(hostPort: number): Promise<{ readonly holds: boolean; readonly detail: string }> {
  return await new Promise((resolve) => {
    const socket = connect({ host: "127.0.0.1", port: hostPort });
    const settle = (holds: boolean, detail: string): void => {
      clearTimeout(late);
      clearTimeout(stays);
      socket.destroy();
      resolve({ holds, detail });
    };
    const late = setTimeout(() => settle(false, "no connection in time"), ASK_MS);
    let stays: NodeJS.Timeout | undefined;
    socket.once("connect", () => {
      stays = setTimeout(() => settle(true, "connected"), 1_500);
    });
    socket.once("data", () => settle(true, "connected, and greeted"));
    socket.once("error", (error) => settle(false, `not connected: ${error.message}`));
    socket.once("close", () => settle(false, "hung up at once"));
  });
}

async function beginningOf(response: Response): Promise<string> {
  const pieces: Uint8Array[] = [];
  let length = 0;
  for await (const piece of response.body ?? []) {
    const bytes = piece as Uint8Array; // What fetch's bodies are made of.
    pieces.push(bytes);
    length += bytes.length;
    if (length >= OUTPUT_BYTES) break;
  }
  return Buffer.concat(pieces).subarray(0, OUTPUT_BYTES).toString("utf8");
}
