/**
 * The commit log's view of containers: how it seals a fence, and what it must know of a commit that it finds.
 */
import type { Random } from "#ports/random.ts";
import { formatContainerId, FLAG_APP_CONSISTENT, FLAG_POINT_CLEAN, HEADER_BYTES } from "#model/format/header.ts";
import { corrupt } from "#model/format/fields.ts";
import type { CommitCodec } from "./commit-codec.ts";
import { openHead } from "./container-reader.ts";
import { containerWriter, FENCE_BUFFER_BYTES } from "./container-writer.ts";
import type { Keyring } from "./keyring.ts";

/** Most commits of a few seconds have an index smaller than this; a larger one costs a second read. */
const FIRST_READ_BYTES = 64 << 10;

export interface DiskShape {
  readonly sizeBytes: number;
  readonly sectorBytes: number;
}

export function containerCodec(options: {
  readonly storeId: string;
  readonly diskId: string;
  readonly keyring: Keyring;
  readonly random: Random;
  /** Wall clock, ms; for people who look at a fence, decides nothing. */
  readonly now: () => number;
  /** What a fence says of the disk: the newest that is known. */
  readonly shape: () => DiskShape;
}): CommitCodec {
  const { storeId, diskId, keyring } = options;
  return {
    firstReadBytes: FIRST_READ_BYTES,
    async sealFence(place) {
      const writer = containerWriter({
        buffer: new Uint8Array(FENCE_BUFFER_BYTES),
        kind: "fence",
        cipher: keyring.cipher,
        dataKey: await keyring.current(),
        storeId,
        diskId,
        // No frame of a fence is ever referred to, so all fences of a term may share this number.
        containerId: formatContainerId({ role: "writer", term: place.epoch, counter: 0 }),
        random: options.random,
      });
      const now = options.now();
      const { sizeBytes, sectorBytes } = options.shape();
      const times = { firstWriteMs: now, cutMs: now, rawCutMs: now };
      const details = { cycle: 0, cycleDisks: 0, flags: 0, ...times, diskSizeBytes: sizeBytes, sectorBytes };
      const sealed = writer.finish(place, details);
      return { body: sealed.bytes, commitHash: sealed.commitHash };
    },
    inspect(prefix) {
      const head = openHead(prefix, keyring);
      if ("needBytes" in head) return head;
      const { header, commitHash } = head;
      if (header.storeId !== storeId) throw corrupt("Header", `the object belongs to store "${header.storeId}"`);
      if (header.kind !== "journal" && header.kind !== "fence")
        throw corrupt("Header", `a ${header.kind} is not a commit`);
      return {
        kind: header.kind,
        diskId: header.diskId,
        branch: header.branchId,
        epoch: header.epoch,
        seq: header.seq,
        cycle: header.cycle,
        cutAtMs: header.cutMs,
        point: (header.flags & FLAG_POINT_CLEAN) !== 0,
        consistency: (header.flags & FLAG_APP_CONSISTENT) !== 0 ? "app" : "crash",
        ...(header.cycleDisks > 0 && { cycleDisks: header.cycleDisks }),
        chain: Buffer.from(header.chain).toString("hex"),
        commitHash,
        writerId: header.writerId,
      };
    },
  };
}

/** Bytes from the start of an object that hold header and index, once the header is known. */
export function headBytesOf(header: { readonly indexBytes: number }): number {
  return HEADER_BYTES + header.indexBytes;
}
