/**
 * The first half of an NBD session, pure: bytes in, bytes out, until the client has chosen an export.
 *
 * ```
 *  greeting ──client flags──► options ──GO, EXPORT_NAME──► chosen
 *                               │  └─ INFO, LIST, STRUCTURED_REPLY, LIST/SET_META_CONTEXT, unknown: answer, stay
 *                               └─ ABORT, nonsense ──► ended
 * ```
 *
 * Invariants:
 * - no input throws; what cannot be understood is answered with an error, or ends this session and no other;
 * - memory is bounded: an option over MAX_OPTION_BYTES is skipped and answered TOO_BIG, one over SKIP_BYTES ends the session, and so
 *   do more than MAX_OPTIONS of them.
 *
 * Source: NBD `doc/proto.md`, "Fixed newstyle negotiation" and "Option types".
 */
import * as nbd from "./protocol.ts";
import type { ExportFacts } from "./protocol.ts";

const MAX_OPTION_BYTES = 64 << 10;
const SKIP_BYTES = 1 << 20;
const MAX_OPTIONS = 1000;
const MAX_NAME_BYTES = 4096;

export interface Negotiated {
  readonly exportName: string;
  readonly facts: ExportFacts;
  readonly structured: boolean;
  /** The client may ask for `base:allocation`. */
  readonly allocation: boolean;
}

export interface NegotiationStep {
  readonly send: readonly Buffer[];
  /** `rest`: bytes behind the last option, which belong to the transmission. */
  readonly outcome?:
    | { readonly type: "chosen"; readonly negotiated: Negotiated; readonly rest: Buffer }
    | { readonly type: "ended"; readonly reason: string };
}

export interface NbdExports {
  find(name: string): ExportFacts | undefined;
  names(): readonly string[];
}

export interface Negotiation {
  /** What the server says first. */
  readonly greeting: Buffer;
  push(chunk: Buffer): NegotiationStep;
}

export function createNegotiation(exports: NbdExports): Negotiation {
  const greeting = Buffer.alloc(18);
  greeting.writeBigUInt64BE(nbd.NBD_MAGIC, 0);
  greeting.writeBigUInt64BE(nbd.OPTION_MAGIC, 8);
  greeting.writeUInt16BE(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES, 16);

  let received: Buffer = Buffer.alloc(0);
  let flagsSeen = false;
  let noZeroes = false;
  let structured = false;
  let options = 0;
  let skipBytes = 0;
  let skippedOption = 0;
  // The name for which base:allocation was selected last; other exports are then entered without it.
  let allocationOf: string | undefined;

  function choose(option: number, name: string, infos: readonly number[], facts: ExportFacts): Buffer[] {
    const flags = nbd.transmissionFlags(facts, structured);
    const send = [
      optionReply(option, nbd.REP_INFO, infoExport(facts, flags)),
      optionReply(option, nbd.REP_INFO, infoBlockSize(facts)),
    ];
    if (infos.includes(nbd.INFO_NAME)) {
      const info = Buffer.alloc(2 + Buffer.byteLength(name));
      info.writeUInt16BE(nbd.INFO_NAME, 0);
      info.write(name, 2);
      send.push(optionReply(option, nbd.REP_INFO, info));
    }
    send.push(optionReply(option, nbd.REP_ACK));
    return send;
  }

  /** Answers one option; an outcome when it ends the negotiation. */
  function answer(option: number, data: Buffer): { send: Buffer[]; chosen?: Negotiated; ended?: string } {
    const invalid = (): { send: Buffer[] } => ({ send: [optionReply(option, nbd.REP_ERR_INVALID)] });
    switch (option) {
      case nbd.OPT_EXPORT_NAME: {
        const name = data.toString("utf8");
        const facts = exports.find(name);
        // This option has no way to say no: the document asks to drop the session.
        if (facts === undefined) return { send: [], ended: `export "${name.slice(0, 80)}" does not exist` };
        const reply = Buffer.alloc(noZeroes ? 10 : 134);
        reply.writeBigUInt64BE(BigInt(facts.sizeBytes), 0);
        reply.writeUInt16BE(nbd.transmissionFlags(facts, structured), 8);
        return { send: [reply], chosen: { exportName: name, facts, structured, allocation: allocationOf === name } };
      }
      case nbd.OPT_ABORT:
        return { send: [optionReply(option, nbd.REP_ACK)], ended: "client aborted" };
      case nbd.OPT_LIST: {
        if (data.length !== 0) return invalid();
        const send = exports.names().map((name) => optionReply(option, nbd.REP_SERVER, sizedName(name)));
        return { send: [...send, optionReply(option, nbd.REP_ACK)] };
      }
      case nbd.OPT_INFO:
      case nbd.OPT_GO: {
        const query = parseInfoQuery(data);
        if (query === undefined) return invalid();
        const facts = exports.find(query.name);
        if (facts === undefined) return { send: [optionReply(option, nbd.REP_ERR_UNKNOWN)] };
        const send = choose(option, query.name, query.infos, facts);
        if (option === nbd.OPT_INFO) return { send };
        return {
          send,
          chosen: { exportName: query.name, facts, structured, allocation: structured && allocationOf === query.name },
        };
      }
      case nbd.OPT_STRUCTURED_REPLY:
        if (data.length !== 0) return invalid();
        structured = true;
        return { send: [optionReply(option, nbd.REP_ACK)] };
      case nbd.OPT_LIST_META_CONTEXT:
      case nbd.OPT_SET_META_CONTEXT: {
        const setting = option === nbd.OPT_SET_META_CONTEXT;
        if (setting) allocationOf = undefined;
        const query = parseMetaQuery(data);
        if (!structured || query === undefined) return invalid();
        if (exports.find(query.name) === undefined) return { send: [optionReply(option, nbd.REP_ERR_UNKNOWN)] };
        const wanted = setting
          ? query.queries.includes(nbd.META_CONTEXT)
          : query.queries.length === 0 || query.queries.some((text) => text === nbd.META_CONTEXT || text === "base:");
        if (!wanted) return { send: [optionReply(option, nbd.REP_ACK)] };
        if (setting) allocationOf = query.name;
        const context = Buffer.alloc(4 + nbd.META_CONTEXT.length);
        context.writeUInt32BE(setting ? nbd.META_CONTEXT_ID : 0, 0);
        context.write(nbd.META_CONTEXT, 4);
        return { send: [optionReply(option, nbd.REP_META_CONTEXT, context), optionReply(option, nbd.REP_ACK)] };
      }
      default:
        return { send: [optionReply(option, nbd.REP_ERR_UNSUP)] };
    }
  }

  return {
    greeting,
    push(chunk) {
      received = received.length === 0 ? chunk : Buffer.concat([received, chunk]);
      const send: Buffer[] = [];
      const ended = (reason: string): NegotiationStep => ({ send, outcome: { type: "ended", reason } });
      if (!flagsSeen) {
        if (received.length < 4) return { send };
        const flags = received.readUInt32BE(0);
        if ((flags & ~(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)) !== 0)
          return ended(`client flags ${flags} are not known`);
        noZeroes = (flags & nbd.FLAG_NO_ZEROES) !== 0;
        flagsSeen = true;
        received = received.subarray(4);
      }
      for (;;) {
        if (skipBytes > 0) {
          const skipped = Math.min(skipBytes, received.length);
          skipBytes -= skipped;
          received = received.subarray(skipped);
          if (skipBytes > 0) return { send };
          send.push(optionReply(skippedOption, nbd.REP_ERR_TOO_BIG));
        }
        if (received.length < 16) return { send };
        if (received.readBigUInt64BE(0) !== nbd.OPTION_MAGIC) return ended("an option without its magic number");
        if (++options > MAX_OPTIONS) return ended(`more than ${MAX_OPTIONS} options`);
        const option = received.readUInt32BE(8);
        const length = received.readUInt32BE(12);
        if (length > SKIP_BYTES) return ended(`an option of ${length} bytes`);
        if (length > MAX_OPTION_BYTES) {
          skipBytes = length;
          skippedOption = option;
          received = received.subarray(16);
          continue;
        }
        if (received.length < 16 + length) return { send };
        const data = received.subarray(16, 16 + length);
        received = received.subarray(16 + length);
        const result = answer(option, data);
        send.push(...result.send);
        if (result.ended !== undefined) return ended(result.ended);
        if (result.chosen !== undefined)
          return { send, outcome: { type: "chosen", negotiated: result.chosen, rest: received } };
      }
    },
  };
}

function optionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const reply = Buffer.alloc(20 + data.length);
  reply.writeBigUInt64BE(nbd.OPTION_REPLY_MAGIC, 0);
  reply.writeUInt32BE(option, 8);
  reply.writeUInt32BE(type, 12);
  reply.writeUInt32BE(data.length, 16);
  data.copy(reply, 20);
  return reply;
}

function infoExport(facts: ExportFacts, flags: number): Buffer {
  const info = Buffer.alloc(12);
  info.writeUInt16BE(nbd.INFO_EXPORT, 0);
  info.writeBigUInt64BE(BigInt(facts.sizeBytes), 2);
  info.writeUInt16BE(flags, 10);
  return info;
}

function infoBlockSize(facts: ExportFacts): Buffer {
  const info = Buffer.alloc(14);
  info.writeUInt16BE(nbd.INFO_BLOCK_SIZE, 0);
  info.writeUInt32BE(1, 2);
  // The document wants at least 512 here, though a device may like single bytes.
  info.writeUInt32BE(Math.max(512, facts.preferredBlockBytes), 6);
  info.writeUInt32BE(nbd.MAX_PAYLOAD_BYTES, 10);
  return info;
}

function sizedName(name: string): Buffer {
  const bytes = Buffer.alloc(4 + Buffer.byteLength(name));
  bytes.writeUInt32BE(bytes.length - 4, 0);
  bytes.write(name, 4);
  return bytes;
}

function parseInfoQuery(data: Buffer): { name: string; infos: number[] } | undefined {
  if (data.length < 6) return undefined;
  const nameBytes = data.readUInt32BE(0);
  if (nameBytes > MAX_NAME_BYTES || data.length < 6 + nameBytes) return undefined;
  const count = data.readUInt16BE(4 + nameBytes);
  if (data.length !== 6 + nameBytes + 2 * count) return undefined;
  const infos: number[] = [];
  for (let index = 0; index < count; index++) infos.push(data.readUInt16BE(6 + nameBytes + 2 * index));
  return { name: data.toString("utf8", 4, 4 + nameBytes), infos };
}

function parseMetaQuery(data: Buffer): { name: string; queries: string[] } | undefined {
  let at = 0;
  const text = (): string | undefined => {
    if (data.length < at + 4) return undefined;
    const length = data.readUInt32BE(at);
    if (length > MAX_NAME_BYTES || data.length < at + 4 + length) return undefined;
    at += 4 + length;
    return data.toString("utf8", at - length, at);
  };
  const name = text();
  if (name === undefined || data.length < at + 4) return undefined;
  const count = data.readUInt32BE(at);
  at += 4;
  const queries: string[] = [];
  for (let index = 0; index < count; index++) {
    const query = text();
    if (query === undefined) return undefined;
    queries.push(query);
  }
  return at === data.length ? { name, queries } : undefined;
}
