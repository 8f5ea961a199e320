/**
 * What was swept in cycles that are not committed yet, per disk of a group.
 *
 * The tap keeps a block unsynced until its cycle is committed; meanwhile it must not be swept again. A sweep belongs to one life of the
 * tap's tracker: in another life it counts for nothing.
 *
 * Invariant: `sweptBytes`, taken from the tap's unsynced bytes, never leaves less than there is, or a cycle would pass for a point too early. So a
 * sweep does not count from the moment on in which the tap is told that its cycle is committed, for the tap's figure may or may not know yet.
 */
import { countBlocks } from "#model/block-runs.ts";
import type { BlockRun } from "#model/block-set.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { TapDiskStatus } from "../capture/tap/tap-protocol.ts";

export interface OpenCycles {
  /** A sweep begins. */
  begin(status: TapDiskStatus, cycle: number): void;
  /** It has swept this. Nothing is noted when its cycle was closed meanwhile, for then these blocks are in no commit. */
  add(status: TapDiskStatus, cycle: number, runs: readonly BlockRun[]): void;
  /** Swept in `cycle`. */
  swept(status: TapDiskStatus, cycle: number): readonly BlockRun[];
  /** Swept in any open cycle. */
  allSwept(status: TapDiskStatus): readonly (readonly BlockRun[])[];
  /** Of it, what the tap's unsynced bytes surely still contain. */
  sweptBytes(status: TapDiskStatus): number;
  cycles(diskId: string): readonly number[];
  /** The tap is being told that the cycle is committed. */
  closing(diskId: string, cycle: number): void;
  /** The cycle is committed or discarded. */
  close(diskId: string, cycle: number): void;
  closeAll(diskId: string): void;
}

interface Sweep {
  readonly diskId: string;
  readonly life: string;
  readonly cycle: number;
  readonly runs: BlockRun[];
  closing: boolean;
}

export function createOpenCycles(): OpenCycles {
  let sweeps: Sweep[] = [];
  const inLife = (status: TapDiskStatus): Sweep[] =>
    sweeps.filter((sweep) => sweep.diskId === status.diskId && sweep.life === lifeOf(status));

  return {
    begin(status, cycle) {
      if (inLife(status).some((sweep) => sweep.cycle === cycle)) return;
      sweeps.push({ diskId: status.diskId, life: lifeOf(status), cycle, runs: [], closing: false });
    },
    add(status, cycle, runs) {
      const open = inLife(status).find((sweep) => sweep.cycle === cycle);
      for (const run of runs) open?.runs.push(run);
    },
    swept: (status, cycle) => inLife(status).find((sweep) => sweep.cycle === cycle)?.runs ?? [],
    allSwept: (status) => inLife(status).map((sweep) => sweep.runs),
    sweptBytes: (status) =>
      inLife(status)
        .filter((sweep) => !sweep.closing)
        .reduce((sum, sweep) => sum + countBlocks(sweep.runs), 0) * BLOCK_SIZE,
    cycles: (diskId) => sweeps.filter((sweep) => sweep.diskId === diskId).map((sweep) => sweep.cycle),
    closing(diskId, cycle) {
      for (const sweep of sweeps) if (sweep.diskId === diskId && sweep.cycle === cycle) sweep.closing = true;
    },
    close(diskId, cycle) {
      sweeps = sweeps.filter((sweep) => sweep.diskId !== diskId || sweep.cycle !== cycle);
    },
    closeAll(diskId) {
      sweeps = sweeps.filter((sweep) => sweep.diskId !== diskId);
    },
  };
}

function lifeOf(status: TapDiskStatus): string {
  return `${status.tracker.bootId}/${status.tracker.generation}`;
}
