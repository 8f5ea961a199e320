/**
 * What vCenter says of a machine, in our words. Pure.
 *
 * Ours are known by `extraConfig`, which travels with a machine through renames, moves and another vCenter: `leeward.op` (the
 * operation that made it), `leeward.name` (what the operation called it), `leeward.disks` (disk id → file), and `leeward.id`, the
 * machine's own id: a clone that a person makes carries all of it but has another id, and is not ours to destroy.
 */
import { Fault } from "#model/fault.ts";
import type { InventoryMachine, Machine, MachineConfig, MachineDisk } from "#ports/hypervisor.ts";
import { urlOfDatastorePath } from "./datastore-path.ts";
import type { Properties } from "./properties.ts";
import type { AnyVirtualDevice, OptionValue, Reference } from "./vim-types.ts";

export const OPERATION_KEY = "leeward.op";
export const ID_KEY = "leeward.id";
export const NAME_KEY = "leeward.name";
export const DISKS_KEY = "leeward.disks";

/** Everything below reads from these. */
export const MACHINE_PATHS = [
  "name",
  "runtime.powerState",
  "summary.runtime.bootTime",
  "config.instanceUuid",
  "config.firmware",
  "config.hardware.numCPU",
  "config.hardware.memoryMB",
  "config.hardware.device",
  "config.extraConfig",
  "guest.toolsRunningStatus",
  "guest.ipAddress",
] as const;

export interface MachineView {
  readonly reference: Reference;
  readonly machine: Machine;
  readonly devices: readonly AnyVirtualDevice[];
  readonly disks: readonly AttachedDisk[];
  /** Disk id → file, as it was attached by us. */
  readonly diskIds: ReadonlyMap<string, string>;
  /** Made by Leeward: only such a machine is changed or destroyed by it. */
  readonly ours: boolean;
}

export interface AttachedDisk {
  readonly key: number;
  /** The first file of the chain. A snapshot makes the machine write to another, and the disk is still this one. */
  readonly file: string;
  /** All files of the chain. */
  readonly files: readonly string[];
  readonly sizeBytes: number;
  readonly uuid?: string;
}

/** undefined for a machine that vCenter knows no configuration of: it is being made, or its files cannot be reached. */
export function viewOf(reference: Reference, properties: Properties): MachineView | undefined {
  const id = properties["config.instanceUuid"];
  const devices = properties["config.hardware.device"];
  if (typeof id !== "string" || !Array.isArray(devices)) return undefined;
  const known = devices as readonly AnyVirtualDevice[]; // Typed by the wire, soap.ts.
  const options = new Map(
    ((properties["config.extraConfig"] ?? []) as readonly OptionValue[]).map((one) => [one.key, String(one.value)]),
  );
  const operationId = options.get(OPERATION_KEY);
  const disks = attachedDisks(known);
  const diskIds = readDiskIds(options.get(DISKS_KEY));
  const power = powerOf(properties);
  const bootTime = properties["summary.runtime.bootTime"];
  const machine: Machine = {
    id,
    operationId: operationId ?? "",
    name: options.get(NAME_KEY) ?? String(properties["name"]),
    power,
    config: configOf(properties),
    forwards: [],
    disks: [...diskIds]
      .filter(([, file]) => disks.some((disk) => disk.file === file))
      .map(([diskId, file]): MachineDisk => ({ diskId, url: urlOfDatastorePath(file) })),
    consoleTail: "",
    ...(power === "off" || typeof bootTime !== "string" ? {} : { startedAtMs: Date.parse(bootTime) }),
    ...guestOf(properties, power),
  };
  return {
    reference,
    machine,
    devices: known,
    disks,
    diskIds,
    ours: operationId !== undefined && options.get(ID_KEY) === id,
  };
}

/** For the inventory; `networkName` knows distributed port groups by their key. */
export function inventoryOf(view: MachineView, name: string, networkName: (key: string) => string): InventoryMachine {
  return {
    id: view.machine.id,
    name,
    power: view.machine.power,
    config: view.machine.config,
    disks: view.disks.map(({ file, sizeBytes, uuid }) => ({
      url: urlOfDatastorePath(file),
      sizeBytes,
      ...(uuid === undefined ? {} : { serial: uuid }),
    })),
    networks: view.devices.flatMap((device) => {
      if (!("macAddress" in device) || device.backing === undefined) return [];
      const { backing } = device;
      if (backing.$type === "VirtualEthernetCardDistributedVirtualPortBackingInfo")
        return [{ name: networkName(backing.port.portgroupKey ?? ""), mac: device.macAddress ?? "" }];
      return "deviceName" in backing ? [{ name: backing.deviceName, mac: device.macAddress ?? "" }] : [];
    }),
  };
}

function powerOf(properties: Properties): Machine["power"] {
  switch (properties["runtime.powerState"]) {
    case "poweredOn":
      return "running";
    case "suspended":
      return "paused";
    default:
      return "off";
  }
}

function configOf(properties: Properties): MachineConfig {
  return {
    cpus: Number(properties["config.hardware.numCPU"] ?? 0),
    memoryMiB: Number(properties["config.hardware.memoryMB"] ?? 0),
    firmware: properties["config.firmware"] === "efi" ? "uefi" : "bios",
  };
}

function guestOf(properties: Properties, power: Machine["power"]): Pick<Machine, "guest"> {
  if (power !== "running" || properties["guest.toolsRunningStatus"] === undefined) return {};
  const address = properties["guest.ipAddress"];
  return {
    guest: {
      ready: properties["guest.toolsRunningStatus"] === "guestToolsRunning",
      addresses: typeof address === "string" && address !== "" ? [address] : [],
    },
  };
}

/** Disks in files; a raw device mapping or a persistent-memory disk has another kind of backing and is not ours to attach. */
function attachedDisks(devices: readonly AnyVirtualDevice[]): readonly AttachedDisk[] {
  return devices.flatMap((device): readonly AttachedDisk[] => {
    if (!("capacityInKB" in device) || device.backing === undefined || !("fileName" in device.backing)) return [];
    const files: string[] = [];
    let uuid: string | undefined;
    for (let at: FileInChain | undefined = device.backing; at !== undefined; at = at.parent) {
      files.push(at.fileName);
      uuid ??= at.uuid;
    }
    const sizeBytes = device.capacityInBytes ?? device.capacityInKB * 1024;
    return [{ key: device.key, file: files.at(-1) ?? "", files, sizeBytes, ...(uuid === undefined ? {} : { uuid }) }];
  });
}

interface FileInChain {
  readonly fileName: string;
  readonly uuid?: string;
  readonly parent?: FileInChain;
}

function readDiskIds(text: string | undefined): ReadonlyMap<string, string> {
  if (text === undefined || text === "") return new Map();
  try {
    return new Map(Object.entries(JSON.parse(text) as Record<string, string>)); // Written by us; a person may have edited it.
  } catch (cause) {
    throw new Fault("PROTOCOL_INVALID", `"${DISKS_KEY}" of a machine is "${text}", expected what was written there`, {
      cause,
    });
  }
}
