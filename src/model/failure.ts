/**
 * Faults inside Temporal's failures.
 *
 * Across Temporal an error keeps its class name, message and stack only. A Fault therefore travels as an ApplicationFailure whose
 * `type` is the code and whose first detail is the fault as JSON, often wrapped: an activity's failure, a child's failure, an update's
 * failure. Clients and workflows look for it here, by shape: it works on both sides without either's classes.
 */
import { Fault, faultFromJson, isFaultCode } from "./fault.ts";

/**
 * The fault of a failure: the outermost of its chain of causes, for what lies below it is only why. Undefined when there is none (a bug,
 * a time-out, a cancellation).
 */
export function faultOfFailure(error: unknown): Fault | undefined {
  for (const link of chain(error)) {
    if (link instanceof Fault) return link;
    const { type, details } = link as { readonly type?: unknown; readonly details?: unknown };
    if (isFaultCode(type) && Array.isArray(details) && details.length > 0) return faultFromJson(details[0]);
  }
  return undefined;
}

/** The innermost message of a chain of causes: what really happened. */
export function messageOfFailure(error: unknown): string {
  const last = chain(error).at(-1);
  const message = (last as { readonly message?: unknown } | undefined)?.message;
  return typeof message === "string" && message !== "" ? message : String(error);
}

function chain(error: unknown): readonly object[] {
  const links: object[] = [];
  let at = error;
  while (typeof at === "object" && at !== null && links.length < 20) {
    links.push(at);
    at = (at as { readonly cause?: unknown }).cause;
  }
  return links;
}
