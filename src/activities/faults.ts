/**
 * The one way out of an activity: a Fault becomes an ApplicationFailure with its code as type, `nonRetryable` from the table of faults,
 * and its JSON as first detail. Anything else is a bug or a cancellation and passes as it is.
 *
 * While the work runs a heartbeat goes out every two seconds: it says that this worker lives, not that the work proceeds (that is
 * bounded by the time-outs). Watching activities beat by themselves, with what they saw.
 */
import { ApplicationFailure } from "@temporalio/common";
import { Context } from "@temporalio/activity";
import { isFault, type Fault } from "#model/fault.ts";

const BEAT_MS = 2_000;

/** The work, with a heartbeat and a wrapper for its faults. */
export function beating<Input, Output>(work: (input: Input) => Promise<Output>): (input: Input) => Promise<Output> {
  return translating(async (input) => {
    const context = Context.current();
    const beat = setInterval(() => context.heartbeat(), BEAT_MS);
    context.heartbeat();
    try {
      // Cancellation ends the wait at once. The call itself may still arrive: every call is idempotent, and compensations follow it.
      return await Promise.race([work(input), context.cancelled]);
    } finally {
      clearInterval(beat);
    }
  });
}

/** The work with a wrapper for its faults; it beats by itself. */
export function translating<Input, Output>(work: (input: Input) => Promise<Output>): (input: Input) => Promise<Output> {
  return async (input) => {
    try {
      return await work(input);
    } catch (error) {
      throw isFault(error) ? failureOf(error) : error;
    }
  };
}

export function failureOf(fault: Fault): ApplicationFailure {
  return ApplicationFailure.create({
    type: fault.code,
    message: fault.message,
    nonRetryable: !fault.retryable,
    details: [fault.toJSON()],
    cause: fault,
  });
}
