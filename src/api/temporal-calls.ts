/**
 * Calls of Temporal, whatever the workflow. Everything that is odd about being a client of Temporal ends here:
 *
 * - a command is an update whose id is the operation id; a lost reply is repeated with the same id, and the workflow knows it. That an update
 *   is "not found" means that the workflow went on as a new run in between: repeated too, and so is DRAINING;
 * - a refusal of the workflow's validator is the Fault inside the failure;
 * - our own time-out means that the outcome is unknown, and says so;
 * - no connection is PEER_UNREACHABLE, with what to do.
 */
import {
  isGrpcServiceError,
  QueryNotRegisteredError,
  WorkflowExecutionAlreadyStartedError,
  WorkflowNotFoundError,
  WorkflowUpdateRPCTimeoutOrCancelledError,
  type Client,
} from "@temporalio/client";
import { faultOfFailure, messageOfFailure } from "#model/failure.ts";
import { Fault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";

/** A server that is being restarted is back by then; afterwards a time-out means the worker, not the server. */
const COMMAND_LOOK_MS = 5_000;

/** Whom a call is about: for the messages of its faults. */
export interface Called {
  readonly kind: "group" | "plan run";
  readonly name: string;
  readonly list: string;
}

export type TemporalCalls = ReturnType<typeof temporalCalls>;

export function temporalCalls({
  client,
  clock,
  address,
}: {
  readonly client: Client;
  readonly clock: Clock;
  readonly address: string;
}) {
  async function within<T>(boundMs: number, work: () => Promise<T>): Promise<T> {
    return await client.withDeadline(clock.now() + boundMs, work);
  }

  async function isReachable(boundMs: number): Promise<boolean> {
    try {
      await within(boundMs, async () => await client.workflowService.getSystemInfo({}));
      return true;
    } catch (error) {
      if (grpcCode(error) !== undefined) return false;
      throw error;
    }
  }

  /** Repeats `attempt`, which must be safe to repeat, until it is answered. */
  async function insist<T>(called: Called, boundMs: number, attempt: () => Promise<T>): Promise<T> {
    const deadline = clock.monotonic() + boundMs;
    if (!(await isReachable(COMMAND_LOOK_MS))) throw unreachable(address);
    for (let pauseMs = 50; ; pauseMs = Math.min(pauseMs * 2, 1_000)) {
      try {
        return await within(Math.max(deadline - clock.monotonic(), 1), attempt);
      } catch (error) {
        if (!isWorthRepeating(error) || clock.monotonic() + pauseMs > deadline) throw translate(error, called, address);
      }
      await clock.sleep(pauseMs);
    }
  }

  /** A list of what there is. */
  async function list<T>(boundMs: number, work: () => Promise<T>): Promise<T> {
    if (!(await isReachable(COMMAND_LOOK_MS))) throw unreachable(address);
    try {
      return await within(boundMs, work);
    } catch (error) {
      throw translate(error, { kind: "group", name: "", list: "leeward group list" }, address);
    }
  }

  /** A workflow that has ended meanwhile is fine: the caller looks at its outcome. */
  async function cancel(workflowId: string, called: Called, boundMs: number): Promise<void> {
    try {
      await within(boundMs, async () => await client.workflow.getHandle(workflowId).cancel());
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return;
      throw translate(error, called, address);
    }
  }

  return { insist, list, cancel, isReachable };
}

/** UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED: the server is away, or busy for a moment. */
const REPEATED_GRPC = new Set([14, 10, 8]);

function isWorthRepeating(error: unknown): boolean {
  const fault = faultOfFailure(error);
  if (fault !== undefined) return fault.code === "DRAINING";
  if (error instanceof WorkflowNotFoundError) return /update .*not found/i.test(error.message);
  if (error instanceof WorkflowExecutionAlreadyStartedError) return true; // The run ended between start and update.
  const grpc = grpcCode(error);
  return grpc !== undefined && REPEATED_GRPC.has(grpc);
}

function translate(error: unknown, { kind, name, list }: Called, address: string): unknown {
  const fault = faultOfFailure(error);
  if (fault !== undefined) return fault;
  if (error instanceof WorkflowNotFoundError) {
    return new Fault("NOT_FOUND", `No ${kind} "${name}"`, { details: { name }, hint: `See \`${list}\`` });
  }
  if (error instanceof WorkflowUpdateRPCTimeoutOrCancelledError || grpcCode(error) === 4) {
    return new Fault(
      "TIMED_OUT",
      `No answer from the workflow of "${name}" in time; whether it was heard is not known`,
      {
        details: { name },
        hint: "Is the worker running? Look with `leeward status` and `leeward operation list`; the same call again does nothing twice",
        cause: error,
      },
    );
  }
  // A workflow that cannot be replayed answers so: its handlers were never set.
  if (error instanceof QueryNotRegisteredError) {
    return new Fault("OPERATION_FAILED", `The workflow of "${name}" cannot go on: ${error.message}`, {
      details: { name },
      hint: `Replication goes on without it. Its run in the Temporal Web UI says where it stands; "temporal workflow reset" takes it back to before that`,
      cause: error,
    });
  }
  // FAILED_PRECONDITION on a query: nobody polls the queue of this workflow.
  if (grpcCode(error) === 9) {
    return new Fault("PEER_UNREACHABLE", "No worker answers for the workflows", {
      hint: "Start the worker: `leeward worker`",
      cause: error,
    });
  }
  return grpcCode(error) === undefined ? error : unreachable(address, error);
}

function unreachable(address: string, cause?: unknown): Fault {
  return new Fault(
    "PEER_UNREACHABLE",
    `Temporal does not answer at "${address}"${cause === undefined ? "" : `: ${messageOfFailure(cause)}`}`,
    {
      hint: "Start it, or look into its log; replication itself goes on without it",
      ...(cause === undefined ? {} : { cause }),
    },
  );
}

/** The status code of the first gRPC error in the chain of causes. */
export function grpcCode(error: unknown): number | undefined {
  for (let at = error, depth = 0; at instanceof Error && depth < 10; at = at.cause, depth += 1) {
    if (isGrpcServiceError(at)) return at.code;
  }
  return undefined;
}
