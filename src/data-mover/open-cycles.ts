/** The cycles of a stream that are not committed yet, and for each the disks of which something has come. */
import { Fault } from "#model/fault.ts";
import type { CycleAssembly } from "./cycle-assembly.ts";
import type { MoverDisk } from "./mover-disk.ts";

const OPEN_CYCLES_MAX = 2;

export interface OpenCycles {
  /** The disk's part of the cycle, begun if it is the first of it. Throws PROTOCOL_INVALID for one cycle too many. */
  assembly(disk: MoverDisk, cycle: number): CycleAssembly;
  /** Numbers of those before `cycle`. */
  before(cycle: number): readonly number[];
  /** Forget a cycle; its buffers are given back. One that is not open is fine. */
  drop(cycle: number): Promise<void>;
  /** Everything, to be ended by the caller; none is open any more. */
  takeAll(): readonly CycleAssembly[];
}

export function openCycles(groupId: string): OpenCycles {
  const cycles = new Map<number, Map<string, CycleAssembly>>();
  return {
    assembly(disk, cycle) {
      let disks = cycles.get(cycle);
      if (!disks) {
        if (cycles.size >= OPEN_CYCLES_MAX) {
          throw new Fault(
            "PROTOCOL_INVALID",
            `Cycle ${cycle} of group "${groupId}" begins while ${[...cycles.keys()].join(" and ")} are open`,
            { hint: "Commit or abandon a cycle first." },
          );
        }
        disks = new Map();
        cycles.set(cycle, disks);
      }
      let assembly = disks.get(disk.diskId);
      if (!assembly) disks.set(disk.diskId, (assembly = disk.begin(cycle)));
      return assembly;
    },
    before: (cycle) => [...cycles.keys()].filter((open) => open < cycle),
    async drop(cycle) {
      const assemblies = [...(cycles.get(cycle)?.values() ?? [])];
      cycles.delete(cycle);
      await Promise.all(assemblies.map((assembly) => assembly.release()));
    },
    takeAll() {
      const all = [...cycles.values()].flatMap((disks) => [...disks.values()]);
      cycles.clear();
      return all;
    },
  };
}
