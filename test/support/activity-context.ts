/** A context for activities without a server: run one, see its heartbeats, cancel it. */
import { asyncLocalStorage, Context } from "@temporalio/activity";
import { CancelledFailure } from "@temporalio/common";

export interface ActivityRun<T> {
  readonly result: Promise<T>;
  readonly heartbeats: readonly unknown[];
  cancel(): void;
}

export function runActivity<Input, T>(activity: (input: Input) => Promise<T>, input: Input): ActivityRun<T> {
  const heartbeats: unknown[] = [];
  const cancelled = Promise.withResolvers<never>();
  cancelled.promise.catch(() => undefined);
  const signal = new AbortController();
  // Only what our activities use of it; the rest is the SDK's business.
  const context = Object.create(Context.prototype) as Context;
  Object.defineProperties(context, {
    cancelled: { value: cancelled.promise },
    cancellationSignal: { value: signal.signal },
    heartbeat: { value: (details?: unknown) => void heartbeats.push(details) },
  });
  return {
    result: asyncLocalStorage.run(context, async () => await activity(input)),
    heartbeats,
    cancel: () => {
      signal.abort();
      cancelled.reject(new CancelledFailure("by a test"));
    },
  };
}
