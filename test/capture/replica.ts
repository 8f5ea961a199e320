/** An agent, a process server and a store in fifty lines: cuts several disks together, reads them out late, keeps replicas, judges points. */
import assert from "node:assert/strict";
import { isFault } from "#model/fault.ts";
import type { Fault } from "#model/fault.ts";
import type { BlockRun } from "#model/block-set.ts";
import { BLOCK_SIZE } from "#model/units.ts";

/** What the replica needs of a disk that is tracked: a tap over its socket, or a capture device in this process. */
export interface Tracked {
  hold(cutId: number): Promise<void>;
  mark(cutId: number): Promise<void>;
  release(cutId: number): Promise<boolean>;
  cutExtents(cutId: number): Promise<readonly BlockRun[]>;
  readCut(cutId: number, runs: readonly BlockRun[]): Promise<Uint8Array>;
  shipped(cutId: number): Promise<void>;
  committed(cutId: number, swept: readonly BlockRun[]): Promise<void>;
  discard(cutId: number): Promise<void>;
  unsynced(): Promise<readonly BlockRun[]>;
  readLive(runs: readonly BlockRun[]): Promise<Uint8Array>;
}

interface Piece {
  readonly runs: readonly BlockRun[];
  readonly bytes: Uint8Array;
}

export interface OpenCycle {
  readonly cutId: number;
  readonly after: number;
  readonly before: number;
  readonly swept: readonly (readonly Piece[])[];
  /** The sweep had nothing to do when the cycle began. */
  readonly wasSynced: boolean;
  readonly held: boolean;
}

export interface ReadCycle extends OpenCycle {
  readonly deltas: readonly (readonly Piece[])[];
}

const READ_BLOCKS = 64;

/**
 * Sweeps a part of what is unsynced, then cuts all disks at one moment, each message `pause` later than it need be. Undefined when the
 * cut came to nothing; it is discarded then.
 */
export async function cutTogether(
  disks: readonly Tracked[],
  cutId: number,
  now: () => number,
  sweepBlocks: number,
  pause: () => Promise<void>,
): Promise<OpenCycle | undefined> {
  const swept: Piece[][] = [];
  let wasSynced = true;
  for (const disk of disks) {
    const unsynced = await disk.unsynced();
    if (unsynced.length > 0) wasSynced = false;
    swept.push(await readAll(firstBlocks(unsynced, sweepBlocks), (runs) => disk.readLive(runs)));
  }
  const after = now();
  try {
    const late = async <T>(action: (disk: Tracked) => Promise<T>): Promise<T[]> =>
      Promise.all(
        disks.map(async (disk) => {
          await pause();
          return action(disk);
        }),
      );
    await late((disk) => disk.hold(cutId));
    await late((disk) => disk.mark(cutId));
    const before = now();
    const held = (await late((disk) => disk.release(cutId))).every(Boolean);
    return { cutId, after, before, swept, wasSynced, held };
  } catch (error) {
    if (!isFault(error)) throw error;
    await discardAll(disks, cutId);
    return undefined;
  }
}

/** Reads the cut out; undefined (and discarded) when a tap lost it. */
export async function readOut(
  disks: readonly Tracked[],
  cycle: OpenCycle,
  pause: () => Promise<void>,
  lost: (fault: Fault) => void = () => undefined,
): Promise<ReadCycle | undefined> {
  try {
    const deltas = await Promise.all(
      disks.map(async (disk) => {
        const pieces = await readAll(await disk.cutExtents(cycle.cutId), async (runs) => {
          await pause();
          return disk.readCut(cycle.cutId, runs);
        });
        await disk.shipped(cycle.cutId);
        return pieces;
      }),
    );
    return { ...cycle, deltas };
  } catch (error) {
    if (!isFault(error)) throw error;
    lost(error);
    await discardAll(disks, cycle.cutId);
    return undefined;
  }
}

/** The commit: the sweep, then what the cut says. What a tap has forgotten meanwhile it sweeps again. */
export async function commit(disks: readonly Tracked[], cycle: ReadCycle, replicas: readonly Buffer[]): Promise<void> {
  for (const [index, replica] of replicas.entries()) {
    for (const piece of [...cycle.swept[index]!, ...cycle.deltas[index]!]) apply(replica, piece);
  }
  await Promise.all(
    disks.map(async (disk, index) => {
      try {
        await disk.committed(
          cycle.cutId,
          cycle.swept[index]!.flatMap((piece) => piece.runs),
        );
      } catch (error) {
        assert.ok(isFault(error, "NOT_FOUND") || isFault(error, "PEER_UNREACHABLE"), String(error));
      }
    }),
  );
}

export async function discardAll(disks: readonly Tracked[], cutId: number): Promise<void> {
  for (const disk of disks) {
    try {
      await disk.discard(cutId);
    } catch (error) {
      assert.ok(isFault(error, "PEER_UNREACHABLE"), String(error)); // A dead tap has forgotten it.
    }
  }
}

async function readAll(
  runs: readonly BlockRun[],
  read: (runs: readonly BlockRun[]) => Promise<Uint8Array>,
): Promise<Piece[]> {
  const pieces: Piece[] = [];
  let some: BlockRun[] = [];
  let blocks = 0;
  const finish = async (): Promise<void> => {
    if (some.length > 0) pieces.push({ runs: some, bytes: await read(some) });
    some = [];
    blocks = 0;
  };
  for (const run of runs) {
    for (let at = 0; at < run.count;) {
      const count = Math.min(run.count - at, READ_BLOCKS - blocks);
      some.push({ start: run.start + at, count });
      at += count;
      blocks += count;
      if (blocks === READ_BLOCKS) await finish();
    }
  }
  await finish();
  return pieces;
}

function apply(replica: Buffer, piece: Piece): void {
  let at = 0;
  for (const run of piece.runs) {
    const bytes = run.count * BLOCK_SIZE;
    replica.set(
      piece.bytes.subarray(at, at + Math.min(bytes, replica.length - run.start * BLOCK_SIZE)),
      run.start * BLOCK_SIZE,
    );
    at += bytes;
  }
}

function firstBlocks(runs: readonly BlockRun[], limit: number): BlockRun[] {
  const some: BlockRun[] = [];
  let left = limit;
  for (const run of runs) {
    if (left === 0) break;
    const count = Math.min(run.count, left);
    some.push({ start: run.start, count });
    left -= count;
  }
  return some;
}
