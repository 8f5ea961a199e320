/**
 * Mutually authenticated connections between roles (mTLS): calls with an answer, notices without, and bulk payloads with
 * back-pressure. Everything that crosses a process boundary between our roles crosses one of these.
 *
 * Invariants (test/contract/link.contract.ts):
 * - messages of one peer are delivered in the order in which they were sent; a notice's handler is awaited before the next message
 *   is delivered (so a slow handler slows the sender down), calls run beside each other;
 * - a `Fault` thrown by a handler arrives as that Fault; any other error is logged there and arrives as PROTOCOL_INVALID;
 * - after `closed` settles no handler is started; open calls fail with PEER_UNREACHABLE;
 * - a peer that says nothing for 15 s (keep-alives included) is closed.
 */
import type { Fault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";

export type Role = "agent" | "process-server" | "master-target" | "control" | "worker" | "cli";

/** From the peer's certificate, never from what it says. SAN URI: leeward://SITE/ROLE/NAME */
export interface PeerIdentity {
  readonly site: string;
  readonly role: Role;
  readonly name: string;
}

export interface Peer {
  readonly identity: PeerIdentity;
  /** Throws the remote Fault, PEER_UNREACHABLE when the link ends first, TIMED_OUT after `timeoutMs` (default 30 000). */
  call(
    method: string,
    params: JsonObject,
    options?: { readonly timeoutMs?: number; readonly signal?: AbortSignal },
  ): Promise<JsonValue>;
  /** Resolves when the message is handed to the socket and the send buffer is below its bound. `payload` may be reused then. */
  notify(method: string, params: JsonObject, payload?: Uint8Array): Promise<void>;
  readonly closed: Promise<Fault | undefined>;
  close(reason?: Fault): void;
}

/**
 * `payload` is valid only until the handler's promise settles: the buffer is recycled. Results are plain JSON; undefined means null.
 * `signal` aborts when the link closes.
 */
export type Handler = (
  params: JsonObject,
  context: { readonly peer: Peer; readonly payload: Uint8Array | undefined; readonly signal: AbortSignal },
) => Promise<JsonValue | undefined | void>;
export type Handlers = Readonly<Record<string, Handler>>;

export interface Address {
  readonly host: string;
  readonly port: number;
}

export interface Link {
  readonly self: PeerIdentity;
  /** Throws PEER_UNREACHABLE, CREDENTIALS_REJECTED; PEER_REJECTED when the peer is not of the expected role. */
  dial(
    address: Address,
    options: { readonly expect: Role; readonly handlers: Handlers; readonly signal?: AbortSignal },
  ): Promise<Peer>;
  /** `accept` decides per peer and returns its handlers; throwing a Fault rejects the peer with it. Port 0 picks a free one. */
  listen(address: Address, accept: (peer: Peer) => Handlers): Promise<Listener>;
}

export interface Listener {
  readonly address: Address;
  close(): Promise<void>;
}
