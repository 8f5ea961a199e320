/**
 * A mover in memory: receives streams as docs/protocol.md says, keeps one flat image per disk, and hands out a copy of all images for each point.
 * It is strict: a record too few, a digest that does not fit, a cycle out of order is an error that the test sees.
 *
 * It can be lost at any moment (`lose`): what was not committed is gone, what was committed stays.
 */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { decompress } from "zstd-napi";
import { Fault } from "#model/fault.ts";
import { CODEC_ZERO, CODEC_ZSTD, KIND_SWEEP, PIECE_BYTES, readFrameRecords } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { Link, Listener, Peer } from "#ports/link.ts";
import type { JsonValue } from "#model/json.ts";
import { readCycleCommit, readFramesHead, readStreamOpen } from "../../src/data-mover/mover-messages.ts";

export interface FakePoint {
  readonly cycle: number;
  readonly cutAtMs: number;
  readonly images: ReadonlyMap<string, Buffer>;
}

export interface FakeMover {
  readonly port: number;
  readonly images: ReadonlyMap<string, Buffer>;
  readonly committedCycles: readonly number[];
  readonly points: number;
  readonly frameBytes: number;
  readonly records: number;
  readonly opens: number;
  readonly errors: readonly unknown[];
  /** The store forgets everything. */
  wipe(): void;
  /** The store has this of a disk, up to that cycle, whoever wrote it. */
  has(diskId: string, image: Buffer, cycle: number): void;
  /** Drops every connection; what is not committed is lost. */
  lose(): void;
  /** Not reachable until `comeBack`. */
  goAway(): Promise<void>;
  comeBack(): Promise<void>;
  close(): Promise<void>;
}

export interface FakeMoverOptions {
  readonly link: Link;
  /** Default: it does not say which store it has, as an old one. */
  readonly storeId?: string;
  readonly onPoint?: (point: FakePoint) => void;
  /** Called at each step; may wait, may throw a Fault. */
  readonly onStep?: (step: "open" | "frames" | "commit" | "committed") => Promise<void>;
}

interface Stream {
  readonly id: string;
  readonly sourceLife: string;
  readonly peer: Peer;
  readonly lanes: Set<Peer>;
  /** cycle → disk → payload records */
  readonly cycles: Map<number, Map<string, Arrived>>;
}

interface Arrived {
  records: number;
  sweeps: Piece[];
  deltas: Piece[];
  changed: () => void;
}

interface Piece {
  readonly block: number;
  readonly blocks: number;
  /** Undefined: zeroes. */
  readonly plain: Buffer | undefined;
}

const RECORDS_WAIT_MS = 5_000;

export async function startFakeMover(options: FakeMoverOptions): Promise<FakeMover> {
  const { link, onPoint, onStep } = options;
  const images = new Map<string, Buffer>();
  const tails = new Map<string, { seq: number; cycle: number; commitHash: string; sourceLife: string }>();
  const errors: unknown[] = [];
  const committedCycles: number[] = [];
  const peers = new Set<Peer>();
  let epoch = 0;
  let stream: Stream | undefined;
  let newestBarrier: { cycle: number; cutAtMs: number; state: string } | undefined;
  let points = 0;
  let frameBytes = 0;
  let records = 0;
  let opens = 0;
  let port = 0;
  let listener: Listener | undefined;

  await comeBack();
  return {
    get port() {
      return port;
    },
    images,
    committedCycles,
    errors,
    get points() {
      return points;
    },
    get frameBytes() {
      return frameBytes;
    },
    get records() {
      return records;
    },
    get opens() {
      return opens;
    },
    wipe() {
      images.clear();
      tails.clear();
      newestBarrier = undefined;
    },
    has(diskId, image, cycle) {
      images.set(diskId, image);
      tails.set(diskId, { seq: cycle, cycle, commitHash: "", sourceLife: "ffffffff" });
    },
    lose,
    async goAway() {
      lose();
      await listener?.close();
      listener = undefined;
    },
    comeBack,
    async close() {
      lose();
      await listener?.close();
    },
  };

  function lose(): void {
    stream = undefined;
    for (const peer of [...peers]) peer.close(new Fault("PEER_UNREACHABLE", "The mover was lost"));
    peers.clear();
  }

  async function comeBack(): Promise<void> {
    listener = await link.listen({ host: "127.0.0.1", port }, (peer) => {
      peers.add(peer);
      void peer.closed.then(() => peers.delete(peer));
      const guard =
        (work: (params: Record<string, unknown>, payload: Uint8Array | undefined) => Promise<JsonValue | undefined>) =>
        async (params: object, context: { readonly payload: Uint8Array | undefined }) => {
          try {
            return await work(params as Record<string, unknown>, context.payload);
          } catch (error) {
            if (!(error instanceof Fault)) errors.push(error);
            throw error;
          }
        };
      return {
        "stream.open": guard((params) => open(peer, params)),
        "lane.open": guard(async (params) => {
          current(params["streamId"]).lanes.add(peer);
          return {};
        }),
        frames: guard(async (params, payload) => {
          await frames(params, payload);
          return undefined;
        }),
        "cycle.commit": guard(commit),
      };
    });
    port = listener.address.port;
  }

  async function open(peer: Peer, params: Record<string, unknown>): Promise<JsonValue> {
    await onStep?.("open");
    const request = readStreamOpen(params);
    if (stream !== undefined) {
      const old = stream;
      stream = undefined;
      for (const one of [old.peer, ...old.lanes])
        if (one !== peer) one.close(new Fault("PEER_UNREACHABLE", "A newer stream was opened"));
    }
    epoch += 1;
    opens += 1;
    for (const { diskId, sizeBytes } of request.disks) {
      if (!images.has(diskId)) images.set(diskId, Buffer.alloc(Math.ceil(sizeBytes / BLOCK_SIZE) * BLOCK_SIZE));
      if (!tails.has(diskId)) tails.set(diskId, { seq: 0, cycle: 0, commitHash: "", sourceLife: "" });
    }
    stream = {
      id: randomBytes(8).toString("hex"),
      sourceLife: request.sourceLife,
      peer,
      lanes: new Set(),
      cycles: new Map(),
    };
    return {
      streamId: stream.id,
      ...(options.storeId === undefined ? {} : { storeId: options.storeId }),
      barrier: Math.max(newestBarrier?.cycle ?? 0, ...[...tails.values()].map((tail) => tail.cycle)),
      disks: request.disks.map(({ diskId }) => ({ diskId, epoch, ...tails.get(diskId)! })),
    };
  }

  function current(streamId: unknown): Stream {
    if (stream === undefined || stream.id !== streamId) throw new Fault("PROTOCOL_INVALID", "This stream is over");
    return stream;
  }

  function arrivedOf(own: Stream, cycle: number, diskId: string): Arrived {
    let disks = own.cycles.get(cycle);
    if (disks === undefined) {
      assert.ok(own.cycles.size < 2, `cycle ${cycle} begins while ${[...own.cycles.keys()].join(", ")} are open`);
      assert.ok(
        cycle > (committedCycles.at(-1) ?? 0),
        `cycle ${cycle} begins after ${committedCycles.at(-1)} was committed`,
      );
      disks = new Map();
      own.cycles.set(cycle, disks);
    }
    let arrived = disks.get(diskId);
    if (arrived === undefined)
      disks.set(diskId, (arrived = { records: 0, sweeps: [], deltas: [], changed: () => undefined }));
    return arrived;
  }

  async function frames(params: Record<string, unknown>, payload: Uint8Array | undefined): Promise<void> {
    await onStep?.("frames");
    const head = readFramesHead(params);
    const own = current(head.streamId);
    assert.ok(payload !== undefined && payload.length > 0 && payload.length <= 2 << 20);
    const arrived = arrivedOf(own, head.cycle, head.diskId);
    frameBytes += payload.length;
    for (const record of readFrameRecords(payload)) {
      let plain: Buffer | undefined;
      if (record.codec !== CODEC_ZERO) {
        plain = record.codec === CODEC_ZSTD ? decompress(record.stored) : Buffer.from(record.stored);
        assert.equal(plain.length, record.blocks * BLOCK_SIZE);
        for (let at = 0, digest = 0; at < plain.length; at += PIECE_BYTES, digest += 16) {
          const expected = createHash("sha256")
            .update(plain.subarray(at, at + PIECE_BYTES))
            .digest()
            .subarray(0, 16);
          assert.deepEqual(
            Buffer.from(record.digests.subarray(digest, digest + 16)),
            expected,
            "the digest does not fit",
          );
        }
      }
      const piece = { block: record.block, blocks: record.blocks, plain };
      (record.kind === KIND_SWEEP ? arrived.sweeps : arrived.deltas).push(piece);
      arrived.records += 1;
      records += 1;
    }
    arrived.changed();
  }

  async function commit(params: Record<string, unknown>): Promise<JsonValue> {
    const request = readCycleCommit(params);
    const own = current(request.streamId);
    const { cycle } = request;
    await onStep?.("commit");
    const done = [];
    for (const earlier of [...own.cycles.keys()]) if (earlier < cycle) own.cycles.delete(earlier);
    for (const disk of request.disks) {
      if (disk.records === 0) continue;
      const tail = tails.get(disk.diskId)!;
      if (tail.cycle < cycle) {
        const arrived = arrivedOf(own, cycle, disk.diskId);
        const deadline = Date.now() + RECORDS_WAIT_MS;
        while (arrived.records < disk.records) {
          if (stream !== own) throw new Fault("PEER_UNREACHABLE", "The stream is over");
          assert.ok(Date.now() < deadline, `cycle ${cycle}: ${arrived.records} of ${disk.records} records`);
          await new Promise<void>((resolve) => {
            arrived.changed = resolve;
            setTimeout(resolve, 50);
          });
        }
        assert.equal(arrived.records, disk.records, `cycle ${cycle}: more records than counted`);
        current(own.id); // A mover that was lost commits nothing.
        for (const piece of [...arrived.sweeps, ...arrived.deltas]) apply(images.get(disk.diskId)!, piece);
        tails.set(disk.diskId, {
          seq: tail.seq + 1,
          cycle,
          commitHash: randomBytes(16).toString("hex"),
          sourceLife: own.sourceLife,
        });
      }
      done.push({ diskId: disk.diskId, epoch, ...tails.get(disk.diskId)! });
    }
    const state = JSON.stringify([...tails].map(([diskId, tail]) => [diskId, tail.seq]));
    if (request.point && request.consistent && newestBarrier?.state !== state) {
      newestBarrier = { cycle, cutAtMs: request.cutAtMs, state };
      points += 1;
      onPoint?.({
        cycle,
        cutAtMs: request.cutAtMs,
        images: new Map([...images].map(([diskId, image]) => [diskId, Buffer.from(image)])),
      });
    }
    own.cycles.delete(cycle);
    if ((committedCycles.at(-1) ?? 0) < cycle) committedCycles.push(cycle);
    await onStep?.("committed");
    const barrier = request.point ? newestBarrier : undefined;
    return {
      committed: done.map(({ diskId, seq, commitHash }) => ({ diskId, epoch, seq, commitHash })),
      barrier: barrier !== undefined,
      barrierNumber: barrier?.cycle ?? 0,
      barrierCutAtMs: barrier?.cutAtMs ?? 0,
    };
  }
}

function apply(image: Buffer, piece: Piece): void {
  const at = piece.block * BLOCK_SIZE;
  if (piece.plain === undefined) image.fill(0, at, at + piece.blocks * BLOCK_SIZE);
  else piece.plain.copy(image, at);
}
