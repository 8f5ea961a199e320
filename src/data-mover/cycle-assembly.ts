/**
 * One disk's part of one cycle, from frame records to the commit's bytes.
 *
 * Records are sealed into a container as they come. A cycle that stays small is one journal object: data and commit at once. When
 * the container is full it becomes a segment, is uploaded beside the receiving, and the next one is begun; whatever is last becomes the
 * journal object and names the segments. Which record answers for a block (a delta over a sweep, later over earlier) is
 * settled when the commit is sealed, over all its containers.
 *
 * Invariants:
 * - records of one assembly are taken one payload at a time, whichever connection they came on;
 * - the commit is sealed only after every segment that it names is stored;
 * - a sealed container's bytes stay as they are until the store has them: a repeated PUT repeats the same bytes.
 */
import { Fault } from "#model/fault.ts";
import { KIND_SWEEP, readFrameRecords } from "#model/frame-record.ts";
import { BLOCK_SIZE, blockCount } from "#model/units.ts";
import type { CommitPlace, SealedCommit } from "./commit-codec.ts";
import type { CommitDetails, ContainerWriter, SealedSegment } from "./container-writer.ts";

/** What an assembly needs of its disk and its mover. */
export interface AssemblyHome {
  readonly diskId: string;
  readonly sizeBytes: number;
  /** An empty container, with a buffer from the pool. */
  beginContainer(): Promise<OpenContainer>;
  /** Seal and store; resolves to what the commit needs to know. Waits for its turn before it returns the upload. */
  beginSegment(
    container: OpenContainer,
    cycle: number,
    signal: AbortSignal,
  ): Promise<{ readonly stored: Promise<SealedSegment> }>;
}

export interface OpenContainer {
  readonly writer: ContainerWriter;
  /** Give the buffer back; nothing of the container may be used after. */
  release(): void;
}

export interface CycleAssembly {
  readonly cycle: number;
  /** Records taken so far. */
  readonly records: number;
  /** Plain bytes of sweep records taken so far. */
  readonly sweptBytes: number;
  /** Bytes of the objects, so far as they are known. */
  readonly containerBytes: number;
  /** Take a payload of records; settles when it is sealed away. Throws PROTOCOL_INVALID; rejects when abandoned. */
  receive(payload: Uint8Array): Promise<void>;
  /** Settles once `count` records were taken, and every full container is stored. Throws PROTOCOL_INVALID when more came. */
  complete(count: number): Promise<void>;
  /** The commit's bytes for a place; after `complete`. */
  seal(
    place: CommitPlace,
    details: Omit<CommitDetails, "segments" | "firstWriteMs" | "diskSizeBytes" | "sectorBytes">,
  ): SealedCommit & { readonly extents: number };
  /** Take nothing more, stop uploading. At once; what was received stays until `release`, for its commit may be on its way. */
  abort(reason: Fault): void;
  /** Give back the buffers; the caller knows that no commit of it is on its way. */
  release(): Promise<void>;
}

export function cycleAssembly(
  home: AssemblyHome,
  options: { readonly cycle: number; readonly sectorBytes: number; readonly now: () => number },
): CycleAssembly {
  const { cycle, now } = options;
  const diskBlocks = blockCount(home.sizeBytes);
  const abort = new AbortController();
  const segments: Promise<SealedSegment>[] = [];
  let stored: SealedSegment[] | undefined;
  let current: OpenContainer | undefined;
  let records = 0;
  let sweptBytes = 0;
  let segmentBytes = 0;
  let firstWriteMs = 0;
  let tail = Promise.resolve();
  let arrived = (): void => undefined;

  /** A container in which a record with `storedBytes` has room. */
  const containerFor = async (storedBytes: number): Promise<OpenContainer> => {
    if (current && !current.writer.fits(storedBytes)) {
      const { stored: upload } = await home.beginSegment(current, cycle, abort.signal);
      segmentBytes += current.writer.bodyBytes;
      upload.catch(() => undefined); // `complete` has the error; the source may never get there.
      segments.push(upload);
      current = undefined;
    }
    current ??= await home.beginContainer();
    return current;
  };

  const take = async (payload: Uint8Array): Promise<void> => {
    abort.signal.throwIfAborted();
    if (records === 0) firstWriteMs = now();
    for (const record of readFrameRecords(payload)) {
      if (record.block + record.blocks > diskBlocks) {
        throw new Fault(
          "PROTOCOL_INVALID",
          `A record of disk "${home.diskId}" reaches to block ${record.block + record.blocks} of ${diskBlocks}`,
        );
      }
      const container = current?.writer.fits(record.stored.length) ? current : await containerFor(record.stored.length);
      abort.signal.throwIfAborted();
      container.writer.append(record);
      records++;
      if (record.kind === KIND_SWEEP) sweptBytes += record.blocks * BLOCK_SIZE;
    }
    arrived();
  };

  return {
    cycle,
    get records() {
      return records;
    },
    get sweptBytes() {
      return sweptBytes;
    },
    get containerBytes() {
      return segmentBytes + (current?.writer.bodyBytes ?? 0);
    },
    receive(payload) {
      const done = tail.then(() => take(payload));
      tail = done.catch(() => undefined); // The sender's link ends with the error; what comes behind must not wait for ever.
      return done;
    },
    async complete(count) {
      while (records < count) {
        await new Promise<void>((resolve) => {
          arrived = resolve;
          abort.signal.addEventListener("abort", () => resolve(), { once: true });
        });
        abort.signal.throwIfAborted();
      }
      if (records > count) {
        throw new Fault(
          "PROTOCOL_INVALID",
          `Cycle ${cycle} of disk "${home.diskId}" has ${records} records, and its commit counts ${count}`,
        );
      }
      await tail;
      stored = await Promise.all(segments);
    },
    seal(place, details) {
      if (!stored || !current) throw new RangeError(`Cycle ${cycle} of disk "${home.diskId}" is not complete`);
      const sealed = current.writer.finish(place, {
        ...details,
        firstWriteMs,
        diskSizeBytes: home.sizeBytes,
        sectorBytes: options.sectorBytes,
        segments: stored,
      });
      return { body: sealed.bytes, commitHash: sealed.commitHash, extents: sealed.header.extentCount };
    },
    abort(reason) {
      abort.abort(reason);
      arrived();
    },
    async release() {
      abort.abort(new Fault("INTERRUPTED", `Cycle ${cycle} of disk "${home.diskId}" is over`));
      arrived();
      await tail;
      await Promise.allSettled(segments);
      current?.release();
      current = undefined;
    },
  };
}
