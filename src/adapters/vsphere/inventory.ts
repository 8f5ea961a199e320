/** What a vCenter has, as far as the user may see it: machines by their ids and by our mark, networks, datastores. Only reads. */
import { Fault } from "#model/fault.ts";
import type { Inventory } from "#ports/hypervisor.ts";
import { inventoryOf, MACHINE_PATHS, OPERATION_KEY, viewOf, type MachineView } from "./machine-view.ts";
import { readAll, readObject } from "./properties.ts";
import type { Vim } from "./session.ts";
import type { OptionValue } from "./vim-types.ts";

/** Enough to see which files a machine stands on; all that is known of every machine would be several times as much. */
const BACKING_PATHS = ["name", "config.instanceUuid", "config.hardware.device"] as const;

/**
 * By its instance id, which is the machine's id here; undefined when there is none. Throws HYPERVISOR_UNAVAILABLE for a machine that
 * vCenter knows and cannot show (its host or its datastore is away): it is not gone.
 */
export async function findMachine(vim: Vim, id: string): Promise<MachineView | undefined> {
  const { searchIndex } = vim.content;
  if (searchIndex === undefined) throw new Fault("PROTOCOL_INVALID", "vCenter names no search index");
  const reference = await vim.call("FindByUuid", { _this: searchIndex, uuid: id, vmSearch: true, instanceUuid: true });
  if (reference === undefined) return undefined;
  const properties = await readObject(vim, reference, MACHINE_PATHS);
  if (properties === undefined) return undefined; // It went between the two questions.
  const view = viewOf(reference, properties);
  if (view !== undefined) return view;
  throw new Fault("HYPERVISOR_UNAVAILABLE", `vCenter cannot show the configuration of the machine "${id}"`, {
    details: { machineId: id },
    hint: "Look at it in vCenter: its host or its datastore may not be reachable",
  });
}

/** Those that Leeward made, of one operation or of all, wherever a person moved them. */
export async function findOurs(vim: Vim, operationId?: string): Promise<readonly MachineView[]> {
  // One value per machine, not all of its configuration: most machines are not ours.
  const path = `config.extraConfig["${OPERATION_KEY}"]`;
  const marked = (await readAll(vim, "VirtualMachine", [path])).filter(({ properties }) => {
    const option = properties[path] as OptionValue | undefined;
    return option !== undefined && (operationId === undefined || option.value === operationId);
  });
  const views: MachineView[] = [];
  for (const { reference } of marked) {
    const properties = await readObject(vim, reference, MACHINE_PATHS);
    const view = properties === undefined ? undefined : viewOf(reference, properties); // It may just have gone.
    if (view?.ours === true) views.push(view);
  }
  return views;
}

/**
 * Throws IMAGE_IN_USE when one of the files is in another machine, running or not, or is what a snapshot of it stands on.
 *
 * Neither vCenter (for machines that are off) nor the simulator prevents a second attach, and both machines would then write.
 */
export async function assertFree(vim: Vim, files: readonly string[], exceptId?: string): Promise<void> {
  if (files.length === 0) return;
  for (const { reference, properties } of await readAll(vim, "VirtualMachine", BACKING_PATHS)) {
    const view = viewOf(reference, properties);
    if (view === undefined || view.machine.id === exceptId) continue;
    const shared = view.disks.flatMap((disk) => disk.files).find((file) => files.includes(file));
    if (shared === undefined) continue;
    throw new Fault("IMAGE_IN_USE", `The disk "${shared}" is in the machine "${String(properties["name"])}"`, {
      details: { file: shared, machineId: view.machine.id },
      hint: "Detach it there first; two machines that write to one disk destroy it",
    });
  }
}

/** Throws DISK_FULL when the datastore has less than `bytes` free. */
export async function assertRoom(vim: Vim, datastore: string, bytes: number): Promise<void> {
  if (bytes === 0) return;
  const found = (await readDatastores(vim)).find((one) => one.name === datastore);
  if (found === undefined) throw new Fault("NOT_FOUND", `vCenter has no datastore "${datastore}"`);
  if (found.freeBytes >= bytes) return;
  throw new Fault(
    "DISK_FULL",
    `The datastore "${datastore}" has ${found.freeBytes} bytes free, and ${bytes} are needed`,
    {
      details: { datastore, freeBytes: found.freeBytes, neededBytes: bytes },
      hint: "Free space there, or configure another datastore",
    },
  );
}

export async function readInventory(vim: Vim): Promise<Inventory> {
  const machines = await readAll(vim, "VirtualMachine", MACHINE_PATHS);
  const networks = await readAll(vim, "Network", ["name"]);
  const groups = await readAll(vim, "DistributedVirtualPortgroup", ["name", "key"]);
  const names = new Map(groups.map(({ properties }) => [String(properties["key"]), String(properties["name"])]));
  return {
    machines: machines.flatMap(({ reference, properties }) => {
      const view = viewOf(reference, properties);
      return view === undefined ? [] : [inventoryOf(view, String(properties["name"]), (key) => names.get(key) ?? key)];
    }),
    networks: [...networks, ...groups]
      .map(({ properties }) => String(properties["name"]))
      .filter((name, index, all) => all.indexOf(name) === index)
      .sort()
      .map((name) => ({ name })),
    datastores: await readDatastores(vim),
  };
}

async function readDatastores(vim: Vim): Promise<Inventory["datastores"]> {
  const found = await readAll(vim, "Datastore", ["name", "summary.capacity", "summary.freeSpace"]);
  return found.map(({ properties }) => ({
    name: String(properties["name"]),
    capacityBytes: Number(properties["summary.capacity"] ?? 0),
    freeBytes: Number(properties["summary.freeSpace"] ?? 0),
  }));
}
