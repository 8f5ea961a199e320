import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { systemClock } from "../../../src/adapters/clock/system-clock.ts";
import { createQemuHypervisor } from "../../../src/adapters/qemu/qemu-hypervisor.ts";
import {
  hypervisorContract,
  portOf,
  until,
  untilWriting,
  type HypervisorWorld,
} from "../../contract/hypervisor.contract.ts";
import { serveGuestDisks, type GuestDisks } from "../../support/guest-disks.ts";

hypervisorContract("qemu", openWorld);

const MACHINE = {
  config: { cpus: 1, memoryMiB: 160, firmware: "bios" },
  network: { mode: "isolated", forwards: [{ hostPort: 0, guestPort: 8080 }] },
} as const;

test("a running machine survives the death and return of its disks' server, and misses no record", async () => {
  await using world = await openWorld();
  const { hypervisor, guest } = world;
  const { id } = await hypervisor.createMachine({
    operationId: "op-1",
    name: "ledger",
    disks: world.disks,
    ...MACHINE,
  });
  const running = await hypervisor.start(id);
  await untilWriting(portOf(running), 10);
  await guest.killServers();
  await new Promise((resolve) => setTimeout(resolve, 2_000));
  assert.equal((await hypervisor.inspect(id)).power, "running");
  await guest.startServers();
  const { b } = await untilWriting(portOf(running), 10);
  const later = await untilWriting(portOf(running), b + 10);
  assert.ok(later.ok);
  await hypervisor.destroy(id);
});

test("a second process cannot start a machine that already runs, nor is a stranger's process ever signalled", async () => {
  await using world = await openWorld();
  const { hypervisor } = world;
  const { id } = await hypervisor.createMachine({
    operationId: "op-1",
    name: "ledger",
    disks: world.disks,
    ...MACHINE,
  });
  await Promise.all([hypervisor.start(id), hypervisor.start(id)]);
  assert.equal(processesIn(path.join(world.stateFolder, id)).length, 1);

  // The pid file now names a process of ours that is no QEMU: as after a reboot, when the number was given away.
  await world.pullPlug(id);
  await until("off", async () => (await hypervisor.inspect(id)).power === "off");
  await writeFile(path.join(world.stateFolder, id, "qemu.pid"), `${process.pid}\n`);
  assert.equal((await hypervisor.inspect(id)).power, "off");
  await hypervisor.powerOff(id);
  await hypervisor.destroy(id); // We are still here.
});

test("a host port that is taken is refused when it was asked for, with QEMU's own words", async () => {
  await using world = await openWorld();
  const { hypervisor } = world;
  const first = await hypervisor.createMachine({ operationId: "op-1", name: "one", disks: world.disks, ...MACHINE });
  const port = portOf(await hypervisor.start(first.id));
  const network = { mode: "isolated", forwards: [{ hostPort: port, guestPort: 8080 }] } as const;
  const second = await hypervisor.createMachine({
    operationId: "op-2",
    name: "two",
    disks: [],
    config: MACHINE.config,
    network,
  });
  await assert.rejects(
    hypervisor.start(second.id),
    (error) => isFault(error, "MACHINE_NOT_STARTED") && error.message.includes("host forwarding rule"),
  );
});

test("how a machine went off is told apart: its process died, its host went down under it, or somebody told it to", async () => {
  await using world = await openWorld();
  const { hypervisor } = world;
  const { id } = await hypervisor.createMachine({
    operationId: "op-1",
    name: "ledger",
    disks: world.disks,
    ...MACHINE,
  });
  assert.equal((await hypervisor.inspect(id)).wentOff, undefined, "it never ran");
  const folder = path.join(world.stateFolder, id);
  const ends = [
    { how: "died", end: async () => process.kill(processesIn(folder)[0]!, "SIGKILL") },
    { how: "died", end: async () => process.kill(processesIn(folder)[0]!, "SIGTERM") },
    { how: "told", end: async () => await hypervisor.powerOff(id) },
  ] as const;
  for (const { how, end } of ends) {
    assert.equal((await hypervisor.start(id)).wentOff, undefined);
    await end();
    await until("off", async () => (await hypervisor.inspect(id)).power === "off");
    // Said by whoever comes next, too.
    assert.equal((await world.reopen().inspect(id)).wentOff, how);
  }
});

test("an unknown program, firmware or disk address is refused before anything is made", async () => {
  await using world = await openWorld();
  const { hypervisor } = world;
  const request = { operationId: "op-1", name: "odd", disks: world.disks, ...MACHINE };
  await assert.rejects(
    hypervisor.createMachine({ ...request, config: { ...MACHINE.config, firmware: "uefi" } }),
    (error) => isFault(error, "REFUSED"),
  );
  const disks = [{ diskId: "system", url: "file:///etc/passwd" }];
  await assert.rejects(hypervisor.createMachine({ ...request, disks }), (error) => isFault(error, "CONFIG_INVALID"));
  assert.deepEqual(await hypervisor.list(), []);

  const without = createQemuHypervisor({
    stateFolder: world.stateFolder,
    clock: systemClock,
    program: "/nowhere/qemu",
  });
  const { id } = await without.createMachine(request);
  await assert.rejects(without.start(id), (error) => isFault(error, "TOOL_MISSING"));
});

interface QemuWorld extends HypervisorWorld {
  readonly stateFolder: string;
  readonly guest: GuestDisks;
}

async function openWorld(): Promise<QemuWorld> {
  // A long path on purpose: socket addresses have 107 bytes.
  const stateFolder = await mkdtemp(path.join(tmpdir(), `leeward-qemu-${"long-".repeat(20)}`));
  const guest = await serveGuestDisks({ recordsPerSecond: 0 });
  const reopen = () => createQemuHypervisor({ stateFolder, clock: systemClock, program: "qemu-system-x86_64" });
  const hypervisor = reopen();
  return {
    hypervisor,
    reopen,
    stateFolder,
    guest,
    disks: guest.disks,
    spare: (diskId) => guest.spare(diskId as "system" | "data"),
    reach: (machine) => Promise.resolve(portOf(machine)),
    console: async (id) => (await hypervisor.inspect(id)).consoleTail,
    pullPlug: async (id) => {
      const [pid] = processesIn(path.join(stateFolder, id));
      assert.ok(pid !== undefined, "it runs");
      process.kill(pid, "SIGKILL");
    },
    remains: async (id) => {
      const folder = path.join(stateFolder, id);
      const files = (await readdir(stateFolder)).filter((name) => name === id);
      return [...files, ...processesIn(folder).map(String)];
    },
    holdsBytes: (disk) => Promise.resolve(existsSync(path.join(guest.folder, `${disk.diskId}.img`))),
    lostDisk: {
      disk: { diskId: "system", url: "nbd+unix:///system?socket=/nowhere/at-all.sock", bootIndex: 1 },
      lose: () => Promise.resolve(), // It never was.
      named: /\/nowhere\/at-all\.sock/,
    },
    [Symbol.asyncDispose]: async () => {
      for (const one of await hypervisor.list()) await hypervisor.destroy(one.id);
      await guest[Symbol.asyncDispose]();
      await rm(stateFolder, { recursive: true, force: true });
    },
  };
}

/** Living QEMUs whose working folder this is, found without our own code. */
function processesIn(folder: string): readonly number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return (
          readlinkSync(`/proc/${pid}/cwd`).startsWith(folder) &&
          readFileSync(`/proc/${pid}/comm`, "utf8").startsWith("qemu")
        );
      } catch {
        return false; // Ended meanwhile.
      }
    });
}
