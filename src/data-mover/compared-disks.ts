/**
 * Comparing the disks of a stream: which commit each was compared with in which cycle, and the images that answer.
 *
 * The rule that makes "same" right (src/model/comparison.ts) is kept here: what was compared is compared with the newest commit, while no earlier cycle
 * is open, and `base` then holds the cycle's commit to it.
 */
import { splitRuns } from "#model/block-runs.ts";
import { type Comparison, PIECE_BLOCKS, SALT_BYTES, STRIPE_BLOCKS } from "#model/comparison.ts";
import { Fault } from "#model/fault.ts";
import { DIGEST_BYTES } from "#model/frame-record.ts";
import { blockCount } from "#model/units.ts";
import type { Random } from "#ports/random.ts";
import { compareRun, storedStripes } from "./compare-run.ts";
import type { DiskImage } from "./image.ts";
import type { MoverDisk } from "./mover-disk.ts";
import type { CompareRun } from "./mover-messages.ts";
import type { OpenCycles } from "./open-cycles.ts";

export interface ComparedDisks {
  /**
   * The disk is compared in this cycle. Answers the stripes in which the replica has data: of the others nothing need be asked.
   * Throws REFUSED while an earlier cycle is open, and what opening an image throws.
   */
  begin(disk: MoverDisk, cycle: number): Promise<Uint8Array>;
  run(disk: MoverDisk, request: CompareRun): Promise<Comparison>;
  /** Hash of the commit that the cycle's commit of this disk must follow; undefined when it was not compared. */
  base(cycle: number, diskId: string): string | undefined;
  /** The cycle is over, and so are those before it. */
  drop(cycle: number): void;
}

export function comparedDisks(cycles: Pick<OpenCycles, "before">, random: Random): ComparedDisks {
  const begun = new Map<string, { readonly cycle: number; readonly base: string; readonly image: DiskImage }>();

  const assertLast = (disk: MoverDisk, cycle: number): void => {
    const earlier = cycles.before(cycle);
    if (earlier.length === 0 && disk.data.cycle < cycle) return;
    throw new Fault(
      "REFUSED",
      `Disk "${disk.diskId}" cannot be compared in cycle ${cycle} while cycle ${earlier[0] ?? disk.data.cycle} is not behind it`,
      { hint: "It is swept without; nothing needs to be done." },
    );
  };

  return {
    async begin(disk, cycle) {
      assertLast(disk, cycle); // [compare last]
      const base = disk.data.commitHash;
      const image = await disk.image();
      assertLast(disk, cycle);
      if (disk.data.commitHash !== base) throw movedOn(disk.diskId, base, disk.data.commitHash);
      begun.set(disk.diskId, { cycle, base, image });
      return storedStripes(image);
    },
    async run(disk, { cycle, run, digests }) {
      const known = begun.get(disk.diskId);
      if (known?.cycle !== cycle)
        throw new Fault("REFUSED", `Disk "${disk.diskId}" is not being compared in cycle ${cycle}`);
      return compareRun(known.image, { run, digests, salt: random.bytes(SALT_BYTES) });
    },
    base(cycle, diskId) {
      const known = begun.get(diskId);
      return known?.cycle === cycle ? known.base : undefined;
    },
    drop(cycle) {
      for (const [diskId, known] of begun) if (known.cycle <= cycle) begun.delete(diskId);
    },
  };
}

/** What was compared was compared with something else than the cycle would be put on. */
export function movedOn(diskId: string, base: string, now: string): Fault {
  return new Fault(
    "REFUSED",
    `Disk "${diskId}" was compared with commit ${base}, and the branch has gone on to ${now} meanwhile`,
    { details: { diskId, base, now }, hint: "Nothing needs to be done: its blocks are compared again." },
  );
}

/** Throws PROTOCOL_INVALID for a run outside the disk or a stripe, or digests that do not fit it. */
export function checkCompareRun(disk: MoverDisk, { run, digests }: CompareRun): void {
  const inside = run.count >= 1 && run.count <= STRIPE_BLOCKS && run.start + run.count <= blockCount(disk.sizeBytes);
  if (inside && digests.length === [...splitRuns([run], PIECE_BLOCKS)].length * DIGEST_BYTES) return;
  throw new Fault(
    "PROTOCOL_INVALID",
    `${digests.length} bytes of digests for ${run.count} blocks from ${run.start} of disk "${disk.diskId}"`,
  );
}

/** As it travels: base64. */
export function comparisonToJson({ pieces, salt, marks }: Comparison) {
  return { pieces: base64(pieces), salt: base64(salt), marks: base64(marks) };
}

export function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64");
}
