import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { createGuestImages } from "../../../src/embedded/guest.ts";
import { hypervisorContract, type HypervisorWorld } from "../../contract/hypervisor.contract.ts";
import { isThere, startSimulator } from "./simulator.ts";

hypervisorContract("vsphere", openWorld);

async function openWorld(): Promise<HypervisorWorld> {
  const simulator = await startSimulator();
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-guest-"));
  const images = await createGuestImages(folder, { recordsPerSecond: 0 });
  const system = { ...(await simulator.makeDisk("system", { image: images.system })), bootIndex: 1 };
  const data = await simulator.makeDisk("data", { image: images.data });
  const lost = await simulator.makeDisk("lost", { sizeBytes: 2 ** 20 });
  const hypervisor = simulator.connect();
  const guestOf = async (id: string): Promise<{ readonly pid: number; readonly port: number }> =>
    JSON.parse(await simulator.control("guest", { id })) as { pid: number; port: number };
  return {
    hypervisor,
    reopen: () => simulator.connect(),
    disks: [system, data],
    reach: async (machine) => (await guestOf(machine.id)).port,
    console: (id) => simulator.control("console", { id }),
    pullPlug: async (id) => void (await simulator.control("pull", { id })),
    remains: async (id) => {
      const machines = await simulator.control("machines");
      return machines.split("\n").filter((line) => line.endsWith(id));
    },
    holdsBytes: (disk) => isThere(simulator.bytesOf(disk)),
    lostDisk: {
      disk: { ...lost, bootIndex: 1 },
      lose: async () => {
        await rm(path.join(simulator.folder, "guest", "lost.vmdk"));
      },
      named: /lost\.vmdk/,
    },
    [Symbol.asyncDispose]: async () => {
      await simulator[Symbol.asyncDispose]();
      await rm(folder, { recursive: true, force: true });
      assert.equal(await isThere(simulator.folder), false, "nothing is left");
    },
  };
}
