/**
 * How an agent speaks to its tap, over a unix socket on the same machine.
 *
 * A frame, little-endian:
 *
 * ```
 *  0  u32  length of all that follows
 *  4  u32  length of the JSON header
 *  8  …    JSON: a request {id, method, params} or an answer {id, result} or {id, fault}
 *  …  …    payload: runs of blocks (12 bytes each: u48 first block, u16 zero, u32 blocks) or the blocks' bytes
 * ```
 *
 * Answers may come in any order. The socket is the permission: it lies in a folder that only the agent's user can enter.
 * A frame longer than MAX_TAP_FRAME_BYTES ends the connection.
 * Source: docs/protocol.md, "Agent and tap".
 */
import { Fault, faultFromJson } from "#model/fault.ts";
import type { FaultJson } from "#model/fault.ts";
import type { BlockRun } from "#model/block-set.ts";
import type { JsonValue } from "#model/json.ts";
import { BLOCK_SIZE } from "#model/units.ts";

export const MAX_TAP_FRAME_BYTES = 16 << 20;
/** Blocks that one readCut or readLive may ask for: 4 MiB. */
export const MAX_READ_BLOCKS = 1024;
/** Runs that one answer carries; the client asks again from where it ended. */
export const MAX_RUNS_PER_PAGE = 65536;
export const DEFAULT_HOLD_BOUND_MS = 250;

/** A disk as the tap is told of it. */
export interface TapDiskConfig {
  readonly diskId: string;
  /** Path of the raw image file or block device. */
  readonly image: string;
  /** Path of the unix socket on which the disk is served over NBD; a stale one is replaced. */
  readonly socket: string;
  /** Folder of the write-intent file `NAME.intent`. Made when missing. */
  readonly stateDir: string;
  /** What the machine attaches: the name of the NBD export. Stays when the image is protected anew under another disk id. Default: `diskId`. */
  readonly name?: string;
}

/** What the tap process is started with: a JSON file, named by `--config`. */
export interface TapConfig {
  readonly controlSocket: string;
  readonly disks: readonly TapDiskConfig[];
  /** Old data kept for cuts that are not shipped yet, per disk. Default 64 MiB. */
  readonly frozenBytesMax?: number;
  /** File to append the log to; standard error if left out. */
  readonly logFile?: string;
}

/** The one line that the tap process prints on its standard output, as JSON, when all its sockets listen. */
export interface TapReady {
  readonly ready: true;
  /** Disks that could not be opened; `addDisk` tries again. */
  readonly failed: readonly { readonly diskId: string; readonly fault: FaultJson }[];
}

export interface TapCutStatus {
  readonly cutId: number;
  /** `open`: readable as of the cut. `shipped`: only its block set is kept. `void`: its blocks are dirty again; discard it. */
  readonly state: "open" | "shipped" | "void";
  readonly blocks: number;
  readonly markedAtMs: number;
}

export interface TapDiskStatus {
  readonly diskId: string;
  readonly image: string;
  readonly sizeBytes: number;
  /** `nbd+unix:///DISKID?socket=PATH`: where the machine attaches its disk. */
  readonly url: string;
  /** Which life of the tracker this is: another boot id or generation means that outstanding cuts of before are gone. */
  readonly tracker: { readonly bootId: string; readonly generation: number };
  readonly unsyncedBytes: number;
  /** Clients that have the disk attached now. */
  readonly clients: number;
  /** Why there is something to sweep; "" when there is not. */
  readonly sweepReason: string;
  readonly dirtyBytes: number;
  /** Written by clients since the tap started. */
  readonly writtenBytes: number;
  /** Longest hold since the last `report`, ms. */
  readonly holdMsMax: number;
  /** Old data kept in memory for open cuts. */
  readonly frozenBytes: number;
  readonly cuts: readonly TapCutStatus[];
  /** The first local write or flush that failed since the tap started; "" when none did. */
  readonly writeFailure: string;
}

export interface TapMethods {
  /** A disk that is served already, by image and socket, but under another id, goes on under this one: nobody who has it attached notices. */
  addDisk: { params: TapDiskConfig; result: TapDiskStatus };
  removeDisk: { params: { diskId: string }; result: null };
  disks: { params: Record<string, never>; result: readonly TapDiskStatus[] };
  report: { params: Record<string, never>; result: readonly TapDiskStatus[] };
  hold: { params: { diskIds: readonly string[]; cutId: number; boundMs: number }; result: null };
  mark: {
    params: { diskIds: readonly string[]; cutId: number };
    result: readonly { diskId: string; blocks: number }[];
  };
  release: {
    params: { diskIds: readonly string[]; cutId: number };
    result: { heldThroughout: boolean; heldMs: number };
  };
  cutExtents: { params: { diskId: string; cutId: number; from: number }; result: { next: number } };
  readCut: { params: { diskId: string; cutId: number }; result: null };
  shipped: { params: { diskId: string; cutId: number }; result: null };
  committed: { params: { diskId: string; cutId: number }; result: null };
  discard: { params: { diskId: string; cutId: number }; result: null };
  unsynced: { params: { diskId: string; from: number }; result: { next: number } };
  readLive: { params: { diskId: string }; result: null };
  markAllUnsynced: { params: { diskId: string; reason: string }; result: null };
  stop: { params: Record<string, never>; result: null };
}
export type TapMethod = keyof TapMethods;

export interface TapRequest {
  readonly id: number;
  readonly method: string;
  readonly params: unknown;
}

export type TapAnswer =
  { readonly id: number; readonly result: JsonValue } | { readonly id: number; readonly fault: FaultJson };

export interface TapFrame {
  readonly header: unknown;
  /** A view into what was received. */
  readonly payload: Uint8Array;
}

export function tapUrl(diskId: string, socket: string): string {
  return `nbd+unix:///${encodeURIComponent(diskId)}?socket=${encodeURIComponent(socket).replaceAll("%2F", "/")}`;
}

/** The frame without its payload: send it, and the payload right behind it. */
export function encodeTapFrameHead(header: TapRequest | TapAnswer, payloadBytes = 0): Buffer {
  const json = Buffer.from(JSON.stringify(header));
  const head = Buffer.allocUnsafe(8 + json.length);
  head.writeUInt32LE(4 + json.length + payloadBytes, 0);
  head.writeUInt32LE(json.length, 4);
  json.copy(head, 8);
  return head;
}

/** Cuts a byte stream into frames. `push` throws PROTOCOL_INVALID for a frame that no peer of ours sends; end the connection then. */
export function createTapFrameReader(): { push(chunk: Uint8Array): TapFrame[] } {
  let chunks: Uint8Array[] = [];
  let buffered = 0;
  let needed = 8;
  return {
    push(chunk) {
      chunks.push(chunk);
      buffered += chunk.length;
      const frames: TapFrame[] = [];
      while (buffered >= needed) {
        const whole = chunks.length === 1 ? asBuffer(chunks[0]!) : Buffer.concat(chunks, buffered);
        chunks = [whole];
        const length = whole.readUInt32LE(0);
        const jsonLength = whole.readUInt32LE(4);
        if (length > MAX_TAP_FRAME_BYTES || length < 4 || jsonLength > length - 4) {
          throw new Fault("PROTOCOL_INVALID", `Tap frame of "${length}" bytes with a header of "${jsonLength}"`);
        }
        needed = 4 + length;
        if (buffered < needed) break;
        frames.push({
          header: parseJson(whole.toString("utf8", 8, 8 + jsonLength)),
          payload: whole.subarray(8 + jsonLength, needed),
        });
        const rest = whole.subarray(needed);
        chunks = rest.length > 0 ? [rest] : [];
        buffered = rest.length;
        needed = 8;
      }
      return frames;
    },
  };
}

const RUN_BYTES = 12;

export function encodeRuns(runs: readonly BlockRun[]): Buffer {
  const bytes = Buffer.alloc(runs.length * RUN_BYTES);
  for (const [index, run] of runs.entries()) {
    bytes.writeUIntLE(run.start, index * RUN_BYTES, 6);
    bytes.writeUInt32LE(run.count, index * RUN_BYTES + 8);
  }
  return bytes;
}

/** Inverse of `encodeRuns`. Throws PROTOCOL_INVALID for a partial or an empty run. */
export function decodeRuns(payload: Uint8Array): BlockRun[] {
  const bytes = asBuffer(payload);
  if (bytes.length % RUN_BYTES !== 0)
    throw new Fault("PROTOCOL_INVALID", `Runs of "${bytes.length}" bytes, expected a multiple of ${RUN_BYTES}`);
  const runs: BlockRun[] = [];
  for (let at = 0; at < bytes.length; at += RUN_BYTES) {
    const run = { start: bytes.readUIntLE(at, 6), count: bytes.readUInt32LE(at + 8) };
    if (run.count === 0) throw new Fault("PROTOCOL_INVALID", `Empty run at block "${run.start}"`);
    runs.push(run);
  }
  return runs;
}

/** Bytes of the blocks of `runs`, whole blocks. */
export function bytesOfRuns(runs: readonly BlockRun[]): number {
  return runs.reduce((sum, run) => sum + run.count, 0) * BLOCK_SIZE;
}

/** Throws the fault that an answer carries. */
export function resultOfAnswer(answer: TapAnswer): JsonValue {
  if ("fault" in answer) throw faultFromJson(answer.fault);
  return answer.result;
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Fault("PROTOCOL_INVALID", `Tap frame header is not JSON: "${text.slice(0, 80)}"`, { cause });
  }
}
