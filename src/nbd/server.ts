/**
 * NBD on a socket: `serveNbd` listens, every connection is one session (negotiation, then transmission), and nothing that one client
 * sends can end another's session or the server.
 *
 * Memory is bounded per connection: requests in flight (see transmission.ts), and what is received while blocked (the socket is paused).
 */
import { createServer } from "node:net";
import type { Socket } from "node:net";
import { Fault } from "#model/fault.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import type { Log } from "#ports/log.ts";
import { createBufferPool } from "./buffer-pool.ts";
import type { BufferPool } from "./buffer-pool.ts";
import { createNegotiation } from "./negotiation.ts";
import type { Negotiated } from "./negotiation.ts";
import { createReplyWriter } from "./reply-writer.ts";
import { createTransmission } from "./transmission.ts";
import type { Transmission } from "./transmission.ts";

const NEGOTIATION_MS = 30_000;
const MAX_CONNECTIONS = 128;

export interface NbdExportTable {
  /** The device of a name; undefined when there is none. Asked for each session anew. */
  find(name: string): BlockDevice | undefined;
  /** What OPT_LIST tells. */
  names(): readonly string[];
}

export type NbdListen = { readonly path: string } | { readonly host: string; readonly port: number };

export interface NbdServer {
  /** Where it listens: the path of a unix socket, or "host:port" with the port that was got. */
  readonly address: string;
  readonly port: number | undefined;
  /** Sessions that have chosen an export, by its name. */
  sessions(): readonly string[];
  /**
   * Listen no more, let what is in flight finish (at most `graceMs`, default 2000; what arrives meanwhile gets ESHUTDOWN) and end all sessions.
   * The devices are not closed: who opened them closes them.
   */
  close(options?: { readonly graceMs?: number }): Promise<void>;
}

/** Throws PORT_IN_USE, or CONFIG_INVALID when it cannot listen there. */
export async function serveNbd(options: {
  readonly exports: NbdExportTable;
  readonly listen: NbdListen;
  readonly log?: Log;
}): Promise<NbdServer> {
  const pool = createBufferPool();
  const sessions = new Set<Session>();
  const server = createServer({ noDelay: true, allowHalfOpen: true }, (socket) => {
    if (sessions.size >= MAX_CONNECTIONS) {
      options.log?.warn("NBD client refused: too many connections", { connections: sessions.size });
      socket.destroy();
      return;
    }
    const session = runSession(socket, options.exports, pool, options.log);
    sessions.add(session);
    socket.once("close", () => sessions.delete(session));
  });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(options.listen, resolve);
  try {
    await promise;
  } catch (cause) {
    const where = JSON.stringify(options.listen);
    const inUse = (cause as NodeJS.ErrnoException).code === "EADDRINUSE";
    throw new Fault(inUse ? "PORT_IN_USE" : "CONFIG_INVALID", `Cannot listen for NBD clients at ${where}`, { cause });
  }
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : undefined;
  return {
    address: typeof address === "string" ? address : `${"host" in options.listen ? options.listen.host : ""}:${port}`,
    port,
    sessions: () => [...sessions].map((session) => session.exportName()).filter((name) => name !== undefined),
    async close({ graceMs = 2000 } = {}) {
      const closed = new Promise<void>((done) => server.close(() => done()));
      await Promise.all([...sessions].map((session) => session.close(graceMs)));
      await closed;
    },
  };
}

interface Session {
  exportName(): string | undefined;
  close(graceMs: number): Promise<void>;
}

function runSession(socket: Socket, exports: NbdExportTable, pool: BufferPool, log: Log | undefined): Session {
  let transmission: Transmission | undefined;
  let exportName: string | undefined;
  let ending = false;
  const negotiation = createNegotiation(exports);
  const deadline = setTimeout(() => end("no export was chosen in time"), NEGOTIATION_MS);
  const writer = createReplyWriter(pool, socket);

  /** Nothing further is read; what is in flight is answered, then the socket ends. */
  function end(reason: string | undefined): void {
    if (reason !== undefined) log?.info("NBD session ended", { export: exportName ?? null, reason });
    ending = true;
    socket.pause();
    progress();
  }

  function progress(): void {
    if (ending) {
      if ((transmission?.inFlight ?? 0) > 0) return;
      writer.flush();
      socket.destroySoon();
    } else if (transmission?.blocked === true) {
      socket.pause();
    } else if (socket.isPaused()) {
      socket.resume();
    }
  }

  function begin(negotiated: Negotiated, rest: Buffer): void {
    const device = exports.find(negotiated.exportName);
    if (device === undefined) return end(`export "${negotiated.exportName}" is gone`);
    clearTimeout(deadline);
    exportName = negotiated.exportName;
    transmission = createTransmission({
      device,
      negotiated,
      pool,
      writer,
      onEnd: end,
      onProgress: progress,
      onFault: (fault, request) =>
        log?.error("NBD request failed", {
          export: negotiated.exportName,
          fault,
          type: request.type,
          offset: request.offset,
          length: request.length,
        }),
    });
    if (rest.length > 0) transmission.push(rest);
  }

  socket.write(negotiation.greeting);
  socket.on("data", (chunk: Buffer) => {
    if (ending) return;
    if (transmission !== undefined) {
      transmission.push(chunk);
    } else {
      const step = negotiation.push(chunk);
      for (const bytes of step.send) socket.write(bytes);
      if (step.outcome?.type === "chosen") begin(step.outcome.negotiated, step.outcome.rest);
      else if (step.outcome?.type === "ended") end(step.outcome.reason);
    }
    progress();
  });
  socket.on("drain", () => {
    transmission?.resume();
    progress();
  });
  socket.once("end", () => end(undefined));
  socket.on("error", (error) =>
    log?.debug("NBD connection was lost", { export: exportName ?? null, error: error.message }),
  );
  socket.once("close", () => {
    clearTimeout(deadline);
    ending = true;
    writer.release();
  });

  return {
    exportName: () => exportName,
    async close(graceMs) {
      if (socket.destroyed) return;
      const closed = new Promise<void>((done) => socket.once("close", () => done()));
      const timer = setTimeout(() => socket.destroy(), graceMs);
      transmission?.shutDown();
      end(undefined);
      await closed;
      clearTimeout(timer);
    },
  };
}
