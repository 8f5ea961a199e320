/**
 * Calls and notices between the master target and its child processes, over Node's IPC channel. Credentials and disk keys travel
 * here and nowhere else: an environment or an argument list can be read by others on the machine.
 *
 * Invariants:
 * - a Fault thrown by a handler arrives as that Fault; any other error is a bug over there: logged, and PROTOCOL_INVALID here;
 * - when the other process ends, open calls fail with PROCESS_DIED.
 */
import { Fault, faultFromJson } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Log } from "#ports/log.ts";

export type ChannelHandler = (params: JsonObject) => Promise<JsonValue | undefined | void>;
export type ChannelHandlers = Readonly<Record<string, ChannelHandler>>;

export interface ChildChannel {
  /** Throws the other side's Fault, PROCESS_DIED, TIMED_OUT. */
  call(method: string, params: JsonObject, options?: { readonly timeoutMs?: number }): Promise<JsonValue>;
  /** Best effort, in order. */
  notify(method: string, params: JsonObject): void;
  readonly closed: Promise<void>;
}

/** What a ChildProcess and `process` (in a child) have in common. */
export interface ChannelEndpoint {
  readonly connected?: boolean;
  send?(message: unknown, callback?: (error: Error | null) => void): boolean;
  on(event: "message", listener: (message: unknown) => void): unknown;
  once(event: "disconnect", listener: () => void): unknown;
}

type Message =
  | { readonly type: "call"; readonly id: number; readonly method: string; readonly params: JsonObject }
  | { readonly type: "answer"; readonly id: number; readonly result: JsonValue }
  | { readonly type: "fault"; readonly id: number; readonly fault: JsonValue }
  | { readonly type: "notice"; readonly method: string; readonly params: JsonObject };

const CALL_TIMEOUT_MS = 60_000;

export function openChildChannel(
  endpoint: ChannelEndpoint,
  options: { readonly handlers: ChannelHandlers; readonly log: Log },
): ChildChannel {
  const { handlers, log } = options;
  const open = new Map<number, { resolve(value: JsonValue): void; reject(error: unknown): void }>();
  let lastId = 0;
  let ended = false;

  const send = (message: Message): boolean => {
    if (ended || !endpoint.connected || !endpoint.send) return false;
    endpoint.send(message, (error) => {
      if (error) log.warn("A message to the other process was not sent", { type: message.type, error: error.message });
    });
    return true;
  };

  const serve = async (method: string, params: JsonObject): Promise<JsonValue> => {
    const handler = Object.hasOwn(handlers, method) ? handlers[method] : undefined;
    if (!handler) throw new Fault("PROTOCOL_INVALID", `Unknown method "${method}"`);
    return (await handler(params)) ?? null;
  };

  endpoint.on("message", (raw) => {
    const message = raw as Message; // Both ends are this file.
    switch (message.type) {
      case "call":
        serve(message.method, message.params).then(
          (result) => send({ type: "answer", id: message.id, result }),
          (error: unknown) =>
            send({
              type: "fault",
              id: message.id,
              fault: faultOf(error, message.method, log).toJSON() as unknown as JsonValue,
            }),
        );
        return;
      case "notice":
        serve(message.method, message.params).catch((error: unknown) => faultOf(error, message.method, log));
        return;
      case "answer":
        open.get(message.id)?.resolve(message.result);
        return;
      case "fault":
        open.get(message.id)?.reject(faultFromJson(message.fault));
        return;
    }
  });

  const closed = new Promise<void>((resolve) => {
    endpoint.once("disconnect", () => {
      ended = true;
      for (const call of open.values()) call.reject(died());
      resolve();
    });
  });

  return {
    call(method, params, more = {}) {
      const id = ++lastId;
      const timeoutMs = more.timeoutMs ?? CALL_TIMEOUT_MS;
      return new Promise<JsonValue>((resolve, reject) => {
        const timer = setTimeout(
          () => reject(new Fault("TIMED_OUT", `"${method}" was not answered within ${timeoutMs} ms`)),
          timeoutMs,
        );
        open.set(id, {
          resolve: (value) => (finish(), resolve(value)),
          reject: (error) => (finish(), reject(error)),
        });
        const finish = (): void => {
          clearTimeout(timer);
          open.delete(id);
        };
        if (!send({ type: "call", id, method, params })) open.get(id)?.reject(died());
      });
    },
    notify(method, params) {
      send({ type: "notice", method, params });
    },
    closed,
  };
}

function died(): Fault {
  return new Fault("PROCESS_DIED", "The process ended before it answered", {
    hint: "It is started again by itself; repeat the call.",
  });
}

function faultOf(error: unknown, method: string, log: Log): Fault {
  if (error instanceof Fault) return error;
  log.error("A handler failed", {
    method,
    error: error instanceof Error ? (error.stack ?? error.message) : String(error),
  });
  return new Fault("PROTOCOL_INVALID", `"${method}" failed: ${error instanceof Error ? error.message : String(error)}`);
}
