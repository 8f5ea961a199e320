/**
 * One established connection as a `Peer`: order, back-pressure, calls, keep-alives and the end.
 *
 * Invariants:
 * - what is sent goes out in the order of the calls to `call` and `notify`, answers included: one queue (`outbound`);
 * - what arrives is delivered in order: one queue (`inbound`), and a notice's handler is awaited. Answers to our own calls do not queue, for
 *   the handler of a notice may be waiting for one. It should not: while the queue is full nothing is read, answers neither;
 * - memory is bounded: at most `SEND_BYTES_MAX` before the socket, and `RECEIVE_BYTES_MAX` plus one message behind it. Beyond that the socket
 *   is not read, TCP's window closes, and the other side's `notify` waits;
 * - silence is only counted while we read. A slow handler is not a dead peer, and neither is our own blocked event loop;
 * - a connection ends once: with `bye` from either side (then `closed` is what it carried), or by loss (PEER_UNREACHABLE). What was
 *   received before `bye` is still delivered; what was received before a loss is not.
 */
import type { TLSSocket } from "node:tls";
import { Fault, faultFromJson, isFault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Clock } from "#ports/clock.ts";
import type { Handlers, Peer, PeerIdentity } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import { countReceived } from "./swept-buffers.ts";
import { createMessageReader, encodeHead } from "./wire.ts";
import type { Message } from "./wire.ts";

export const SEND_BYTES_MAX = 4 * 1024 * 1024;
export const RECEIVE_BYTES_MAX = 4 * 1024 * 1024;
const QUEUED_MESSAGES_MAX = 1024;
const RUNNING_CALLS_MAX = 1024;
/** Below this a payload is copied behind its head: one TLS record instead of two, and the caller goes on at once. */
const COPIED_PAYLOAD_MAX = 32 * 1024;
const DEFAULT_CALL_MS = 30_000;
/** How long a closing connection may take to say goodbye. */
const GOODBYE_MS = 2_000;

export interface Timing {
  readonly pingMs: number;
  readonly silenceMs: number;
}
export const DEFAULT_TIMING: Timing = { pingMs: 5_000, silenceMs: 15_000 };

export interface Connection {
  readonly peer: Peer;
  /** Listener: tell the dialler that it is welcome, and begin. */
  welcome(handlers: Handlers): void;
  /** Dialler: begin once the listener's welcome arrives; rejects with its Fault when it refuses. */
  awaitWelcome(handlers: Handlers): Promise<void>;
}

interface Outgoing {
  readonly head: Buffer;
  readonly payload?: Uint8Array;
  readonly handed: () => void;
  readonly failed: (fault: Fault) => void;
}

interface PendingCall {
  readonly settle: (outcome: { readonly value: JsonValue } | { readonly fault: Fault }) => void;
}

export function createConnection(
  socket: TLSSocket,
  options: { readonly identity: PeerIdentity; readonly clock: Clock; readonly log: Log; readonly timing: Timing },
): Connection {
  const { identity, clock, log, timing } = options;
  const controller = new AbortController();
  const closed = Promise.withResolvers<Fault | undefined>();
  const welcomed = Promise.withResolvers<void>();
  const outbound: Outgoing[] = [];
  const inbound: Message[] = [];
  const calls = new Map<number, PendingCall>();
  let handlers: Handlers | undefined;
  let open = true;
  let byeReceived = false;
  let delivering = false;
  let inboundBytes = 0;
  let runningCalls = 0;
  let nextCallId = 1;
  let lastHeard = clock.monotonic();
  let lastTick = lastHeard;

  const reader = createMessageReader(receive);
  socket.on("data", (chunk: Buffer) => {
    if (!open || byeReceived) return; // Read on only to see the end of the stream.
    lastHeard = clock.monotonic();
    countReceived(chunk.length);
    try {
      reader.push(chunk);
    } catch (error) {
      if (!isFault(error)) throw error;
      log.warn("A peer broke the link protocol", { peer: identity, fault: error });
      close(error);
    }
    if (open && mustWait()) socket.pause();
  });
  socket.on("error", (error) => lost(error));
  socket.on("close", () => lost());
  const ticker = setInterval(tick, timing.pingMs);
  ticker.unref(); // The socket keeps the process alive, not its heartbeat.

  const peer: Peer = { identity, call, notify, closed: closed.promise, close };
  welcomed.promise.catch(() => undefined); // Only the dialler waits for it; `closed` tells everyone else.

  return {
    peer,
    welcome(given) {
      if (!open) return;
      handlers = given;
      socket.write(encodeHead("welcome", { json: {} }));
      pump();
      void deliver();
    },
    async awaitWelcome(given) {
      handlers = given;
      await welcomed.promise;
    },
  };

  // Sending

  async function call(
    method: string,
    params: JsonObject,
    callOptions: { readonly timeoutMs?: number; readonly signal?: AbortSignal } = {},
  ) {
    const { timeoutMs = DEFAULT_CALL_MS, signal } = callOptions;
    if (signal?.aborted === true) throw interruption(signal);
    if (!open) throw unreachablePeer();
    const id = nextCallId;
    nextCallId = nextCallId === 0xffff_ffff ? 1 : nextCallId + 1;
    const head = encodeHead("call", { id, json: { m: method, p: params } });
    return await new Promise<JsonValue>((resolve, reject) => {
      const timer = setTimeout(() => {
        settle({
          fault: new Fault("TIMED_OUT", `No answer to "${method}" from ${describe()} within ${timeoutMs} ms`, {
            details: { method, timeoutMs },
          }),
        });
      }, timeoutMs);
      const onAbort = (): void => settle({ fault: interruption(signal!) });
      const settle: PendingCall["settle"] = (outcome) => {
        calls.delete(id);
        clearTimeout(timer);
        signal?.removeEventListener("abort", onAbort);
        if ("fault" in outcome) reject(outcome.fault);
        else resolve(outcome.value);
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      calls.set(id, { settle });
      send({ head, handed: () => undefined, failed: (fault) => settle({ fault }) });
    });
  }

  async function notify(method: string, params: JsonObject, payload?: Uint8Array): Promise<void> {
    if (!open) throw unreachablePeer();
    const payloadLength = payload?.length ?? 0;
    const copied = payload !== undefined && payloadLength <= COPIED_PAYLOAD_MAX;
    const head = encodeHead("notice", {
      json: { m: method, p: params },
      payloadLength,
      room: copied ? payloadLength : 0,
    });
    if (copied) head.set(payload, head.length - payloadLength);
    await new Promise<void>((handed, failed) => {
      send({ head, handed, failed, ...(payload === undefined || copied ? {} : { payload }) });
    });
  }

  function send(item: Outgoing): void {
    outbound.push(item);
    pump();
  }

  /** Hand to the socket what fits. Before the welcome nothing is handed: the dialler may still be refused. */
  function pump(): void {
    while (open && handlers !== undefined && outbound.length > 0 && socket.writableLength < SEND_BYTES_MAX) {
      const item = outbound.shift()!;
      if (item.payload === undefined) {
        socket.write(item.head, pump);
        item.handed();
        continue;
      }
      // Not corked: Node's TLS copies what it gets by writev. The payload is the caller's again once the socket has taken it.
      socket.write(item.head);
      socket.write(item.payload, (error) => {
        if (error == null) item.handed();
        else item.failed(unreachablePeer(error));
        pump();
      });
    }
  }

  // Receiving

  function receive(message: Message): void {
    switch (message.type) {
      case "ping":
        return;
      case "result":
        return settleCall(message.id, { value: message.json ?? null });
      case "fault":
        return settleCall(message.id, { fault: faultFromJson(message.json) });
      case "welcome":
        welcomed.resolve();
        pump();
        return;
      case "bye":
        byeReceived = true;
        break;
      case "call":
      case "notice":
        break;
    }
    inbound.push(message);
    inboundBytes += message.sizeBytes;
    void deliver();
  }

  /** A call that timed out or was aborted is no longer there: its late answer is dropped. */
  function settleCall(id: number, outcome: Parameters<PendingCall["settle"]>[0]): void {
    calls.get(id)?.settle(outcome);
  }

  async function deliver(): Promise<void> {
    if (delivering || handlers === undefined) return;
    delivering = true;
    while (open && inbound.length > 0) {
      const message = inbound.shift()!;
      if (message.type === "bye") {
        const fault = message.json == null ? undefined : faultFromJson(message.json);
        welcomed.reject(fault ?? unreachablePeer());
        end(fault);
        socket.end();
        break;
      }
      if (message.type === "call") void runCall(message);
      else await runNotice(message);
      message.release();
      inboundBytes -= message.sizeBytes;
      if (open) resumeIfRoom();
    }
    delivering = false;
  }

  async function runCall(message: Message): Promise<void> {
    runningCalls += 1;
    let answer: Buffer;
    try {
      const { method, params } = parseRequest(message.json);
      const handler = handlers?.[method];
      if (handler === undefined) throw new Fault("PROTOCOL_INVALID", `No such method "${method}"`);
      answer = encodeAnswer((await handler(params, { peer, payload: undefined, signal: controller.signal })) ?? null);
    } catch (error) {
      answer = encodeHead("fault", { id: message.id, json: { ...asFault(error, message.json).toJSON() } });
    }
    runningCalls -= 1;
    if (!open) return;
    send({ head: answer, handed: () => undefined, failed: () => undefined }); // The caller learns of a lost link itself.
    resumeIfRoom();

    function encodeAnswer(value: JsonValue): Buffer {
      return encodeHead("result", { id: message.id, json: value });
    }
  }

  /** A notice has no answer: when its handler fails, the stream it belongs to is broken, so the link ends and says why. */
  async function runNotice(message: Message): Promise<void> {
    try {
      const { method, params } = parseRequest(message.json);
      const handler = handlers?.[method];
      if (handler === undefined) throw new Fault("PROTOCOL_INVALID", `No such notice "${method}"`);
      await handler(params, { peer, payload: message.payload, signal: controller.signal });
    } catch (error) {
      if (open) close(asFault(error, message.json));
    }
  }

  function asFault(error: unknown, request: JsonValue | undefined): Fault {
    if (isFault(error)) return error;
    const method = typeof request === "object" && request !== null && "m" in request ? String(request.m) : "?";
    log.error("A handler failed", { peer: identity, method, error });
    return new Fault("PROTOCOL_INVALID", `The handler of "${method}" failed; its log has the reason`, {
      details: { method },
    });
  }

  // Flow and life

  function mustWait(): boolean {
    return inboundBytes > RECEIVE_BYTES_MAX || inbound.length > QUEUED_MESSAGES_MAX || runningCalls > RUNNING_CALLS_MAX;
  }

  function resumeIfRoom(): void {
    if (!socket.isPaused() || mustWait()) return;
    lastHeard = clock.monotonic();
    socket.resume();
  }

  function tick(): void {
    const now = clock.monotonic();
    const late = now - lastTick > 2 * timing.pingMs; // We were stopped, not the peer: what it sent is still unread.
    lastTick = now;
    if (late || socket.isPaused()) lastHeard = now;
    if (now - lastHeard > timing.silenceMs) {
      close(new Fault("PEER_UNREACHABLE", `${describe()} said nothing for ${timing.silenceMs} ms`));
      socket.destroy();
      return;
    }
    if (socket.writableLength === 0) socket.write(encodeHead("ping", {}));
  }

  function close(reason?: Fault): void {
    if (!open) return;
    socket.write(encodeHead("bye", { json: reason === undefined ? null : { ...reason.toJSON() } }));
    end(reason);
    socket.end();
  }

  function lost(cause?: Error): void {
    if (!open || (byeReceived && delivering)) return; // `deliver` comes to the `bye` and ends it properly.
    end(unreachablePeer(cause));
    socket.destroy();
  }

  function end(fault: Fault | undefined): void {
    open = false;
    clearInterval(ticker);
    const pending =
      fault === undefined || fault.code === "PEER_UNREACHABLE" ? unreachablePeer() : unreachablePeer(fault);
    // What the socket already holds is settled by its own callback: until then the payload must not change.
    for (const item of outbound.splice(0)) item.failed(pending);
    for (const { settle } of [...calls.values()]) settle({ fault: pending });
    for (const message of inbound.splice(0)) message.release();
    welcomed.reject(fault ?? pending);
    socket.resume(); // So that the end of the stream is seen.
    const goodbye = setTimeout(() => socket.destroy(), GOODBYE_MS);
    goodbye.unref();
    socket.once("close", () => clearTimeout(goodbye));
    closed.resolve(fault);
    controller.abort(fault ?? pending);
  }

  function describe(): string {
    return `${identity.role} "${identity.name}" of site "${identity.site}"`;
  }

  function unreachablePeer(cause?: Error): Fault {
    const why = cause === undefined ? "" : `: ${cause.message}`;
    return new Fault("PEER_UNREACHABLE", `The link to ${describe()} ended${why}`, {
      details: { site: identity.site, role: identity.role, name: identity.name },
      ...(cause === undefined ? {} : { cause }),
    });
  }
}

/** The signal's own Fault, or INTERRUPTED. */
export function interruption(signal: AbortSignal): Fault {
  return signal.reason instanceof Fault
    ? signal.reason
    : new Fault("INTERRUPTED", "The call was interrupted", { cause: signal.reason });
}

function parseRequest(json: JsonValue | undefined): { readonly method: string; readonly params: JsonObject } {
  if (typeof json === "object" && json !== null && !Array.isArray(json)) {
    const { m, p } = json as JsonObject;
    if (typeof m === "string" && typeof p === "object" && p !== null && !Array.isArray(p))
      return { method: m, params: p as JsonObject };
  }
  throw new Fault("PROTOCOL_INVALID", "Expected a method and its parameters in a message of the link protocol");
}
