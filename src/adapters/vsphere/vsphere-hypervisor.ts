/**
 * Machines in a vCenter.
 *
 * Invariants (test/contract/hypervisor.contract.ts, test/adapters/vsphere):
 * - nothing is remembered here: what we made is found again by its marks (machine-view.ts), by any process, after any crash;
 * - a machine's id is its instance UUID, which we choose from operation and name; vCenter's own object ids never leave this folder;
 * - before a machine is destroyed its disks are detached: vCenter deletes the files of what is attached;
 * - a disk is in one machine: asked of every machine before each attach;
 * - only machines that Leeward made are changed or destroyed; others are read, started and stopped;
 * - who repeats a request looks first: a task that we stopped waiting for may have ended well.
 */
import { createHash } from "node:crypto";
import { Fault, isFault, type FaultCode } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { Hypervisor, HypervisorCapabilities, Machine, MachineDisk } from "#ports/hypervisor.ts";
import { datastorePathOf } from "./datastore-path.ts";
import { asFaults, faultOf } from "./faults.ts";
import { assertFree, assertRoom, findMachine, findOurs, readInventory } from "./inventory.ts";
import { attachSpec, detachSpec, newMachineSpec, renamedSpec, vmNameOf } from "./machine-spec.ts";
import type { AttachedDisk, MachineView } from "./machine-view.ts";
import { oneAtATime } from "./one-at-a-time.ts";
import { cardFor, findByPath, type VsphereNetworks, type VspherePlacement } from "./placement.ts";
import { waitForObject } from "./properties.ts";
import { openSession, type SessionOptions, type Vim } from "./session.ts";
import { VimError } from "./soap.ts";
import { runTask } from "./tasks.ts";
import type { Reference, VirtualMachineConfigSpec } from "./vim-types.ts";

export interface VsphereOptions extends SessionOptions {
  readonly clock: Clock;
  readonly placement: VspherePlacement;
  readonly networks: VsphereNetworks;
}

export interface VsphereHypervisor extends Hypervisor, AsyncDisposable {
  readonly capabilities: HypervisorCapabilities;
  readonly attachDisk: NonNullable<Hypervisor["attachDisk"]>;
  readonly detachDisk: NonNullable<Hypervisor["detachDisk"]>;
  readonly inventory: NonNullable<Hypervisor["inventory"]>;
}

const CREATE_MS = 50_000;
const POWER_MS = 50_000;
const RECONFIGURE_MS = 50_000;
/** A guest that was still booting did not hear. */
const ASK_AGAIN_MS = 5_000;

/** Logs in with the first request; `await using` logs out. */
export function createVsphereHypervisor(options: VsphereOptions): VsphereHypervisor {
  const { clock, placement, networks } = options;
  const session = openSession(options);
  const alone = oneAtATime();

  /** Throws: NOT_FOUND. */
  async function load(id: string): Promise<MachineView> {
    const view = await session.run((vim) => findMachine(vim, id));
    if (view === undefined) throw new Fault("NOT_FOUND", `There is no machine "${id}"`, { details: { machineId: id } });
    return view;
  }

  async function loadOurs(id: string): Promise<MachineView> {
    const view = await load(id);
    if (view.ours) return view;
    throw new Fault("REFUSED", `Machine "${view.machine.name}" was not made by Leeward, and is not changed by it`, {
      details: { machineId: id },
    });
  }

  function task(doing: string, timeoutMs: number, submit: (vim: Vim) => Promise<Reference>): Promise<unknown> {
    return runTask(submit, { session, clock, timeoutMs, doing });
  }

  async function reconfigure(view: MachineView, doing: string, spec: VirtualMachineConfigSpec): Promise<void> {
    await task(doing, RECONFIGURE_MS, (vim) => vim.call("ReconfigVM_Task", { _this: view.reference, spec }));
  }

  async function create(request: Parameters<Hypervisor["createMachine"]>[0], id: string): Promise<Machine> {
    const { operationId, name, config, disks, network } = request;
    const existing = await findCreated(operationId, name);
    if (existing !== undefined) return existing.machine;
    const files = disks.map((disk) => datastorePathOf(disk.url)); // What cannot be attached is refused before anything is made.
    const { folder, pool, card } = await session.run(async (vim) => {
      await assertFree(vim, files);
      for (const disk of disks) if (disk.create === true) await assertRoomFor(vim, disk);
      return {
        folder: await findByPath(vim, placement.folder, "folder"),
        pool: await findByPath(vim, placement.resourcePool, "resource pool"),
        card: await cardFor(vim, networks, network.mode),
      };
    });
    const spec = newMachineSpec({
      ...{ operationId, name, config, disks, card },
      vmName: vmNameOf(name, id),
      instanceUuid: id,
      datastore: placement.datastore,
      ...(network.mac === undefined ? {} : { mac: network.mac }),
    });
    try {
      await task(`create "${spec.name}"`, CREATE_MS, (vim) =>
        vim.call("CreateVM_Task", { _this: folder, config: spec, pool }),
      );
    } catch (error) {
      // Another process created it meanwhile: it is found below.
      if (!(error instanceof VimError) || error.fault.$type !== "DuplicateName") throw error;
    }
    const made = (await findCreated(operationId, name)) ?? (await adopt(id, operationId, name));
    return made.machine;
  }

  async function findCreated(operationId: string, name: string): Promise<MachineView | undefined> {
    const ours = await session.run((vim) => findOurs(vim, operationId));
    return ours.find(({ machine }) => machine.name === name);
  }

  /** vCenter gave the new machine another id, since a clone or a restored copy has the one that we chose: it is marked with its own. */
  async function adopt(id: string, operationId: string, name: string): Promise<MachineView> {
    const wanted = vmNameOf(name, id);
    const found = await session.run((vim) => readInventory(vim));
    for (const candidate of found.machines.filter((one) => one.name === wanted)) {
      const view = await load(candidate.id);
      if (view.machine.operationId !== operationId) continue;
      await reconfigure(view, `mark "${wanted}"`, renamedSpec(candidate.id));
      return await load(candidate.id);
    }
    throw new Fault(
      "REFUSED",
      `The folder "${placement.folder}" has a machine "${wanted}" that is not of this operation`,
      {
        hint: "Rename or remove it; its name is taken",
      },
    );
  }

  async function powerOn(view: MachineView): Promise<void> {
    const { name, id } = view.machine;
    try {
      await task(`start "${name}"`, POWER_MS, (vim) => vim.call("PowerOnVM_Task", { _this: view.reference }));
    } catch (error) {
      if (isAlready(error, "poweredOn")) return;
      if (!(error instanceof VimError)) throw error;
      const fault = faultOf(error, `start "${name}"`);
      const unrelated: readonly FaultCode[] = ["REFUSED", "CREDENTIALS_REJECTED", "NOT_FOUND"];
      if (unrelated.includes(fault.code)) throw fault;
      throw new Fault("MACHINE_NOT_STARTED", `Machine "${name}" did not start: ${fault.message}`, {
        cause: error,
        details: { ...fault.details, machineId: id },
        hint: fault.hint ?? "Look at the machine's events in vCenter",
      });
    }
  }

  async function powerOff(view: MachineView): Promise<void> {
    if (view.machine.power === "off") return;
    try {
      await task(`power off "${view.machine.name}"`, POWER_MS, (vim) =>
        vim.call("PowerOffVM_Task", { _this: view.reference }),
      );
    } catch (error) {
      if (!isAlready(error, "poweredOff")) throw error;
    }
  }

  async function shutdown(id: string, timeoutMs: number): Promise<Machine> {
    const deadline = clock.monotonic() + timeoutMs;
    for (;;) {
      const { machine, reference } = await load(id);
      if (machine.power === "off") return machine;
      const leftMs = deadline - clock.monotonic();
      const asked = leftMs > 0 && (await askToShutDown(reference));
      const off = await session.run((vim) =>
        waitForObject(vim, reference, {
          paths: ["runtime.powerState"],
          until: (properties) => properties["runtime.powerState"] === "poweredOff",
          timeoutMs: Math.max(0, Math.min(leftMs, ASK_AGAIN_MS)),
          clock,
        }),
      );
      if (off !== undefined || clock.monotonic() < deadline) continue;
      throw new Fault(
        "TIMED_OUT",
        `Machine "${machine.name}" did not shut down within ${timeoutMs} ms and still runs`,
        {
          details: { machineId: id },
          hint: asked
            ? "Power it off, or look at its console for what it waits for"
            : "Power it off; VMware Tools do not run in it, so nobody in it can be asked",
        },
      );
    }
  }

  /** False when nobody in the machine can be asked, now. */
  async function askToShutDown(reference: Reference): Promise<boolean> {
    try {
      await session.run((vim) => vim.call("ShutdownGuest", { _this: reference }));
      return true;
    } catch (error) {
      const type = error instanceof VimError ? error.fault.$type : undefined;
      if (type === "ToolsUnavailable" || type === "InvalidState" || type === "TaskInProgress") return false;
      if (isAlready(error, "poweredOff")) return true;
      throw error;
    }
  }

  async function detach(view: MachineView, disks: readonly AttachedDisk[]): Promise<void> {
    if (disks.length === 0) return;
    // vCenter refuses it as well, in other words; a machine with a snapshot writes to files that belong to the snapshot.
    const inSnapshot = disks.find((disk) => disk.files.length > 1);
    if (inSnapshot !== undefined)
      throw new Fault(
        "REFUSED",
        `Machine "${view.machine.name}" has a snapshot, and its disk "${inSnapshot.file}" is part of it`,
        {
          details: { machineId: view.machine.id },
          hint: "Remove the machine's snapshots in vCenter, which puts what was written since into the disk",
        },
      );
    await reconfigure(view, `detach the disks of "${view.machine.name}"`, detachSpec(view, disks));
  }

  async function destroy(id: string): Promise<void> {
    const found = await session.run((vim) => findMachine(vim, id));
    if (found === undefined) return;
    const view = await loadOurs(id);
    await powerOff(view);
    await detach(view, view.disks);
    await task(`destroy "${view.machine.name}"`, CREATE_MS, (vim) =>
      vim.call("Destroy_Task", { _this: view.reference }),
    );
  }

  return {
    kind: "vsphere",
    capabilities: {
      disks: "datastore",
      firmware: ["bios", "uefi"],
      forwards: false,
      console: false,
      hotPlug: true,
      exclusiveDisks: true,
      movesDisks: false,
    },
    createMachine: (request) => {
      const id = idOf(request.operationId, request.name);
      return alone(id, () => asFaults(`create "${request.name}"`, () => create(request, id)));
    },
    start: (id) =>
      alone(id, () =>
        asFaults("start a machine", async () => {
          const view = await load(id);
          if (view.machine.power !== "running") await powerOn(view);
          return (await load(id)).machine;
        }),
      ),
    shutdown: (id, { timeoutMs }) => alone(id, () => asFaults("shut a machine down", () => shutdown(id, timeoutMs))),
    powerOff: (id) =>
      alone(id, () =>
        asFaults("power a machine off", async () => {
          await powerOff(await load(id));
          return (await load(id)).machine;
        }),
      ),
    inspect: (id) => asFaults("read a machine", async () => (await load(id)).machine),
    list: (filter = {}) =>
      asFaults("list machines", async () =>
        (await session.run((vim) => findOurs(vim, filter.operationId))).map((view) => view.machine),
      ),
    destroy: (id) =>
      alone(id, async () => {
        try {
          await asFaults("destroy a machine", () => destroy(id));
        } catch (error) {
          if (!isFault(error, "NOT_FOUND")) throw error; // It went while we were at it: what was wanted.
        }
      }),
    attachDisk: (id, disk) =>
      alone(id, () =>
        asFaults(`attach "${disk.diskId}"`, async () => {
          const view = await loadOurs(id);
          const file = datastorePathOf(disk.url);
          if (view.disks.some((one) => one.file === file)) return view.machine;
          await session.run(async (vim) => {
            await assertFree(vim, [file], id);
            if (disk.create === true) await assertRoomFor(vim, disk);
          });
          await attach(view, disk);
          return (await load(id)).machine;
        }),
      ),
    detachDisk: (id, diskId) =>
      alone(id, () =>
        asFaults(`detach "${diskId}"`, async () => {
          const view = await loadOurs(id);
          const file = view.diskIds.get(diskId);
          await detach(
            view,
            view.disks.filter((disk) => disk.file === file),
          );
          return (await load(id)).machine;
        }),
      ),
    inventory: () => asFaults("read the inventory", () => session.run((vim) => readInventory(vim))),
    [Symbol.asyncDispose]: () => session[Symbol.asyncDispose](),
  };

  async function attach(view: MachineView, disk: MachineDisk): Promise<void> {
    const doing = `attach "${disk.diskId}" to "${view.machine.name}"`;
    try {
      await reconfigure(view, doing, attachSpec(view, disk));
    } catch (error) {
      // Made by an attempt whose answer was lost, or by a person: a disk's bytes are never made anew.
      const there = error instanceof VimError && error.fault.$type === "FileAlreadyExists";
      if (!there || disk.create !== true) throw error;
      await reconfigure(view, doing, attachSpec(view, { ...disk, create: false }));
    }
  }
}

function isAlready(error: unknown, state: "poweredOn" | "poweredOff"): boolean {
  return error instanceof VimError && error.fault.$type === "InvalidPowerState" && error.fault.existingState === state;
}

async function assertRoomFor(vim: Vim, disk: MachineDisk): Promise<void> {
  if (disk.sizeBytes === undefined)
    throw new Fault("CONFIG_INVALID", `The disk "${disk.diskId}" is to be made, and its size is not given`);
  const file = datastorePathOf(disk.url);
  await assertRoom(vim, file.slice(1, file.indexOf("]")), disk.sizeBytes);
}

/** From operation and name, so that whoever asks again asks for the same; in the form of a UUID of version 8 (our own). */
function idOf(operationId: string, name: string): string {
  const digits = createHash("sha256").update(`${operationId}\0${name}`).digest("hex");
  return `${digits.slice(0, 8)}-${digits.slice(8, 12)}-8${digits.slice(13, 16)}-a${digits.slice(17, 20)}-${digits.slice(20, 32)}`;
}
