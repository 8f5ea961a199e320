/** Faults in workflows: out of a failure, and as the failure that an update or a workflow ends with. */
import { ApplicationFailure, isCancellation } from "@temporalio/workflow";
import { faultOfFailure, messageOfFailure } from "#model/failure.ts";
import { Fault, isFaultCode } from "#model/fault.ts";
import type { OperationState } from "./messages.ts";

/**
 * What went wrong, as a fault: the one inside the failure; INTERRUPTED for a cancellation; TIMED_OUT for a call that ran out of its
 * budget without saying why.
 */
export function faultOf(error: unknown): Fault {
  const inside = faultOfFailure(error);
  if (inside !== undefined) return inside;
  if (isCancellation(error)) return new Fault("INTERRUPTED", "The operation was cancelled");
  return new Fault("TIMED_OUT", `No answer in time: ${messageOfFailure(error)}`, {
    hint: "Look at the pending activities of this workflow, and whether the worker and control run",
  });
}

/** The failure to throw: it fails an update or a workflow, never a workflow task. */
export function failureOf(fault: Fault): ApplicationFailure {
  return ApplicationFailure.create({
    type: fault.code,
    message: fault.message,
    nonRetryable: true,
    details: [fault.toJSON()],
  });
}

/** The failure that an operation's own workflow ends with, so that it also shows as failed in lists. */
export function failureOfOperation(operation: OperationState): ApplicationFailure {
  const { code, message, hint } = operation.fault ?? {
    code: "OPERATION_FAILED",
    message: "The operation failed",
    hint: undefined,
  };
  return failureOf(
    new Fault(isFaultCode(code) ? code : "OPERATION_FAILED", message, hint === undefined ? {} : { hint }),
  );
}
