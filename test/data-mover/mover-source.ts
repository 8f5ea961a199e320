/**
 * A source for tests of the mover: disks in memory, random writes, and the real protocol of a process server.
 *
 * What each disk held at each cut is kept, so that every point in the store can be compared block by block.
 */
import { hash } from "node:crypto";
import binding from "zstd-napi/binding.js";
import {
  CODEC_RAW,
  CODEC_ZERO,
  CODEC_ZSTD,
  DIGEST_BYTES,
  frameRecordBytes,
  KIND_DELTA,
  KIND_SWEEP,
  PIECE_BYTES,
  writeFrameHeader,
  type FrameKind,
} from "#model/frame-record.ts";
import type { JsonObject } from "#model/json.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { Address, Link, Peer } from "#ports/link.ts";
import type { CycleCommitted, StreamOpened } from "../../src/data-mover/mover-messages.ts";

export interface SourceDisk {
  readonly diskId: string;
  readonly content: Uint8Array;
  /** Blocks written since the last cut that was taken. */
  readonly dirty: Set<number>;
  /** Blocks that the sweep has still to read. */
  readonly unsynced: Set<number>;
}

export interface CutDisk {
  readonly diskId: string;
  readonly payloads: readonly Uint8Array[];
  readonly records: number;
  readonly remaining: number;
}

/** A cycle as the spool would hold it: it can be sent again. */
export interface Cut {
  readonly cycle: number;
  readonly cutAtMs: number;
  readonly point: boolean;
  readonly disks: readonly CutDisk[];
}

export function seededNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export class ScriptedSource {
  readonly disks: readonly SourceDisk[];
  /** What every disk held at the cut of a cycle. */
  readonly states = new Map<number, ReadonlyMap<string, Uint8Array>>();
  readonly random: () => number;
  cycle = 0;
  private version = 1;
  private clockMs = 1_800_000_000_000;

  constructor(diskBlocks: readonly number[], seed: number) {
    this.random = seededNumbers(seed);
    this.disks = diskBlocks.map((blocks, index) => ({
      diskId: `disk-${index}`,
      content: new Uint8Array(blocks * BLOCK_SIZE),
      dirty: new Set(),
      unsynced: new Set(Array.from({ length: blocks }, (_, block) => block)),
    }));
    for (const disk of this.disks)
      for (let block = 0; block < disk.content.length / BLOCK_SIZE; block++)
        if (this.random() < 0.8) this.fill(disk, block);
  }

  private fill(disk: SourceDisk, block: number): void {
    const view = new DataView(disk.content.buffer, block * BLOCK_SIZE, BLOCK_SIZE);
    const version = this.version++;
    const noisy = this.random() < 0.4;
    let noise = Math.imul(version, 2654435761) | 1;
    for (let at = 0; at < BLOCK_SIZE; at += 8) {
      noise ^= noise << 13;
      noise ^= noise >>> 17;
      noise ^= noise << 5;
      view.setUint32(at, noisy && at > 0 ? Math.imul(noise, 40503) : block + 1, true);
      view.setUint32(at + 4, noisy ? noise : version, true);
    }
  }

  write(writes: number, runMax = 20): void {
    for (let count = 0; count < writes; count++) {
      const disk = this.disks[Math.floor(this.random() * this.disks.length)]!;
      const blocks = disk.content.length / BLOCK_SIZE;
      const start = Math.floor(this.random() * blocks);
      const end = Math.min(blocks, start + 1 + Math.floor(this.random() * runMax));
      const zero = this.random() < 0.15;
      for (let block = start; block < end; block++) {
        if (zero) disk.content.fill(0, block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
        else this.fill(disk, block);
        disk.dirty.add(block);
      }
    }
  }

  /**
   * One cycle: sweep some unsynced blocks live, write meanwhile, cut. The sweep's records may hold old data of blocks that are in the
   * delta of the same cycle, and the payloads of both kinds are mixed.
   */
  cut(options: { readonly sweepBlocks?: number; readonly writes?: number } = {}): Cut {
    this.cycle++;
    this.clockMs += 1000;
    const wasSynced = this.disks.every((disk) => disk.unsynced.size === 0);
    const disks = this.disks.map((disk) => {
      const swept = [...disk.unsynced].slice(0, options.sweepBlocks ?? 0);
      const records = this.recordsOf(disk, swept, KIND_SWEEP);
      for (const block of swept) disk.unsynced.delete(block);
      return { disk, records };
    });
    this.write(options.writes ?? 0);
    const cut = disks.map(({ disk, records }) => {
      const delta = this.recordsOf(
        disk,
        [...disk.dirty].sort((a, b) => a - b),
        KIND_DELTA,
      );
      disk.dirty.clear();
      const mixed = this.random() < 0.5 ? [...delta, ...records] : [...records, ...delta];
      return {
        diskId: disk.diskId,
        payloads: payloadsOf(mixed, this.random),
        records: mixed.length,
        remaining: disk.unsynced.size * BLOCK_SIZE,
      };
    });
    this.states.set(this.cycle, new Map(this.disks.map((disk) => [disk.diskId, disk.content.slice()])));
    return { cycle: this.cycle, cutAtMs: this.clockMs, point: wasSynced, disks: cut };
  }

  private recordsOf(disk: SourceDisk, blocks: readonly number[], kind: FrameKind): Uint8Array[] {
    const records: Uint8Array[] = [];
    for (let at = 0; at < blocks.length;) {
      const limit = 1 + Math.floor(this.random() * 64);
      let count = 1;
      while (at + count < blocks.length && count < limit && blocks[at + count] === blocks[at]! + count) count++;
      const block = blocks[at]!;
      records.push(recordOf(block, disk.content.subarray(block * BLOCK_SIZE, (block + count) * BLOCK_SIZE), kind));
      at += count;
    }
    return records;
  }
}

export function recordOf(block: number, plain: Uint8Array, kind: FrameKind): Uint8Array {
  const blocks = plain.length / BLOCK_SIZE;
  if (plain.every((byte) => byte === 0)) {
    const record = new Uint8Array(frameRecordBytes(blocks, 0, CODEC_ZERO));
    writeFrameHeader(new DataView(record.buffer), 0, { block, blocks, codec: CODEC_ZERO, kind, storedBytes: 0 });
    return record;
  }
  const packed = compressed(plain);
  const codec = packed.length < plain.length ? CODEC_ZSTD : CODEC_RAW;
  const stored = codec === CODEC_ZSTD ? packed : plain;
  const record = new Uint8Array(frameRecordBytes(blocks, stored.length, codec));
  writeFrameHeader(new DataView(record.buffer), 0, { block, blocks, codec, kind, storedBytes: stored.length });
  let at = 16;
  for (let piece = 0; piece < plain.length; piece += PIECE_BYTES) {
    record.set(hash("sha256", plain.subarray(piece, piece + PIECE_BYTES), "buffer").subarray(0, DIGEST_BYTES), at);
    at += DIGEST_BYTES;
  }
  record.set(stored, at);
  return record;
}

const compressor = new binding.CCtx();
function compressed(plain: Uint8Array): Uint8Array {
  const target = new Uint8Array(binding.compressBound(plain.length));
  return target.slice(0, compressor.compress(target, plain, 1));
}

function payloadsOf(records: readonly Uint8Array[], random: () => number): Uint8Array[] {
  const payloads: Uint8Array[] = [];
  for (let at = 0; at < records.length;) {
    const part: Uint8Array[] = [];
    let bytes = 0;
    const limit = Math.floor(random() * (1 << 20));
    do {
      bytes += records[at]!.length;
      part.push(records[at++]!);
    } while (at < records.length && bytes + records[at]!.length < limit);
    payloads.push(new Uint8Array(Buffer.concat(part)));
  }
  return payloads;
}

/** A process server's end of a stream. */
export interface SourceStream {
  readonly opened: StreamOpened;
  readonly session: Peer;
  /** Send all frames of a cut over session and lanes, and ask for its commit. `skip`: disks whose commit of this cycle is known. */
  ship(cut: Cut): Promise<CycleCommitted>;
  send(cut: Cut): Promise<void>;
  commit(cut: Cut, timeoutMs?: number): Promise<CycleCommitted>;
  close(): void;
}

export async function openSourceStream(
  link: Link,
  address: Address,
  source: ScriptedSource,
  options: { readonly groupId: string; readonly branch?: string; readonly lanes?: number; readonly site?: string },
): Promise<SourceStream> {
  const dial = (): Promise<Peer> => link.dial(address, { expect: "master-target", handlers: {} });
  const session = await dial();
  const lanes: Peer[] = [];
  try {
    const opened = (await session.call("stream.open", {
      groupId: options.groupId,
      branch: options.branch ?? "root",
      groupEpoch: 1,
      sourceSite: options.site ?? link.self.site,
      orderVersion: 1,
      sourceLife: "0a1b2c3d",
      disks: source.disks.map((disk) => ({ diskId: disk.diskId, sizeBytes: disk.content.length })),
    })) as unknown as StreamOpened;
    for (let count = 0; count < (options.lanes ?? 0); count++) {
      const lane = await dial();
      lanes.push(lane);
      await lane.call("lane.open", { streamId: opened.streamId });
    }
    const { streamId } = opened;
    const send = async (cut: Cut): Promise<void> => {
      for (const disk of cut.disks) {
        for (const payload of disk.payloads) {
          const connections = [session, ...lanes];
          const connection = connections[Math.floor(source.random() * connections.length)]!;
          await connection.notify("frames", { streamId, diskId: disk.diskId, cycle: cut.cycle }, payload);
        }
      }
    };
    const commit = async (cut: Cut, timeoutMs = 60_000): Promise<CycleCommitted> => {
      const params: JsonObject = {
        streamId,
        cycle: cut.cycle,
        cutAtMs: cut.cutAtMs,
        consistent: true,
        point: cut.point,
        syncTotalBytes: source.disks.reduce((sum, disk) => sum + disk.content.length, 0),
        disks: cut.disks.map((disk) => ({
          diskId: disk.diskId,
          records: disk.records,
          syncRemainingBytes: disk.remaining,
          tracker: { bootId: "boot-1", generation: "3" },
        })),
        stats: { backlogBytes: 0, writtenBytes: 0 },
      };
      return (await session.call("cycle.commit", params, { timeoutMs })) as unknown as CycleCommitted;
    };
    return {
      opened,
      session,
      send,
      commit,
      async ship(cut) {
        const sending = send(cut);
        const committing = commit(cut);
        await Promise.all([sending, committing]);
        return committing;
      },
      close() {
        for (const peer of [session, ...lanes]) peer.close();
      },
    };
  } catch (error) {
    for (const peer of [session, ...lanes]) peer.close();
    throw error;
  }
}
