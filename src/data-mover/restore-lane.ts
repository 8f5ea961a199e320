/**
 * Does the jobs of a restore: fetches a part of a container, opens and verifies its frames, writes them where they belong.
 *
 * Invariants:
 * - nothing is written before seal and digests of its frame hold; damage is read a second time before it is believed;
 * - memory is bounded by the job's stored bytes and one write;
 * - what lies beside each other on the disk goes down in one write, straight from where it was unpacked.
 */
import { writeSync } from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import { isFault } from "#model/fault.ts";
import { HEADER_BYTES } from "#model/format/header.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { type FrameDigests, imageContainer, type ImageContainer } from "./image-container.ts";
import type { Keyring } from "./keyring.ts";
import type { RestoreJob } from "./restore-plan.ts";

export interface LaneContext {
  readonly store: ObjectStore;
  readonly keyring: Pick<Keyring, "cipher" | "keyOf">;
  readonly storeId: string;
  readonly diskId: string;
}

/** A file of the size of the image. */
export interface LaneTarget {
  readonly fd: number;
  readonly sizeBytes: number;
}

export interface JobDone {
  readonly fetchedBytes: number;
  readonly requests: number;
}

/** Whatever lies between two frames that are wanted is fetched with them up to this size, rather than by another request. */
const GAP_BYTES = 256 << 10;
const WRITE_BYTES = 1 << 20;
const FRAME_BYTES_MOST = 64 * BLOCK_SIZE;
/** A lane takes turns with its sockets after so many bytes. */
const TURN_BYTES = 1 << 20;

/** Throws OBJECT_CORRUPT, OBJECT_MISSING, KEY_MISSING, STORE_…, and what `writeSync` throws. */
export async function runJob(
  job: RestoreJob,
  context: LaneContext,
  target: LaneTarget,
  signal?: AbortSignal,
): Promise<JobDone> {
  const { store, keyring } = context;
  const { key, indexBytes } = job.place;
  const container = imageContainer(job.place, { ...context, cipher: keyring.cipher, frameBase: 0 });
  const headBytes = HEADER_BYTES + indexBytes;
  const done = { fetchedBytes: 0, requests: 0 };
  const fetch = async (offset: number, length: number): Promise<Uint8Array> => {
    signal?.throwIfAborted();
    const data = await store.get(key, { range: { offset, length }, ...(signal !== undefined && { signal }) });
    done.requests++;
    done.fetchedBytes += data.length;
    return data;
  };

  const parts = partsOf(job, container);
  const [first] = parts;
  let digests: FrameDigests | undefined;
  const out = blockWriter(target);
  for (const part of parts) {
    // Whoever wants the beginning of the frames gets header and index with them.
    const withHead = part === first && part.offset - headBytes <= GAP_BYTES;
    const offset = withHead ? 0 : part.offset;
    const data = await fetch(offset, part.offset + part.length - offset);
    if (digests === undefined) digests = await digestsOf(container, withHead ? data : undefined);
    let since = 0;
    for (let run = part.from; run < part.to;) {
      const frame = job.frame[run]!;
      let end = run + 1;
      while (end < part.to && job.frame[end] === frame) end++;
      const range = container.rangeOf(frame, frame);
      const sealed = data.subarray(range.offset - offset, range.offset - offset + range.length);
      const open = async (target: Uint8Array): Promise<void> => {
        const known = digests!; // Set above.
        try {
          container.openInto(target, sealed, { frame, digests: known });
        } catch (error) {
          if (!isFault(error, "OBJECT_CORRUPT")) throw error;
          container.openInto(target, await fetch(range.offset, range.length), { frame, digests: known });
        }
      };
      await out.frame(container, { job, run, end, open });
      since += range.length;
      if (since >= TURN_BYTES) {
        since = 0;
        signal?.throwIfAborted();
        await nextTurn();
      }
      run = end;
    }
  }
  out.flush();
  return done;
}

interface Part {
  readonly offset: number;
  length: number;
  /** Runs of the job. */
  readonly from: number;
  to: number;
}

/** The ranges to fetch: frames that lie closer together than `GAP_BYTES` come with one request. */
function partsOf(job: RestoreJob, container: ImageContainer): Part[] {
  const parts: Part[] = [];
  for (let run = 0; run < job.frame.length; run++) {
    const frame = job.frame[run]!;
    const last = parts.at(-1);
    const { offset, length } = container.rangeOf(frame, frame);
    if (last !== undefined && offset - (last.offset + last.length) <= GAP_BYTES) {
      last.length = offset + length - last.offset;
      last.to = run + 1;
    } else {
      parts.push({ offset, length, from: run, to: run + 1 });
    }
  }
  return parts;
}

async function digestsOf(container: ImageContainer, data: Uint8Array | undefined): Promise<FrameDigests> {
  try {
    return data === undefined ? await container.loadDigests() : container.digestsFrom(data);
  } catch (error) {
    if (!isFault(error, "OBJECT_CORRUPT")) throw error;
    return container.loadDigests();
  }
}

/** Frames that continue each other on the disk are unpacked side by side and written together. */
function blockWriter(target: LaneTarget) {
  const batch = new Uint8Array(WRITE_BYTES);
  const scratch = new Uint8Array(FRAME_BYTES_MOST);
  let at = 0; // Byte on the disk where the batch begins.
  let used = 0;
  const flush = (): void => {
    if (used > 0) writeAll(target, batch.subarray(0, used), at);
    used = 0;
  };
  return {
    flush,
    async frame(
      container: ImageContainer,
      what: {
        readonly job: RestoreJob;
        readonly run: number;
        readonly end: number;
        readonly open: (target: Uint8Array) => Promise<void>;
      },
    ): Promise<void> {
      const { job, run, end, open } = what;
      const frame = job.frame[run]!;
      const block = container.place.directory.block[frame]!;
      const blocks = container.place.directory.blocks[frame]!;
      const bytes = blocks * BLOCK_SIZE;
      if (job.start[run] === block && job.length[run] === blocks) {
        if (used > 0 && (at + used !== block * BLOCK_SIZE || used + bytes > batch.length)) flush();
        if (used === 0) at = block * BLOCK_SIZE;
        await open(batch.subarray(used, used + bytes));
        used += bytes;
        return;
      }
      const plain = scratch.subarray(0, bytes);
      await open(plain);
      for (let part = run; part < end; part++) {
        const from = (job.start[part]! - block) * BLOCK_SIZE;
        writeAll(target, plain.subarray(from, from + job.length[part]! * BLOCK_SIZE), job.start[part]! * BLOCK_SIZE);
      }
    },
  };
}

/** The last block of a disk may be partial; what is stored of it is padded. */
function writeAll({ fd, sizeBytes }: LaneTarget, data: Uint8Array, offset: number): void {
  const length = Math.min(data.length, sizeBytes - offset);
  for (let written = 0; written < length;) written += writeSync(fd, data, written, length - written, offset + written);
}
