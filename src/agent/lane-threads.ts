/**
 * Lanes as threads: each `SweepLane` lives in a worker thread with its own connection, and is spoken to by messages. The two halves of that
 * conversation.
 */
import { parentPort, Worker } from "node:worker_threads";
import { Fault, faultFromJson, isFault, type FaultJson } from "#model/fault.ts";
import type { Address } from "#ports/link.ts";
import type { SweepLane, SweepTask } from "./sweep-lane.ts";

/** How to reach the process server, as a thread is told. */
export interface LaneTarget {
  readonly address: Address;
  readonly machine: string;
  readonly sessionId: string;
}

type LaneMessage =
  { readonly type: "ready" } | { readonly type: "done" } | { readonly type: "failed"; readonly fault: FaultJson };

/** Starts a thread with `entry` and waits until its lane is connected. `config` is plain data for the entry. */
export async function startLaneThread(entry: URL, config: unknown, target: LaneTarget): Promise<SweepLane> {
  const worker = new Worker(entry, { workerData: { config, target } });
  const ended = Promise.withResolvers<void>();
  let waiting = Promise.withResolvers<void>();
  const first = waiting.promise;
  worker.on("message", (message: LaneMessage) => {
    if (message.type === "failed") waiting.reject(faultFromJson(message.fault));
    else waiting.resolve();
  });
  worker.on("error", (error) => waiting.reject(laneLost(error)));
  worker.on("exit", () => {
    waiting.reject(laneLost());
    ended.resolve();
  });
  await first;
  return {
    closed: ended.promise,
    close: () => void worker.terminate(),
    async run(task) {
      waiting = Promise.withResolvers();
      worker.postMessage(task);
      await waiting.promise;
    },
  };
}

/** The thread's half: opens its lane and works on the tasks that come, one at a time. Returns when the lane is lost. */
export async function serveLaneThread(open: () => Promise<SweepLane>): Promise<void> {
  const port = parentPort;
  if (port === null) throw new RangeError("A lane runs in a worker thread");
  let lane: SweepLane;
  try {
    lane = await open();
  } catch (error) {
    port.postMessage(failed(error));
    return;
  }
  port.on("message", (task: SweepTask) => {
    lane.run(task).then(
      () => port.postMessage({ type: "done" } satisfies LaneMessage),
      (error: unknown) => port.postMessage(failed(error)),
    );
  });
  port.postMessage({ type: "ready" } satisfies LaneMessage);
  await lane.closed;
  port.close();
}

function failed(error: unknown): LaneMessage {
  if (!isFault(error)) throw error;
  return { type: "failed", fault: error.toJSON() };
}

function laneLost(cause?: unknown): Fault {
  return new Fault("PEER_UNREACHABLE", "A sweeping thread ended", { cause });
}
