/**
 * What vCenter is asked to make or change, as data. Pure.
 *
 * Device keys are ours only within one request (negative, by which its devices refer to each other); afterwards vCenter's own hold.
 */
import { Fault } from "#model/fault.ts";
import type { MachineConfig, MachineDisk } from "#ports/hypervisor.ts";
import { datastorePathOf } from "./datastore-path.ts";
import { DISKS_KEY, ID_KEY, NAME_KEY, OPERATION_KEY, type AttachedDisk, type MachineView } from "./machine-view.ts";
import type {
  AnyVirtualDeviceBackingInfo,
  AnyVirtualDeviceConfigSpec,
  Typed,
  VirtualDisk,
  VirtualMachineConfigSpec,
} from "./vim-types.ts";

export interface NewMachine {
  readonly operationId: string;
  readonly name: string;
  /** In vCenter: `vmNameOf`. */
  readonly vmName: string;
  readonly instanceUuid: string;
  readonly config: MachineConfig;
  readonly disks: readonly MachineDisk[];
  readonly datastore: string;
  readonly card: AnyVirtualDeviceBackingInfo;
  readonly mac?: string;
}

const CONTROLLER_KEY = -1;
/** A paravirtual SCSI controller has units 0–15, of which 7 is itself. */
const UNITS = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15] as const;
const VM_NAME_LENGTH = 80;
/** Neither the captured configuration nor our disks say which system it is; this one has drivers for both devices we add. */
const GUEST_ID = "otherLinux64Guest";
const KIB = 1024;

/**
 * The name in vCenter: what a person looks for, and the end of the machine's own id. One folder holds a name once, so that of two
 * who create the same machine at once vCenter refuses one.
 */
export function vmNameOf(name: string, instanceUuid: string): string {
  const end = `-leeward-${instanceUuid.slice(0, 8)}`;
  // vCenter escapes some characters and would then not find the name again; half a letter at the end cannot be sent.
  const start = name.replace(/[^\p{L}\p{N}._ -]/gu, "_").slice(0, VM_NAME_LENGTH - end.length);
  return `${start.replace(/[\ud800-\udbff]$/, "")}${end}`;
}

/** Throws: CONFIG_INVALID, REFUSED: a disk that vSphere cannot attach. */
export function newMachineSpec(machine: NewMachine): VirtualMachineConfigSpec {
  const disks = [...machine.disks].sort((left, right) => (left.bootIndex ?? Infinity) - (right.bootIndex ?? Infinity));
  return {
    name: machine.vmName,
    instanceUuid: machine.instanceUuid,
    guestId: GUEST_ID,
    annotation: `Made by Leeward for "${machine.name}", operation ${machine.operationId}`,
    files: { vmPathName: `[${machine.datastore}]` },
    numCPUs: machine.config.cpus,
    memoryMB: machine.config.memoryMiB,
    firmware: machine.config.firmware === "uefi" ? "efi" : "bios",
    extraConfig: [
      option(OPERATION_KEY, machine.operationId),
      option(ID_KEY, machine.instanceUuid),
      option(NAME_KEY, machine.name),
      option(DISKS_KEY, diskIds(disks.map((disk) => [disk.diskId, datastorePathOf(disk.url)]))),
      // So that a guest finds its disks by their UUID and never by their order.
      option("disk.EnableUUID", "TRUE"),
    ],
    deviceChange: [
      add({
        $type: "ParaVirtualSCSIController",
        key: CONTROLLER_KEY,
        busNumber: 0,
        sharedBus: "noSharing",
      }),
      ...disks.map((disk, index) =>
        addDisk(disk, { key: -10 - index, controllerKey: CONTROLLER_KEY, unit: unitAt(index) }),
      ),
      add({
        $type: "VirtualVmxnet3",
        key: -2,
        backing: machine.card,
        connectable: { startConnected: true, allowGuestControl: true, connected: true },
        ...(machine.mac === undefined
          ? { addressType: "generated" }
          : { addressType: "manual", macAddress: machine.mac }),
      }),
    ],
  };
}

/** Throws: CONFIG_INVALID when the machine has no controller of ours, or no place left on it. */
export function attachSpec(view: MachineView, disk: MachineDisk): VirtualMachineConfigSpec {
  const controller = view.devices.find((device) => "sharedBus" in device);
  if (controller === undefined)
    throw new Fault(
      "CONFIG_INVALID",
      `Machine "${view.machine.name}" has no SCSI controller to attach "${disk.diskId}" to`,
    );
  const taken = view.devices
    .filter((device) => device.controllerKey === controller.key)
    .map((device) => device.unitNumber);
  const unit = UNITS.find((one) => !taken.includes(one));
  if (unit === undefined) throw tooManyDisks();
  return {
    extraConfig: [option(DISKS_KEY, diskIds([...view.diskIds, [disk.diskId, datastorePathOf(disk.url)]]))],
    deviceChange: [addDisk(disk, { key: -10, controllerKey: controller.key, unit })],
  };
}

/** After vCenter gave the machine another id than was asked for, because it had that one already. */
export function renamedSpec(id: string): VirtualMachineConfigSpec {
  return { extraConfig: [option(ID_KEY, id)] };
}

/** Without a file operation: the device goes and its bytes stay. */
export function detachSpec(view: MachineView, disks: readonly AttachedDisk[]): VirtualMachineConfigSpec {
  const kept = [...view.diskIds].filter(([, file]) => !disks.some((disk) => disk.file === file));
  return {
    extraConfig: [option(DISKS_KEY, diskIds(kept))],
    deviceChange: view.devices
      .filter((device) => disks.some((disk) => disk.key === device.key))
      .map((device) => ({ $type: "VirtualDeviceConfigSpec", operation: "remove", device })),
  };
}

function addDisk(
  disk: MachineDisk,
  place: { readonly key: number; readonly controllerKey: number; readonly unit: number },
): AnyVirtualDeviceConfigSpec {
  const device: Typed<"VirtualDisk", VirtualDisk> = {
    $type: "VirtualDisk",
    key: place.key,
    controllerKey: place.controllerKey,
    unitNumber: place.unit,
    // Both, also when an existing disk is attached: some releases believe one, and some the other.
    capacityInKB: Math.ceil((disk.sizeBytes ?? 0) / KIB),
    ...(disk.sizeBytes === undefined ? {} : { capacityInBytes: disk.sizeBytes }),
    backing: {
      $type: "VirtualDiskFlatVer2BackingInfo",
      fileName: datastorePathOf(disk.url),
      diskMode: "persistent",
      ...(disk.create === true ? { thinProvisioned: true } : {}),
    },
  };
  return add(device, disk.create === true ? "create" : undefined);
}

function add(device: AnyVirtualDeviceConfigSpec["device"], fileOperation?: "create"): AnyVirtualDeviceConfigSpec {
  return {
    $type: "VirtualDeviceConfigSpec",
    operation: "add",
    ...(fileOperation === undefined ? {} : { fileOperation }),
    device,
  };
}

function unitAt(index: number): number {
  const unit = UNITS[index];
  if (unit === undefined) throw tooManyDisks();
  return unit;
}

function tooManyDisks(): Fault {
  return new Fault(
    "CONFIG_INVALID",
    `A machine has more than ${UNITS.length} disks, which is what one controller takes`,
  );
}

function diskIds(entries: Iterable<readonly [diskId: string, file: string]>): string {
  return JSON.stringify(Object.fromEntries(entries));
}

function option(
  key: string,
  value: string,
): { readonly $type: "OptionValue"; readonly key: string; readonly value: string } {
  return { $type: "OptionValue", key, value };
}
