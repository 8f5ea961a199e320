/**
 * The tap as a process: disks served over NBD, and a control socket for the agent.
 *
 * It outlives its agent: the machine's disk must not depend on it. A control connection that is lost while it holds disks releases them
 * at once; its cuts stay for whoever connects next.
 */
import { chmodSync } from "node:fs";
import { createServer } from "node:net";
import type { Socket } from "node:net";
import type { BlockRun } from "#model/block-set.ts";
import { Fault, isFault } from "#model/fault.ts";
import type { FaultJson } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import type { Log } from "#ports/log.ts";
import type { CaptureDevice } from "./capture-device.ts";
import { removeStaleSocket } from "./tap-disk.ts";
import type { TapDisk } from "./tap-disk.ts";
import * as params from "./tap-params.ts";
import {
  bytesOfRuns,
  createTapFrameReader,
  decodeRuns,
  encodeRuns,
  encodeTapFrameHead,
  MAX_READ_BLOCKS,
  MAX_RUNS_PER_PAGE,
} from "./tap-protocol.ts";
import type { TapAnswer, TapDiskConfig } from "./tap-protocol.ts";

export interface Tap {
  /** Disks of the configuration that could not be opened, and why. `addDisk` may try again. */
  readonly failed: readonly { readonly diskId: string; readonly fault: FaultJson }[];
  /** Settles after a clean stop, asked for by `stop` here or over the control socket. */
  readonly stopped: Promise<void>;
  stop(): Promise<void>;
}

export interface TapOptions {
  readonly controlSocket: string;
  readonly disks: readonly TapDiskConfig[];
  readonly openDisk: (config: TapDiskConfig) => Promise<TapDisk>;
  readonly log: Log;
}

/** Throws PORT_IN_USE when another tap answers at the control socket, CONFIG_INVALID when it cannot be made. */
export async function startTap(options: TapOptions): Promise<Tap> {
  const { log } = options;
  await removeStaleSocket(options.controlSocket);
  const disks = new Map<string, TapDisk>();
  const opening = new Set<string>();
  const connections = new Set<Socket>();
  const stopped = Promise.withResolvers<void>();
  let stopping: Promise<void> | undefined;

  async function addDisk(config: TapDiskConfig): Promise<TapDisk> {
    const existing = disks.get(config.diskId);
    if (existing !== undefined && existing.config.image === config.image && existing.config.socket === config.socket)
      return existing;
    if (existing !== undefined || opening.has(config.diskId)) {
      throw new Fault("DISK_ALREADY_PROTECTED", `The tap serves a disk "${config.diskId}" already`, {
        details: { disk: config.diskId },
      });
    }
    opening.add(config.diskId);
    try {
      const former = [...disks.values()].find(
        (disk) => disk.config.image === config.image && disk.config.socket === config.socket,
      );
      if (former !== undefined) {
        const formerId = former.config.diskId;
        await former.adopt(config);
        disks.delete(formerId);
        disks.set(config.diskId, former);
        log.info("A disk goes on under another id", { disk: config.diskId, former: formerId });
        return former;
      }
      const disk = await options.openDisk(config);
      disks.set(config.diskId, disk);
      return disk;
    } finally {
      opening.delete(config.diskId);
    }
  }

  const failed: { diskId: string; fault: FaultJson }[] = [];
  await Promise.all(
    options.disks.map(async (config) => {
      try {
        await addDisk(config);
      } catch (error) {
        if (!isFault(error)) throw error;
        log.error("Tap cannot serve a disk", { disk: config.diskId, fault: error });
        failed.push({ diskId: config.diskId, fault: error.toJSON() });
      }
    }),
  );

  const server = createServer((socket) => {
    connections.add(socket);
    socket.once("close", () => connections.delete(socket));
    serveControl(socket, { disks, addDisk, stop, log });
  });
  const listening = Promise.withResolvers<void>();
  server.once("error", listening.reject);
  server.listen(options.controlSocket, listening.resolve);
  try {
    await listening.promise;
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot listen at "${options.controlSocket}"`, {
      cause,
      hint: "The path of a socket has at most 107 bytes, in a folder that this user may write.",
    });
  }
  chmodSync(options.controlSocket, 0o600);

  function stop(): Promise<void> {
    stopping ??= (async () => {
      await Promise.all([...disks.values()].map((disk) => disk.close()));
      disks.clear();
      const closed = new Promise<void>((done) => server.close(() => done()));
      // The answer to a `stop` that came over one of them goes out first.
      setImmediate(() => {
        for (const socket of connections) socket.destroySoon();
      });
      void closed.then(stopped.resolve);
    })();
    return stopping;
  }

  return { failed, stopped: stopped.promise, stop };
}

interface ControlContext {
  readonly disks: Map<string, TapDisk>;
  addDisk(config: TapDiskConfig): Promise<TapDisk>;
  stop(): Promise<void>;
  readonly log: Log;
}

interface Answer {
  readonly result: JsonValue;
  readonly payload?: Uint8Array;
}

type Handler = (values: params.Params, payload: Uint8Array) => Answer | Promise<Answer>;

const DONE: Answer = { result: null };

function serveControl(socket: Socket, context: ControlContext): void {
  const { disks, log } = context;
  const reader = createTapFrameReader();
  /** Holds of this connection, which end with it. */
  const holds = new Set<{ readonly capture: CaptureDevice; readonly cutId: number }>();

  function captureOf(values: params.Params): CaptureDevice {
    return diskOf(params.text(values, "diskId")).capture;
  }

  function diskOf(diskId: string): TapDisk {
    const disk = disks.get(diskId);
    if (disk === undefined)
      throw new Fault("NOT_FOUND", `The tap serves no disk "${diskId}"`, { details: { disk: diskId } });
    return disk;
  }

  function capturesOf(values: params.Params): CaptureDevice[] {
    return params.texts(values, "diskIds").map((diskId) => diskOf(diskId).capture);
  }

  function page(runs: Iterable<BlockRun>): Answer {
    const some: BlockRun[] = [];
    let next = -1;
    for (const run of runs) {
      if (some.length === MAX_RUNS_PER_PAGE) {
        next = run.start;
        break;
      }
      some.push(run);
    }
    return { result: { next }, payload: encodeRuns(some) };
  }

  async function readInto(
    capture: CaptureDevice,
    payload: Uint8Array,
    read: (runs: readonly BlockRun[], target: Uint8Array) => Promise<void>,
  ): Promise<Answer> {
    const runs = runsWithin(payload, capture.blocks);
    const blocks = runs.reduce((sum, run) => sum + run.count, 0);
    if (blocks > MAX_READ_BLOCKS)
      throw new Fault("PROTOCOL_INVALID", `A read of "${blocks}" blocks, expected at most ${MAX_READ_BLOCKS}`);
    const target = Buffer.allocUnsafe(bytesOfRuns(runs));
    await read(runs, target);
    return { result: null, payload: target };
  }

  const handlers: Readonly<Record<string, Handler>> = {
    addDisk: async (values) => {
      const disk = await context.addDisk(params.diskConfig(values));
      return { result: disk.status() as unknown as JsonValue };
    },
    removeDisk: async (values) => {
      const disk = diskOf(params.text(values, "diskId"));
      disks.delete(disk.config.diskId);
      await disk.close();
      return DONE;
    },
    disks: () => ({ result: [...disks.values()].map((disk) => disk.status()) as unknown as JsonValue }),
    report: () => ({ result: [...disks.values()].map((disk) => disk.status(true)) as unknown as JsonValue }),
    hold: async (values) => {
      const cutId = params.whole(values, "cutId");
      const boundMs = params.whole(values, "boundMs");
      const captures = capturesOf(values);
      const results = await Promise.allSettled(
        captures.map(async (capture) => {
          const hold = capture.hold(cutId, boundMs);
          holds.add({ capture, cutId });
          await hold;
        }),
      );
      const refused = results.find((result) => result.status === "rejected");
      if (refused === undefined && !socket.destroyed) return DONE;
      // Those that hold for this call hold for nothing.
      for (const [index, result] of results.entries())
        if (result.status === "fulfilled") captures[index]!.expire(cutId);
      throw refused?.reason ?? new Fault("PEER_UNREACHABLE", "The agent went away during a hold");
    },
    mark: (values) => {
      const cutId = params.whole(values, "cutId");
      const diskIds = params.texts(values, "diskIds");
      const captures = capturesOf(values);
      const marked: CaptureDevice[] = [];
      try {
        const result = captures.map((capture, index) => {
          const blocks = capture.mark(cutId);
          marked.push(capture);
          return { diskId: diskIds[index]!, blocks };
        });
        return { result };
      } catch (error) {
        for (const capture of marked) capture.discard(cutId);
        throw error;
      }
    },
    release: (values) => {
      const cutId = params.whole(values, "cutId");
      const released = capturesOf(values).map((capture) => capture.release(cutId));
      for (const hold of holds) if (hold.cutId === cutId) holds.delete(hold);
      return {
        result: {
          heldThroughout: released.every((one) => one.heldThroughout),
          heldMs: Math.max(0, ...released.map((one) => one.heldMs)),
        },
      };
    },
    cutExtents: (values) =>
      page(captureOf(values).cutRuns(params.whole(values, "cutId"), params.whole(values, "from"))),
    readCut: (values, payload) => {
      const capture = captureOf(values);
      return readInto(capture, payload, (runs, target) => capture.readCut(params.whole(values, "cutId"), runs, target));
    },
    shipped: (values) => {
      captureOf(values).shipped(params.whole(values, "cutId"));
      return DONE;
    },
    committed: (values, payload) => {
      const capture = captureOf(values);
      capture.committed(params.whole(values, "cutId"), runsWithin(payload, capture.blocks));
      return DONE;
    },
    discard: (values) => {
      captureOf(values).discard(params.whole(values, "cutId"));
      return DONE;
    },
    unsynced: (values) => page(captureOf(values).unsyncedRuns(params.whole(values, "from"))),
    readLive: (values, payload) => {
      const capture = captureOf(values);
      return readInto(capture, payload, (runs, target) => capture.readLive(runs, target));
    },
    markAllUnsynced: async (values) => {
      await captureOf(values).markAllUnsynced(params.text(values, "reason"));
      return DONE;
    },
    stop: async () => {
      await context.stop();
      return DONE;
    },
  };

  async function answer(header: unknown, payload: Uint8Array): Promise<void> {
    const { id, method, params: values } = params.request(header);
    let head: TapAnswer;
    let body: Uint8Array | undefined;
    try {
      const handler = Object.hasOwn(handlers, method) ? handlers[method] : undefined;
      if (handler === undefined) throw new Fault("PROTOCOL_INVALID", `The tap has no method "${method}"`);
      const { result, payload: answered } = await handler(params.object(values), payload);
      head = { id, result };
      body = answered;
    } catch (error) {
      if (!isFault(error)) throw error;
      head = { id, fault: error.toJSON() };
    }
    if (socket.destroyed) return;
    socket.write(encodeTapFrameHead(head, body?.length ?? 0));
    if (body !== undefined && body.length > 0) socket.write(body);
  }

  socket.on("data", (chunk: Buffer) => {
    try {
      for (const { header, payload } of reader.push(chunk)) {
        params.request(header);
        void answer(header, payload);
      }
    } catch (error) {
      if (!isFault(error)) throw error;
      log.warn("Tap control connection ended", { fault: error });
      socket.destroy();
    }
  });
  socket.on("error", (error) => log.debug("Tap control connection was lost", { error: error.message }));
  socket.once("close", () => {
    for (const { capture, cutId } of holds) capture.expire(cutId);
    holds.clear();
  });
}

function runsWithin(payload: Uint8Array, blocks: number): BlockRun[] {
  const runs = decodeRuns(payload);
  const outside = runs.find((run) => run.start + run.count > blocks);
  if (outside !== undefined)
    throw new Fault("PROTOCOL_INVALID", `Blocks "${outside.start}+${outside.count}" of a disk of ${blocks}`);
  return runs;
}
