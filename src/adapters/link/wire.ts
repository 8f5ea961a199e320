/**
 * The messages of a link as bytes. All numbers big-endian:
 *
 *     u32 total    bytes that follow this field
 *     u8  type     see MESSAGE_TYPES
 *     u32 id       call: chosen by the caller; result and fault: the call's; otherwise 0
 *     u32 length   bytes of JSON
 *     …   JSON     UTF-8. call, notice: {m: method, p: params}; result: the value; fault: a Fault; bye: a Fault or null; welcome: {}
 *     …   payload  whatever remains of `total`; notices only
 *
 * Nothing here trusts a length: JSON and payload are at most 4 MiB each, and a message that claims more, or an unknown type, ends
 * the link with PROTOCOL_INVALID before anything is allocated for it.
 */
import { Fault } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import { returnBuffer, takeBuffer } from "./buffer-pool.ts";

export const MESSAGE_TYPES = { call: 1, result: 2, fault: 3, notice: 4, ping: 5, welcome: 6, bye: 7 } as const;
export type MessageType = keyof typeof MESSAGE_TYPES;

export const JSON_BYTES_MAX = 4 * 1024 * 1024;
export const PAYLOAD_BYTES_MAX = 4 * 1024 * 1024;
/** Negotiated by ALPN, so that another version fails in the handshake. */
export const LINK_PROTOCOL = "leeward/1";

const HEAD_BYTES = 13;
const TYPES_BY_NUMBER = new Map<number, MessageType>(
  Object.entries(MESSAGE_TYPES).map(([type, number]) => [number, type as MessageType]), // Object.entries widens the keys.
);

export interface Message {
  readonly type: MessageType;
  readonly id: number;
  readonly json: JsonValue | undefined;
  /** Valid until `release`. */
  readonly payload: Uint8Array | undefined;
  /** What the message occupies while it waits. */
  readonly sizeBytes: number;
  /** Recycle the payload's buffer; call once. */
  readonly release: () => void;
}

/**
 * Head and JSON of a message, with `room` uninitialised bytes behind it for a payload that is copied in; `payloadLength` counts in
 * `total` either way. Throws RangeError when JSON or payload are over their bound: a bug in the sender.
 */
export function encodeHead(
  type: MessageType,
  options: {
    readonly id?: number;
    readonly json?: JsonValue | undefined;
    readonly payloadLength?: number;
    readonly room?: number;
  },
): Buffer {
  const text = options.json === undefined ? "" : JSON.stringify(options.json);
  const jsonLength = Buffer.byteLength(text);
  const payloadLength = options.payloadLength ?? 0;
  if (jsonLength > JSON_BYTES_MAX)
    throw new RangeError(`JSON of a message must be at most ${JSON_BYTES_MAX} bytes, got ${jsonLength}`);
  if (payloadLength > PAYLOAD_BYTES_MAX)
    throw new RangeError(`Payload must be at most ${PAYLOAD_BYTES_MAX} bytes, got ${payloadLength}`);
  const head = Buffer.allocUnsafe(HEAD_BYTES + jsonLength + (options.room ?? 0));
  head.writeUInt32BE(HEAD_BYTES - 4 + jsonLength + payloadLength, 0);
  head.writeUInt8(MESSAGE_TYPES[type], 4);
  head.writeUInt32BE(options.id ?? 0, 5);
  head.writeUInt32BE(jsonLength, 9);
  head.write(text, HEAD_BYTES, "utf8");
  return head;
}

export interface MessageReader {
  /** Take the next bytes of the stream; calls `onMessage` for each message they complete. Throws PROTOCOL_INVALID. */
  push(chunk: Buffer): void;
}

/** Reassembles messages. A payload is copied once, from the decrypted chunks into a recycled buffer. */
export function createMessageReader(onMessage: (message: Message) => void): MessageReader {
  const head = Buffer.alloc(HEAD_BYTES);
  let headFilled = 0;
  let type: MessageType = "ping";
  let jsonBuffer: Buffer | undefined;
  let jsonLength = 0;
  let jsonFilled = 0;
  let payloadBuffer: Buffer | undefined;
  let payloadLength = 0;
  let payloadFilled = 0;

  function beginBody(): void {
    const total = head.readUInt32BE(0);
    const known = TYPES_BY_NUMBER.get(head.readUInt8(4));
    jsonLength = head.readUInt32BE(9);
    payloadLength = total - (HEAD_BYTES - 4) - jsonLength;
    const bounded = jsonLength <= JSON_BYTES_MAX && payloadLength >= 0 && payloadLength <= PAYLOAD_BYTES_MAX;
    if (known === undefined || !bounded || (payloadLength > 0 && known !== "notice")) {
      throw new Fault("PROTOCOL_INVALID", `Expected a message of the link protocol, got head ${head.toString("hex")}`);
    }
    type = known;
    jsonFilled = 0;
    payloadFilled = 0;
    jsonBuffer = undefined;
    payloadBuffer = payloadLength > 0 ? takeBuffer(payloadLength) : undefined;
  }

  function finish(json: Buffer | undefined): void {
    const buffer = payloadBuffer;
    payloadBuffer = undefined;
    headFilled = 0;
    onMessage({
      type,
      id: head.readUInt32BE(5),
      json: json === undefined ? undefined : parseJson(json),
      payload: buffer?.subarray(0, payloadLength),
      sizeBytes: HEAD_BYTES + jsonLength + payloadLength,
      release: () => {
        if (buffer !== undefined) returnBuffer(buffer);
      },
    });
  }

  return {
    push(chunk) {
      let at = 0;
      while (at < chunk.length) {
        if (headFilled < HEAD_BYTES) {
          const count = Math.min(HEAD_BYTES - headFilled, chunk.length - at);
          chunk.copy(head, headFilled, at, at + count);
          headFilled += count;
          at += count;
          if (headFilled < HEAD_BYTES) return;
          beginBody();
        }
        if (jsonFilled < jsonLength) {
          const count = Math.min(jsonLength - jsonFilled, chunk.length - at);
          if (count === jsonLength) {
            jsonBuffer = chunk.subarray(at, at + count);
          } else {
            jsonBuffer ??= Buffer.allocUnsafe(jsonLength);
            chunk.copy(jsonBuffer, jsonFilled, at, at + count);
          }
          jsonFilled += count;
          at += count;
        }
        if (payloadFilled < payloadLength && jsonFilled === jsonLength) {
          const count = Math.min(payloadLength - payloadFilled, chunk.length - at);
          chunk.copy(payloadBuffer!, payloadFilled, at, at + count);
          payloadFilled += count;
          at += count;
        }
        if (jsonFilled < jsonLength || payloadFilled < payloadLength) return;
        finish(jsonBuffer);
      }
    },
  };
}

function parseJson(bytes: Buffer): JsonValue {
  try {
    return JSON.parse(bytes.toString("utf8")) as JsonValue; // JSON.parse yields nothing else.
  } catch (error) {
    throw new Fault("PROTOCOL_INVALID", "Expected JSON in a message of the link protocol", { cause: error });
  }
}
