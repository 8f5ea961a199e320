/**
 * Machines on a hypervisor. Every call is idempotent and finds what it made by `operationId`, never by name.
 *
 * Errors: HYPERVISOR_UNAVAILABLE (retry), MACHINE_NOT_STARTED (with the end of its console), NOT_FOUND, TOOL_MISSING.
 */
export interface Hypervisor {
  readonly kind: string;
  /** What this one can do; callers plan by it, and the contract suite holds it to its word. */
  readonly capabilities?: HypervisorCapabilities;
  /** Create (or find) a machine that is powered off. The same operation and name yields the same machine. */
  createMachine(request: {
    readonly operationId: string;
    readonly name: string;
    readonly config: MachineConfig;
    readonly disks: readonly MachineDisk[];
    readonly network: MachineNetwork;
  }): Promise<Machine>;
  start(machineId: string): Promise<Machine>;
  /** Ask the guest to shut down; resolves when it is off. TIMED_OUT after `timeoutMs`: then it still runs. */
  shutdown(machineId: string, options: { readonly timeoutMs: number }): Promise<Machine>;
  powerOff(machineId: string): Promise<Machine>;
  inspect(machineId: string): Promise<Machine>;
  list(filter?: { readonly operationId?: string }): Promise<readonly Machine[]>;
  /** Power off and forget; not there is no error. Disks are not touched. */
  destroy(machineId: string): Promise<void>;
  /** The disk is in the machine afterwards, once. REFUSED while it runs without `hotPlug`; IMAGE_IN_USE with `exclusiveDisks`. */
  attachDisk?(machineId: string, disk: MachineDisk): Promise<Machine>;
  /** The disk is not in the machine afterwards; its bytes are not touched. */
  detachDisk?(machineId: string, diskId: string): Promise<Machine>;
  /**
   * Move a disk of a running machine to another block server without a restart. Begins or looks, and returns at once: asked again until "done", over
   * restarts of whoever asks, of the caller's peer and of the machine, it goes on or begins again. To the guest it is a pause. When "done" the
   * machine's disk has the new URL, at every later start too, and nothing reads or writes at the old one any more. The URL that the disk has
   * already: whatever move is under way is given up, and it is "done".
   *
   * `sizeBytes` is that of both ends: IMAGE_INVALID otherwise. REFUSED when the machine is off. PEER_UNREACHABLE, DISK_FULL and
   * HYPERVISOR_UNAVAILABLE are passing: the guest runs on at the old URL, and the next call goes on.
   */
  moveDisk?(
    machineId: string,
    request: { readonly diskId: string; readonly url: string; readonly sizeBytes: number },
  ): Promise<DiskMove>;
  /** Everything there, ours or not; only where there is more than what we made. */
  inventory?(): Promise<Inventory>;
}

/** Where hypervisors differ. A caller asks this and not `kind`. */
export interface HypervisorCapabilities {
  /** How a disk is given: by the URL of a block server, or as a file on a datastore. */
  readonly disks: "nbd" | "datastore";
  readonly firmware: readonly MachineConfig["firmware"][];
  /** Ports of the guest appear on this host's loopback; otherwise the guest is reached at its own address. */
  readonly forwards: boolean;
  /** `consoleTail` holds what the machine's serial console says; otherwise it is empty. */
  readonly console: boolean;
  /** Disks come and go while the machine runs. */
  readonly hotPlug: boolean;
  /** A disk that is in one machine is refused to another. */
  readonly exclusiveDisks: boolean;
  /** `moveDisk`: a running machine's disk can be moved to another block server. */
  readonly movesDisks: boolean;
}

export interface DiskMove {
  readonly state: "copying" | "done";
  readonly copiedBytes: number;
  /** Of this move; grows when the guest writes to what was copied. */
  readonly totalBytes: number;
}

/** Neutral of the hypervisor: captured at the source, used at the target, and on the way back. */
export interface MachineConfig {
  readonly cpus: number;
  readonly memoryMiB: number;
  readonly firmware: "bios" | "uefi";
}

export interface MachineDisk {
  readonly diskId: string;
  /** nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME; or, as a file on a datastore, datastore://NAME/FOLDER/FILE.vmdk */
  readonly url: string;
  /** Needed by `create`. */
  readonly sizeBytes?: number;
  /** Make the file on its datastore if it is not there. */
  readonly create?: boolean;
  readonly bootIndex?: number;
}

export interface MachineNetwork {
  /** `isolated`: nothing goes out; only `forwards` come in, on the loopback address. */
  readonly mode: "user" | "isolated";
  readonly mac?: string;
  /** Host port 0 picks a free one. */
  readonly forwards: readonly { readonly hostPort: number; readonly guestPort: number }[];
}

export interface Machine {
  readonly id: string;
  readonly operationId: string;
  readonly name: string;
  readonly power: "off" | "running" | "paused";
  readonly config: MachineConfig;
  readonly forwards: readonly { readonly hostPort: number; readonly guestPort: number }[];
  /** As it was created with, and as they were attached, detached and moved since. */
  readonly disks?: readonly MachineDisk[];
  /** The last lines of the serial console, for a person. */
  readonly consoleTail: string;
  readonly startedAtMs?: number;
  /** How it went off: its guest or somebody else told it to, or its process died. Absent when it has not run, or that cannot be told. */
  readonly wentOff?: "told" | "died";
  /** What the tools inside the guest say; absent when there are none to ask. */
  readonly guest?: { readonly ready: boolean; readonly addresses: readonly string[] };
}

export interface Inventory {
  readonly machines: readonly InventoryMachine[];
  readonly networks: readonly { readonly name: string }[];
  readonly datastores: readonly { readonly name: string; readonly capacityBytes: number; readonly freeBytes: number }[];
}

export interface InventoryMachine {
  /** As `inspect` takes it. */
  readonly id: string;
  /** Not unique. */
  readonly name: string;
  readonly power: Machine["power"];
  readonly config: MachineConfig;
  readonly disks: readonly { readonly url: string; readonly sizeBytes: number; readonly serial?: string }[];
  readonly networks: readonly { readonly name: string; readonly mac: string }[];
}
