/** Lanes of a restore as threads, each with its own connections to the store: the two halves of what is said between them. */
import type { KeyObject } from "node:crypto";
import { parentPort, Worker, workerData } from "node:worker_threads";
import { Fault, faultFromJson, isFault, type FaultJson } from "#model/fault.ts";
import type { Cipher } from "#model/format/header.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import type { RestoreLane } from "./export-restore.ts";
import { type JobDone, type LaneContext, type LaneTarget, runJob } from "./restore-lane.ts";
import type { RestoreJob } from "./restore-plan.ts";

interface ThreadData {
  readonly config: unknown;
  readonly cipher: Cipher;
  readonly storeId: string;
  readonly diskId: string;
  readonly target: LaneTarget;
}

type Order =
  | { readonly type: "job"; readonly id: number; readonly job: RestoreJob; readonly key: KeyObject | undefined }
  | { readonly type: "abort"; readonly id: number };

type Answer =
  | { readonly type: "done"; readonly id: number; readonly done: JobDone }
  | { readonly type: "fault"; readonly id: number; readonly fault: FaultJson }
  | { readonly type: "failed"; readonly id: number; readonly code: string | undefined; readonly message: string };

/** A thread that runs `entry`, which calls `serveRestoreThread`. `config` is plain data for it. The file's descriptor is the process's. */
export function startRestoreThread(
  entry: URL,
  config: unknown,
  { keyring, storeId, diskId }: Omit<LaneContext, "store">,
  target: LaneTarget,
): RestoreLane {
  const data: ThreadData = { config, cipher: keyring.cipher, storeId, diskId, target };
  const worker = new Worker(entry, { workerData: data });
  const waiting = new Map<number, PromiseWithResolvers<JobDone>>();
  let last = 0;
  let lost: Error | undefined;
  const lose = (error: Error): void => {
    lost ??= error;
    for (const one of waiting.values()) one.reject(lost);
    waiting.clear();
  };
  worker.on("message", (answer: Answer) => {
    const one = waiting.get(answer.id);
    waiting.delete(answer.id);
    if (answer.type === "done") one?.resolve(answer.done);
    else if (answer.type === "fault") one?.reject(faultFromJson(answer.fault));
    else one?.reject(Object.assign(new Error(answer.message), { code: answer.code }));
  });
  worker.on("error", lose);
  worker.on("exit", () =>
    lose(
      new Fault("PROCESS_DIED", "A thread of the restore ended", {
        hint: "Repeat the command: it goes on where it stopped.",
      }),
    ),
  );
  return {
    run(job, signal) {
      if (lost !== undefined) return Promise.reject(lost);
      const id = ++last;
      const key = keyring.cipher === "none" ? undefined : keyring.keyOf(job.place.dataKeyId);
      const one = Promise.withResolvers<JobDone>();
      waiting.set(id, one);
      const abort = (): void => worker.postMessage({ type: "abort", id } satisfies Order);
      signal.addEventListener("abort", abort, { once: true });
      worker.postMessage({ type: "job", id, job, key } satisfies Order);
      return one.promise.finally(() => signal.removeEventListener("abort", abort));
    },
    async close() {
      await worker.terminate();
    },
  };
}

/** The thread's half; works until it is terminated. */
export function serveRestoreThread(openStore: (config: unknown) => ObjectStore): void {
  const port = parentPort;
  if (port === null) throw new RangeError("A lane of a restore runs in a worker thread");
  const { config, cipher, storeId, diskId, target } = workerData as ThreadData;
  const store = openStore(config);
  const running = new Map<number, AbortController>();
  port.on("message", (order: Order) => {
    if (order.type === "abort") {
      running.get(order.id)?.abort();
      return;
    }
    const { id, job, key } = order;
    const abort = new AbortController();
    running.set(id, abort);
    const keyring = {
      cipher,
      keyOf(): KeyObject {
        if (key !== undefined) return key;
        throw new Fault("KEY_MISSING", "The thread of a restore was given no key");
      },
    };
    void runJob(job, { store, keyring, storeId, diskId }, target, abort.signal)
      .then(
        (done): Answer => ({ type: "done", id, done }),
        (error: unknown): Answer => {
          if (isFault(error)) return { type: "fault", id, fault: error.toJSON() };
          const { code, message } = error as NodeJS.ErrnoException;
          return { type: "failed", id, code, message };
        },
      )
      .then((answer) => {
        running.delete(id);
        port.postMessage(answer);
      });
  });
}
