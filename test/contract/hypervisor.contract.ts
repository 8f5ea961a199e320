/** What every hypervisor must do; run with a real guest that boots from real disks. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, test } from "node:test";
import { isFault } from "#model/fault.ts";
import type { Hypervisor, HypervisorCapabilities, Machine, MachineDisk } from "#ports/hypervisor.ts";
import { ledgerStatus, verifyLedger, type LedgerStatus } from "../../src/demo/ledger.ts";

export interface HypervisorWorld extends AsyncDisposable {
  readonly hypervisor: Hypervisor;
  /** Another one over the same state, as after a restart of the process that uses it. */
  reopen(): Hypervisor;
  /** Fresh disks of the ledger guest, in the form that this hypervisor attaches: system, then data. */
  readonly disks: readonly MachineDisk[];
  /** The port of this host on which the running machine's ledger answers. */
  reach(machine: Machine): Promise<number>;
  /** What the machine's last guest said on its console, seen from outside. */
  console(machineId: string): Promise<string>;
  /** The machine's processor stops at once, with nothing said, as in a loss of power. */
  pullPlug(machineId: string): Promise<void>;
  /** What the machine left on this host; empty when nothing. */
  remains(machineId: string): Promise<readonly string[]>;
  /** The disk's bytes are there, whoever holds it. */
  holdsBytes(disk: MachineDisk): Promise<boolean>;
  /** Where `moveDisk` can take a disk: a place of its size with nothing in it. Only with `movesDisks`. */
  readonly spare?: (diskId: string) => Promise<{ readonly url: string; readonly sizeBytes: number }>;
  /** A disk that a machine is made with, and that is gone when it is to start. */
  readonly lostDisk: { readonly disk: MachineDisk; lose(): Promise<void>; readonly named: RegExp };
}

/** Eight seconds on an idle machine; tests run beside each other, and emulation gets what is left. */
const BOOT_MS = 240_000;
const MACHINE = {
  config: { cpus: 1, memoryMiB: 160, firmware: "bios" },
  network: { mode: "isolated", forwards: [{ hostPort: 0, guestPort: 8080 }] },
} as const;

export function hypervisorContract(name: string, open: () => Promise<HypervisorWorld>): void {
  describe(`hypervisor contract: ${name}`, () => {
    test("a machine is created once, whoever asks, and begins powered off", async () => {
      await using world = await open();
      const request = { operationId: "op-1", name: "web", disks: world.disks, ...MACHINE };
      const [first, second] = await Promise.all([
        world.hypervisor.createMachine(request),
        world.hypervisor.createMachine(request),
      ]);
      const third = await world.reopen().createMachine(request);
      assert.equal(first.power, "off");
      assert.deepEqual([second, third], [first, first]);
      const other = await world.hypervisor.createMachine({ ...request, operationId: "op-2", disks: [] });
      assert.notEqual(other.id, first.id);
      assert.deepEqual((await world.hypervisor.list()).map((one) => one.id).sort(), [first.id, other.id].sort());
      assert.deepEqual(
        (await world.hypervisor.list({ operationId: "op-2" })).map((one) => one.id),
        [other.id],
      );
      await world.hypervisor.destroy(first.id);
      await world.hypervisor.destroy(other.id);
      assert.deepEqual(await world.hypervisor.list(), []);
    });

    test("a guest boots, serves through its forward, and comes back whole after its power was pulled in mid-write", async () => {
      await using world = await open();
      const { hypervisor } = world;
      const machine = await createGuest(world);
      const running = await hypervisor.start(machine.id);
      assert.equal(running.power, "running");
      assert.ok(running.startedAtMs !== undefined);
      if (capabilitiesOf(world).forwards) assert.notEqual(portOf(running), 0);
      else assert.deepEqual(running.forwards, []);
      const before = await untilWriting(await world.reach(running), 20);
      assert.deepEqual(
        (await hypervisor.start(machine.id)).startedAtMs,
        running.startedAtMs,
        "starting again starts nothing",
      );
      assert.match(await consoleOf(world, await hypervisor.inspect(machine.id)), /LEDGER-READY a=0 b=0 ok=true/);

      // Found again, still running, by one that did not start it.
      const found = await world.reopen().inspect(machine.id);
      assert.equal(found.power, "running");
      assert.deepEqual(found.forwards, running.forwards);

      await world.pullPlug(machine.id);
      await until("seen as off", async () => (await hypervisor.inspect(machine.id)).power === "off");
      assert.notEqual((await hypervisor.inspect(machine.id)).wentOff, "told", "nobody told it to");

      const again = await world.reopen().start(machine.id);
      const after = await untilWriting(await world.reach(again), before.b + 5);
      assert.notEqual(after.bootId, before.bootId);
      assert.ok(
        after.ok && after.foundAtBoot[0] >= before.a && after.foundAtBoot[1] >= before.b,
        `${JSON.stringify(after)} after ${JSON.stringify(before)}`,
      );
      assert.equal((await verifyLedger(await world.reach(again))).whole, true);
      await hypervisor.destroy(machine.id);
    });

    test("a guest is asked to shut down and does so in order; power off does not ask", async () => {
      await using world = await open();
      const { hypervisor } = world;
      const machine = await createGuest(world);
      const running = await hypervisor.start(machine.id);
      await untilWriting(await world.reach(running), 5);
      const off = await hypervisor.shutdown(machine.id, { timeoutMs: 60_000 });
      assert.equal(off.power, "off");
      assert.notEqual(off.wentOff, "died", "it was told to");
      assert.match(await consoleOf(world, off), /LEDGER-STOP[^]*GUEST-DOWN/);
      assert.equal((await hypervisor.shutdown(machine.id, { timeoutMs: 1_000 })).power, "off", "off is no error");

      const again = await hypervisor.start(machine.id);
      assert.equal(again.power, "running");
      // In its boot loader nobody listens to the power button.
      await assert.rejects(hypervisor.shutdown(machine.id, { timeoutMs: 300 }), (error) => isFault(error, "TIMED_OUT"));
      assert.equal((await hypervisor.inspect(machine.id)).power, "running");
      const cut = await hypervisor.powerOff(machine.id);
      assert.equal(cut.power, "off");
      assert.notEqual(cut.wentOff, "died");
      assert.equal((await hypervisor.powerOff(machine.id)).power, "off");
    });

    test("destroying takes the machine's power and leaves nothing of it but its disks", async () => {
      await using world = await open();
      const { hypervisor } = world;
      const machine = await createGuest(world);
      await hypervisor.start(machine.id);
      assert.notDeepEqual(await world.remains(machine.id), []);
      await hypervisor.destroy(machine.id);
      assert.deepEqual(await world.remains(machine.id), []);
      for (const disk of world.disks) assert.ok(await world.holdsBytes(disk), `the bytes of "${disk.diskId}" stay`);
      await hypervisor.destroy(machine.id);
      await assert.rejects(hypervisor.inspect(machine.id), (error) => isFault(error, "NOT_FOUND"));
      await assert.rejects(hypervisor.start(machine.id), (error) => isFault(error, "NOT_FOUND"));
    });

    test("a machine whose disk is not there does not start, and says what was seen", async () => {
      await using world = await open();
      const { hypervisor, lostDisk } = world;
      const disks = [lostDisk.disk];
      const machine = await hypervisor.createMachine({ operationId: "op-9", name: "broken", disks, ...MACHINE });
      await lostDisk.lose();
      await assert.rejects(hypervisor.start(machine.id), (error) => {
        assert.ok(isFault(error, "MACHINE_NOT_STARTED"));
        assert.match(error.message, lostDisk.named);
        assert.ok(error.hint !== undefined);
        return true;
      });
      assert.equal((await hypervisor.inspect(machine.id)).power, "off");
    });

    test("a disk is attached once, however often it is asked for, and leaves with its bytes", async () => {
      await using world = await open();
      const { hypervisor } = world;
      const [system, data] = world.disks;
      assert.ok(system !== undefined && data !== undefined && hypervisor.attachDisk && hypervisor.detachDisk);
      const request = { operationId: "op-1", name: "ledger", disks: [system], ...MACHINE };
      const { id } = await hypervisor.createMachine(request);
      assert.deepEqual(diskIds(await hypervisor.attachDisk(id, data)), ["data", "system"]);
      assert.deepEqual(diskIds(await hypervisor.attachDisk(id, data)), ["data", "system"]);
      const [found] = await world.reopen().list({ operationId: "op-1" });
      assert.deepEqual(found && diskIds(found), ["data", "system"]);

      // The guest stops at boot without its data disk: that it writes says that both are there.
      await untilWriting(await world.reach(await hypervisor.start(id)), 3);
      if (capabilitiesOf(world).hotPlug) assert.deepEqual(diskIds(await hypervisor.detachDisk(id, "data")), ["system"]);
      else await assert.rejects(hypervisor.detachDisk(id, "data"), (error) => isFault(error, "REFUSED"));
      await hypervisor.powerOff(id);
      assert.deepEqual(diskIds(await hypervisor.detachDisk(id, "data")), ["system"]);
      assert.deepEqual(diskIds(await hypervisor.detachDisk(id, "data")), ["system"]);
      assert.ok(await world.holdsBytes(data));
      await assert.rejects(hypervisor.attachDisk("no-such-machine", data), (error) => isFault(error, "NOT_FOUND"));
    });

    test("a running machine's disks move without a restart, and it starts from where they are; or they cannot be moved, and it says so", async () => {
      await using world = await open();
      const { hypervisor, spare } = world;
      assert.equal(hypervisor.moveDisk !== undefined, capabilitiesOf(world).movesDisks);
      if (!hypervisor.moveDisk || !spare) return;
      const { id } = await createGuest(world);
      const refused = { diskId: "data", url: (await spare("data")).url, sizeBytes: (await spare("data")).sizeBytes };
      await assert.rejects(hypervisor.moveDisk(id, refused), (error) => isFault(error, "REFUSED"), "it is off");
      const running = await hypervisor.start(id);
      const before = await untilWriting(await world.reach(running), 10);
      const moved: string[] = [];
      for (const { diskId } of world.disks) {
        const to = { diskId, ...(await spare(diskId)) };
        await until(`"${diskId}" has moved`, async () => {
          const { state, copiedBytes, totalBytes } = await world.reopen().moveDisk!(id, to);
          assert.ok(copiedBytes <= totalBytes);
          return state === "done";
        });
        moved.push(to.url);
      }
      const after = await untilWriting(await world.reach(running), before.b + 10);
      assert.equal(after.bootId, before.bootId, "it was not restarted");
      assert.deepEqual(
        (await hypervisor.inspect(id)).disks?.map(({ url }) => url),
        moved,
      );
      for (const disk of world.disks) assert.ok(await world.holdsBytes(disk), "the old bytes stay");

      await world.pullPlug(id);
      await until("seen as off", async () => (await hypervisor.inspect(id)).power === "off");
      const again = await untilWriting(await world.reach(await hypervisor.start(id)), after.b);
      assert.ok(again.ok && again.foundAtBoot[1] >= after.b, JSON.stringify(again));
      assert.equal((await verifyLedger(await world.reach(await hypervisor.inspect(id)))).whole, true);
    });

    test("what a hypervisor says of itself is so", async () => {
      await using world = await open();
      const { hypervisor } = world;
      const { exclusiveDisks, firmware, disks } = capabilitiesOf(world);
      const request = { operationId: "op-1", name: "first", disks: world.disks, ...MACHINE };
      await hypervisor.createMachine(request);
      const second = { ...request, operationId: "op-2", name: "second" };
      if (exclusiveDisks) {
        await assert.rejects(hypervisor.createMachine(second), (error) => isFault(error, "IMAGE_IN_USE"));
        assert.deepEqual(await hypervisor.list({ operationId: "op-2" }), []);
      } else assert.equal((await hypervisor.createMachine(second)).power, "off");

      for (const one of ["bios", "uefi"] as const) {
        const asked = { ...request, operationId: one, disks: [], config: { ...MACHINE.config, firmware: one } };
        if (firmware.includes(one)) assert.equal((await hypervisor.createMachine(asked)).config.firmware, one);
        else await assert.rejects(hypervisor.createMachine(asked), (error) => isFault(error, "REFUSED"));
      }
      const url = disks === "nbd" ? "datastore://store/folder/disk.vmdk" : "nbd://127.0.0.1:10809/disk";
      const foreign = { ...request, operationId: "op-3", disks: [{ diskId: "foreign", url }] };
      await assert.rejects(
        hypervisor.createMachine(foreign),
        (error) => isFault(error, "REFUSED") || isFault(error, "CONFIG_INVALID"),
      );
      assert.deepEqual(await hypervisor.list({ operationId: "op-3" }), []);
    });
  });
}

async function createGuest(world: HypervisorWorld): Promise<Machine> {
  return await world.hypervisor.createMachine({ operationId: "op-1", name: "ledger", disks: world.disks, ...MACHINE });
}

function capabilitiesOf({ hypervisor }: HypervisorWorld): HypervisorCapabilities {
  assert.ok(hypervisor.capabilities !== undefined, "it says what it can do");
  return hypervisor.capabilities;
}

/** From the hypervisor where it has it, so that what it shows is tested too. */
async function consoleOf(world: HypervisorWorld, machine: Machine): Promise<string> {
  if (capabilitiesOf(world).console) return machine.consoleTail;
  assert.equal(machine.consoleTail, "");
  return await world.console(machine.id);
}

function diskIds(machine: Machine): readonly string[] {
  return (machine.disks ?? []).map((disk) => disk.diskId).sort();
}

export function portOf(machine: Machine): number {
  const [forward] = machine.forwards;
  assert.ok(forward !== undefined);
  return forward.hostPort;
}

/** Waits until the ledger serves and both disks hold at least `number` records. */
export async function untilWriting(port: number, number: number): Promise<LedgerStatus> {
  let last: LedgerStatus | undefined;
  await until(`record ${number} on both disks`, async () => {
    try {
      last = await ledgerStatus(port, 1_000);
    } catch (error) {
      if (!isFault(error, "PEER_UNREACHABLE")) throw error;
      return false; // Still booting.
    }
    return last.b >= number;
  });
  assert.ok(last !== undefined);
  return last;
}

export async function until(what: string, condition: () => Promise<boolean>, timeoutMs = BOOT_MS): Promise<void> {
  for (const deadline = Date.now() + timeoutMs; !(await condition()); await sleep(100)) {
    assert.ok(Date.now() < deadline, `${what}: not within ${timeoutMs} ms`);
  }
}
