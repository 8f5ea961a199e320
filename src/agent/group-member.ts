/**
 * This machine's part in the cycles of its groups: what the process server's calls do to the tap.
 *
 * Invariants:
 * - a block leaves `unsynced` only by `committed` of the cycle it was swept in, a dirty block only by `committed` of its cut: whatever else
 *   happens (a lost connection, another process server, a restart of the agent), it is shipped again;
 * - `sweep` returns after its last frame has arrived, so the cut that follows overrides what it read.
 *
 * It keeps nothing on disk. What it forgets in a crash is what it swept in open cycles, and for whom cycles are open: that is swept and cut again.
 */
import { countBlocks, subtractRuns } from "#model/block-runs.ts";
import { Fault, isFault } from "#model/fault.ts";
import type { FrameTools } from "#model/frame-packer.ts";
import { BLOCK_SIZE, blockCount } from "#model/units.ts";
import type { Clock } from "#ports/clock.ts";
import type { AgentDisk, GroupTask, ReleaseResult, Settlement, ShipResult, SweepResult } from "#ports/source-link.ts";
import type { TapClient } from "../capture/tap/tap-client.ts";
import type { TapDiskStatus } from "../capture/tap/tap-protocol.ts";
import { createCycleOwners } from "./cycle-owners.ts";
import { createOpenCycles } from "./open-cycles.ts";
import { shipCut } from "./ship-cut.ts";
import { sweepDisk } from "./sweep.ts";
import type { SweepLane } from "./sweep-lane.ts";
import type { TappedDisk, TappedDisks } from "./tapped-disks.ts";

export interface GroupMember {
  /** The group's disks as they are now; with `fresh`, a new period of `holdMsMax` begins. Never throws for a single disk. */
  disks(groupId: string, options?: { readonly fresh?: boolean }): Promise<readonly AgentDisk[]>;
  /** Sweeps for at most `boundMs`, or until `stop`. `stored`: by disk, the stripes to compare with the replica. Throws SOURCE_READ_FAILED, PEER_UNREACHABLE. */
  sweep(
    request: OwnedCycle & { readonly boundMs: number; readonly stored: ReadonlyMap<string, Uint8Array> },
    lanes: readonly Pick<SweepLane, "run">[],
    stop: AbortSignal,
  ): Promise<SweepResult>;
  hold(request: CycleRequest & { readonly boundMs: number }): Promise<void>;
  mark(request: OwnedCycle): Promise<void>;
  release(request: CycleRequest): Promise<ReleaseResult>;
  /** `send` takes the frames of one disk. Throws CUT_OVERFLOWED, NOT_FOUND. */
  ship(request: CycleRequest, send: (diskId: string, payload: Uint8Array) => Promise<void>): Promise<ShipResult>;
  committed(request: CycleRequest): Promise<void>;
  discard(request: CycleRequest): Promise<void>;
  /** A void cut is taken back; what was swept in the cycle stays so. */
  unmark(request: CycleRequest): Promise<void>;
  settle(settlement: Settlement): Promise<void>;
  /** Compare everything again. */
  resync(groupId: string, diskId: string, reason: string): Promise<void>;
  /** The process server is gone: nothing stays held for it. */
  releaseAll(): Promise<void>;
  setTasks(tasks: readonly GroupTask[]): void;
}

export interface CycleRequest {
  readonly groupId: string;
  readonly cycle: number;
}

/** `life`: of the process server that makes the cycle; another one may give the same number. */
export interface OwnedCycle extends CycleRequest {
  readonly life: string;
}

export function createGroupMember(options: {
  readonly disks: TappedDisks;
  /** The connected tap. Throws PROCESS_DIED while there is none. */
  readonly tap: () => TapClient;
  readonly tools: FrameTools;
  readonly clock: Clock;
}): GroupMember {
  const { disks: tapped, tap, tools, clock } = options;
  const open = createOpenCycles();
  const owners = createCycleOwners();
  const held = new Map<string, number>();
  let tasks: readonly GroupTask[] = [];

  return {
    setTasks(next) {
      tasks = next;
    },
    async disks(groupId, { fresh = false } = {}) {
      let statuses: readonly TapDiskStatus[] = [];
      let down: Fault | undefined;
      try {
        statuses = fresh ? await tap().report() : await tap().disks();
      } catch (error) {
        if (!isFault(error)) throw error;
        down = error;
      }
      return tapped.ofGroup(groupId, statuses).map((disk) => describe(disk, down));
    },
    async sweep({ groupId, cycle, life, boundMs, stored }, lanes, stop) {
      owners.set(groupId, cycle, life);
      const deadline = clock.monotonic() + boundMs;
      const timeUp = new AbortController();
      const timer = setTimeout(() => timeUp.abort(), boundMs);
      try {
        const results = [];
        for (const status of await statusesOf(groupId)) {
          const { diskId, image, sizeBytes } = status;
          // Looked at before the tap is asked: a cycle committed meanwhile is then missing from both, not from neither.
          const swept = open.allSwept(status);
          const runs = subtractRuns(await tap().unsynced(diskId), swept, blockCount(sizeBytes));
          if (runs.length === 0 || clock.monotonic() >= deadline || stop.aborted) continue;
          const request = {
            ...{ groupId, diskId, cycle, image, sizeBytes, runs },
            compress: compresses(groupId),
            stored: stored.get(diskId),
          };
          open.begin(status, cycle);
          const done = await sweepDisk(lanes, request, AbortSignal.any([stop, timeUp.signal]));
          open.add(status, cycle, done.runs);
          results.push({
            diskId,
            sweptBytes: countBlocks(done.runs) * BLOCK_SIZE,
            comparedBytes: done.comparedBlocks * BLOCK_SIZE,
            sameBytes: done.sameBlocks * BLOCK_SIZE,
          });
        }
        return { disks: results };
      } finally {
        clearTimeout(timer);
      }
    },
    async hold({ groupId, cycle, boundMs }) {
      held.set(groupId, cycle);
      await tap().hold(diskIds(groupId), cycle, boundMs);
    },
    async mark({ groupId, cycle, life }) {
      owners.set(groupId, cycle, life);
      await tap().mark(diskIds(groupId), cycle);
    },
    async release({ groupId, cycle }) {
      held.delete(groupId);
      const { heldThroughout, heldMs } = await tap().release(diskIds(groupId), cycle);
      const statuses = await tap().disks();
      return {
        held: heldThroughout,
        holdMs: heldMs,
        disks: tapped.ofGroup(groupId, statuses).map((disk) => describe(disk, undefined)),
      };
    },
    async ship({ groupId, cycle }, send) {
      const shipped = [];
      for (const diskId of diskIds(groupId)) {
        const emit = (payload: Uint8Array): Promise<void> => send(diskId, payload);
        shipped.push({
          diskId,
          plainBytes: await shipCut({ tap: tap(), diskId, cycle, compress: compresses(groupId), tools, emit }),
        });
      }
      return { disks: shipped };
    },
    async committed({ groupId, cycle }) {
      for (const status of await statusesOf(groupId)) await commitCycle(status, cycle);
    },
    async discard({ groupId, cycle }) {
      for (const diskId of diskIds(groupId)) await discardCycle(diskId, cycle);
    },
    async unmark({ groupId, cycle }) {
      for (const diskId of diskIds(groupId)) await tap().discard(diskId, cycle);
    },
    async settle({ groupId, life, keep, committed }) {
      for (const status of await statusesOf(groupId)) {
        for (const cycle of openCyclesOf(status)) {
          const theirs = owners.get(groupId, cycle) === life;
          if (theirs && committed.includes(cycle)) await commitCycle(status, cycle);
          else if (!theirs || !keep.includes(cycle)) await discardCycle(status.diskId, cycle);
        }
      }
    },
    async resync(groupId, diskId, reason) {
      if (!diskIds(groupId).includes(diskId))
        throw new Fault("NOT_FOUND", `No disk "${diskId}" of group "${groupId}" is tapped here`);
      open.closeAll(diskId);
      await tap().markAllUnsynced(diskId, reason);
    },
    async releaseAll() {
      for (const [groupId, cycle] of [...held]) {
        held.delete(groupId);
        await tap().release(diskIds(groupId), cycle);
      }
    },
  };

  function compresses(groupId: string): boolean {
    return tasks.find((task) => task.groupId === groupId)?.compressAt !== "process-server";
  }

  function diskIds(groupId: string): string[] {
    return tapped.ofGroup(groupId, []).map((disk) => {
      if (disk.fault !== undefined) throw disk.fault;
      return disk.spec.diskId;
    });
  }

  async function statusesOf(groupId: string): Promise<readonly TapDiskStatus[]> {
    const ids = diskIds(groupId);
    return (await tap().disks()).filter((status) => ids.includes(status.diskId));
  }

  function openCyclesOf(status: TapDiskStatus): number[] {
    const all = new Set([...status.cuts.map((cut) => cut.cutId), ...open.cycles(status.diskId)]);
    return [...all].sort((a, b) => a - b);
  }

  async function commitCycle(status: TapDiskStatus, cycle: number): Promise<void> {
    open.closing(status.diskId, cycle);
    try {
      await tap().committed(status.diskId, cycle, open.swept(status, cycle));
    } catch (error) {
      // Of another life of the tap: its intent names all that this cut held, and is swept again.
      if (!isFault(error, "NOT_FOUND")) throw error;
    }
    open.close(status.diskId, cycle);
  }

  async function discardCycle(diskId: string, cycle: number): Promise<void> {
    await tap().discard(diskId, cycle);
    open.close(diskId, cycle);
  }

  function describe(disk: TappedDisk, down: Fault | undefined): AgentDisk {
    const { groupId, spec, status } = disk;
    if (status === undefined) {
      const fault = disk.fault ?? down ?? new Fault("PROCESS_DIED", `The tap does not serve disk "${spec.diskId}" yet`);
      const { code, message, hint } = fault;
      const empty = {
        sizeBytes: 0,
        sectorBytes: 512,
        unsyncedBytes: 0,
        dirtyBytes: 0,
        writtenBytes: 0,
        holdMsMax: 0,
        sweepReason: "",
        remainingBytes: 0,
      };
      const tracker = { bootId: "", generation: 0 };
      return {
        groupId,
        ...spec,
        ...empty,
        tracker,
        openCycles: [],
        fault: { code, message, ...(hint === undefined ? {} : { hint }) },
      };
    }
    return {
      groupId,
      ...spec,
      sizeBytes: status.sizeBytes,
      sectorBytes: 512,
      tapUrl: status.url,
      clients: status.clients,
      unsyncedBytes: status.unsyncedBytes,
      remainingBytes: Math.max(0, status.unsyncedBytes - open.sweptBytes(status)),
      dirtyBytes: status.dirtyBytes,
      writtenBytes: status.writtenBytes,
      holdMsMax: status.holdMsMax,
      sweepReason: status.sweepReason,
      tracker: status.tracker,
      openCycles: openCyclesOf(status),
    };
  }
}
