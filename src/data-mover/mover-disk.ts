/**
 * One disk that the mover writes: its place in the commit log, and the containers of its cycles.
 *
 * A writer of the commit log is done after its first failure, for its last commit may have landed or not. `commit` then opens the disk
 * again and looks: the cycle number in the newest commit says whether it did. The frames need not come again, for a sealed
 * container may be part of a commit of any later epoch of ours.
 */
import { Fault, isFault } from "#model/fault.ts";
import { formatContainerId, parseContainerId } from "#model/format/header.ts";
import type { Anchoring } from "./anchoring.ts";
import { fencedBy, readHighestClaim, readNewerClaim } from "./claims.ts";
import { openWriter, type DiskWriter } from "./commit-log.ts";
import type { ContainerBuffers } from "./container-buffers.ts";
import { containerWriter, type CommitDetails, type SealedSegment } from "./container-writer.ts";
import type { DataPosition } from "./counting.ts";
import { movedOn } from "./compared-disks.ts";
import { cycleAssembly, type AssemblyHome, type CycleAssembly, type OpenContainer } from "./cycle-assembly.ts";
import { openImage, type DiskImage } from "./image.ts";
import type { OpenedDisk } from "./mover-store.ts";
import { uploadSegment, type Slots } from "./segment-upload.ts";

export interface MoverDisk {
  readonly diskId: string;
  readonly sizeBytes: number;
  /** Newest commit with data. Throws RangeError before the first `open`. */
  readonly data: DataPosition;
  /** The same, undefined before the first `open`. */
  readonly lastData: DataPosition | undefined;
  /** Epoch of the newest claim of ours. */
  readonly epoch: number;
  /** Become (or stay) the writer of `branch` for `site`, and for one life of its process server. Throws FENCED, STORE_…. */
  open(request: DiskOpen): Promise<void>;
  /** Throws FENCED when somebody newer has claimed the disk: a cut in which it was idle has not looked. */
  assertNewest(): Promise<void>;
  begin(cycle: number): CycleAssembly;
  /**
   * The disk as of `data`, kept until it moves on, or until `dropImage`. Throws what `openImage` throws.
   */
  image(): Promise<DiskImage>;
  dropImage(): void;
  /** Throws REFUSED when the newest commit with data is another than `base`, FENCED when somebody newer has claimed the disk. */
  assertStillAt(base: string): Promise<void>;
  /** Make a complete assembly durable; finds out when it is already. Keeps trying until `giveUpAtMs` (monotonic). */
  commit(assembly: CycleAssembly, request: DiskCommit): Promise<DataPosition>;
  /** What the store did to the last segment that failed; undefined once one was stored. */
  readonly trouble: Fault | undefined;
  /** Bytes of objects stored since the process started. */
  readonly storedBytes: number;
}

export interface DiskOpen {
  readonly site: string;
  readonly branch: string;
  /** 8 hex digits. */
  readonly sourceLife: string;
}

export interface DiskCommit {
  readonly cutAtMs: number;
  readonly giveUpAtMs: number;
  /** The commit that this one must follow: blocks that it leaves out were compared with it. Else REFUSED. */
  readonly base?: string | undefined;
  readonly details: Omit<CommitDetails, "segments" | "firstWriteMs" | "diskSizeBytes" | "sectorBytes">;
}

export interface MoverDiskDeps {
  readonly buffers: ContainerBuffers;
  /** Of the whole mover. */
  readonly uploads: Slots;
  /** This process, for people. */
  readonly holder: string;
  readonly onTrouble: (fault: Fault) => void;
  /** Hears of each commit. Without: the disk gets no anchors from this process. */
  readonly anchoring?: Anchoring;
}

const RETRY_PAUSE_MS = 500;

export function moverDisk(disk: OpenedDisk, deps: MoverDiskDeps): MoverDisk {
  const { context, keyring, shape } = disk;
  const { clock, random } = context;
  let wanted: DiskOpen | undefined;
  let writer: DiskWriter | undefined;
  /** Numbers for containers: unique as long as the epoch is ours alone, which it stays when the writer is done. */
  let numbering:
    { readonly branch: string; readonly epoch: number; readonly writerId: string; next: number } | undefined;
  let data: DataPosition | undefined;
  let trouble: Fault | undefined;
  let storedBytes = 0;
  let held: { readonly branch: string; readonly commitHash: string; readonly image: Promise<DiskImage> } | undefined;

  const ready = async (): Promise<DiskWriter> => {
    if (writer) return writer;
    if (!wanted) throw new RangeError(`Disk "${disk.diskId}" was never opened`);
    await keyring.refresh(); // The tail may be sealed with a key that another process made.
    const opened = await openWriter(context, { ...wanted, holder: deps.holder, operation: "stream" });
    numbering = { branch: opened.branch, epoch: opened.epoch, writerId: opened.writerId, next: 1 };
    data = opened.data;
    writer = opened;
    return opened;
  };

  /** A slot that was taken by a newer epoch does not say whose it is; the claims do, and that makes all the difference to the source. */
  const assertNotMoved = async (): Promise<void> => {
    const highest = await readHighestClaim(context);
    if (!wanted || !numbering || (highest.activeSite === wanted.site && highest.branch === wanted.branch)) return;
    throw fencedBy(context, highest, { ...wanted, epoch: numbering.epoch });
  };

  const failed = (fault: Fault): void => {
    trouble = fault;
    deps.onTrouble(fault);
  };

  const home: AssemblyHome = {
    diskId: disk.diskId,
    sizeBytes: shape.sizeBytes,
    async beginContainer(): Promise<OpenContainer> {
      const dataKey = await keyring.current();
      if (!numbering) throw new RangeError(`Disk "${disk.diskId}" is not open`);
      const buffer = deps.buffers.take();
      const containerId = formatContainerId({ role: "writer", term: numbering.epoch, counter: numbering.next++ });
      const made = containerWriter({
        buffer,
        kind: "journal",
        cipher: keyring.cipher,
        dataKey,
        storeId: disk.storeId,
        diskId: disk.diskId,
        containerId,
        random,
      });
      let held = true;
      return {
        writer: made,
        release() {
          if (held) deps.buffers.give(buffer);
          held = false;
        },
      };
    },
    async beginSegment(container, cycle, signal) {
      const giveBack = await deps.uploads.acquire(signal);
      return { stored: storeSegment(container, cycle, signal).finally(giveBack) };
    },
  };

  const storeSegment = async (container: OpenContainer, cycle: number, signal: AbortSignal): Promise<SealedSegment> => {
    try {
      if (!numbering) throw new RangeError(`Disk "${disk.diskId}" is not open`);
      const now = clock.now();
      const { segment, bytes } = container.writer.finishSegment(numbering, {
        cycle,
        cycleDisks: 0,
        flags: 0,
        firstWriteMs: now,
        cutMs: now,
        rawCutMs: now,
        diskSizeBytes: shape.sizeBytes,
        sectorBytes: shape.sectorBytes,
      });
      const id = parseContainerId(container.writer.containerId);
      if (!id) throw new RangeError(`Container id "${container.writer.containerId}"`);
      await uploadSegment(context, {
        key: context.names.segment(id.term, id.counter),
        bytes,
        signal,
        onTrouble: failed,
      });
      trouble = undefined;
      storedBytes += bytes.length;
      return segment;
    } finally {
      container.release();
    }
  };

  const assertAt = (now: DataPosition, base: string | undefined): void => {
    if (base !== undefined && now.commitHash !== base) throw movedOn(disk.diskId, base, now.commitHash);
  };

  const self: MoverDisk = {
    diskId: disk.diskId,
    sizeBytes: shape.sizeBytes,
    get data() {
      if (!data) throw new RangeError(`Disk "${disk.diskId}" is not open`);
      return data;
    },
    get lastData() {
      return data;
    },
    get epoch() {
      return numbering?.epoch ?? 0;
    },
    async open(request) {
      const { site, branch, sourceLife } = request;
      if (wanted?.site !== site || wanted.branch !== branch || wanted.sourceLife !== sourceLife) writer = undefined;
      wanted = request;
      // A link that flaps must not take a new epoch each time: a writer that is still the newest goes on.
      if (writer && (await readNewerClaim(context, writer.epoch)) !== undefined) writer = undefined;
      await ready();
    },
    async assertNewest() {
      try {
        await (await ready()).assertNewest();
      } catch (error) {
        writer = undefined;
        if (isFault(error, "FENCED")) await assertNotMoved();
        throw error;
      }
    },
    image() {
      const { branch, seq, commitHash } = { branch: numbering?.branch ?? "", ...self.data };
      if (held?.branch === branch && held.commitHash === commitHash) return held.image;
      const image = openImage(context, { branch, seq, commitHash, keyring, storeId: disk.storeId });
      const mine = { branch, commitHash, image };
      held = mine;
      image.catch(() => {
        if (held === mine) held = undefined; // Its caller has the error; the next one opens it anew.
      });
      return image;
    },
    dropImage() {
      held = undefined;
    },
    async assertStillAt(base) {
      await self.assertNewest();
      assertAt(self.data, base);
    },
    begin: (cycle) => cycleAssembly(home, { cycle, sectorBytes: shape.sectorBytes, now: () => clock.now() }),
    async commit(assembly, request) {
      for (;;) {
        try {
          const current = await ready();
          if (current.data.cycle >= assembly.cycle) return current.data;
          assertAt(current.data, request.base); // [compare base]
          let [bytes, extents] = [0, 0];
          data = await current.commit({
            cycle: assembly.cycle,
            cutAtMs: request.cutAtMs,
            seal(place) {
              const sealed = assembly.seal(place, request.details);
              bytes = sealed.body.length;
              extents = sealed.extents;
              return sealed;
            },
          });
          storedBytes += bytes;
          trouble = undefined;
          deps.anchoring?.committed({ branch: current.branch, seq: data.seq, commitHash: data.commitHash }, extents);
          return data;
        } catch (error) {
          writer = undefined;
          if (!isFault(error)) throw error;
          if (error.code === "FENCED") await assertNotMoved();
          failed(error);
          // A key that is missing may only be new: whoever took our slot made it.
          if ((!error.retryable && error.code !== "KEY_MISSING") || clock.monotonic() >= request.giveUpAtMs)
            throw error;
        }
        await clock.sleep(RETRY_PAUSE_MS);
      }
    },
    get trouble() {
      return trouble;
    },
    get storedBytes() {
      return storedBytes;
    },
  };
  return self;
}
