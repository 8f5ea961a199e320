/**
 * Threads that compress payloads of raw frames, for orders that want it done here and not on the protected machine.
 *
 * A payload is copied into a buffer that is handed to a thread and comes back with the result; at most `threads` payloads are worked on, the
 * others wait, and so do the lanes that brought them.
 */
import { Worker } from "node:worker_threads";
import { Fault } from "#model/fault.ts";
import { recompressedBytesMax } from "#model/frame-packer.ts";
import type { CompressPayload } from "./stream-reducer.ts";

export interface CompressPool {
  readonly compress: CompressPayload;
  close(): Promise<void>;
}

/** To the thread: a buffer with `payloadBytes` of payload at its start, and room for the result behind. */
export interface CompressTask {
  readonly buffer: ArrayBuffer;
  readonly payloadBytes: number;
}
/** From the thread: the same buffer, with the result at `offset`. */
export interface CompressResult {
  readonly buffer: ArrayBuffer;
  readonly offset: number;
  readonly bytes: number;
}

interface Thread {
  readonly worker: Worker;
  done: ((result: CompressResult) => void) | undefined;
  failed: ((fault: Fault) => void) | undefined;
}

/** `entry`: the module of compress-worker. Threads are started when they are first needed. */
export function createCompressPool(entry: URL, threads: number): CompressPool {
  const idle: Thread[] = [];
  const all = new Set<Thread>();
  const waiting: ((thread: Thread) => void)[] = [];

  return {
    async compress(payload) {
      const thread =
        idle.pop() ?? (all.size < threads ? start() : await new Promise<Thread>((resolve) => waiting.push(resolve)));
      // Not zeroed first: all that is read of it was written before. Its memory is its own, so it can be handed over.
      const { buffer } = Buffer.allocUnsafeSlow(payload.length + recompressedBytesMax(payload));
      new Uint8Array(buffer).set(payload);
      try {
        const result = await new Promise<CompressResult>((resolve, reject) => {
          thread.done = resolve;
          thread.failed = reject;
          thread.worker.postMessage({ buffer, payloadBytes: payload.length } satisfies CompressTask, [buffer]);
        });
        return new Uint8Array(result.buffer, result.offset, result.bytes);
      } finally {
        giveBack(thread);
      }
    },
    async close() {
      await Promise.all([...all].map((thread) => thread.worker.terminate()));
    },
  };

  function start(): Thread {
    const thread: Thread = { worker: new Worker(entry), done: undefined, failed: undefined };
    all.add(thread);
    thread.worker.unref();
    thread.worker.on("message", (result: CompressResult) => thread.done?.(result));
    thread.worker.on("error", (cause) => {
      all.delete(thread);
      thread.failed?.(new Fault("PROCESS_DIED", "A compressing thread ended", { cause }));
    });
    return thread;
  }

  function giveBack(thread: Thread): void {
    const usable = all.has(thread) ? thread : all.size < threads ? start() : undefined;
    if (usable === undefined) return;
    const next = waiting.shift();
    if (next === undefined) idle.push(usable);
    else next(usable);
  }
}
