/**
 * Machines on a hypervisor. Every call is idempotent and finds what it made by `operationId`, never by name.
 *
 * Errors: HYPERVISOR_UNAVAILABLE (retry), MACHINE_NOT_STARTED (with the end of its console), NOT_FOUND, TOOL_MISSING.
 */
export interface Hypervisor {
  readonly kind: string;
  /** Create (or find) a machine that is powered off. The same operation and name yields the same machine. */
  createMachine(request: { readonly operationId: string; readonly name: string; readonly config: MachineConfig; readonly disks: readonly MachineDisk[]; readonly network: MachineNetwork }): Promise<Machine>;
  start(machineId: string): Promise<Machine>;
  /** Ask the guest to shut down; resolves when it is off. TIMED_OUT after `timeoutMs`: then it still runs. */
  shutdown(machineId: string, options: { readonly timeoutMs: number }): Promise<Machine>;
  powerOff(machineId: string): Promise<Machine>;
  inspect(machineId: string): Promise<Machine>;
  list(filter?: { readonly operationId?: string }): Promise<readonly Machine[]>;
  /** Power off and forget; not there is no error. Disks are not touched. */
  destroy(machineId: string): Promise<void>;
}

/** Neutral of the hypervisor: captured at the source, used at the target, and on the way back. */
export interface MachineConfig {
  readonly cpus: number;
  readonly memoryMiB: number;
  readonly firmware: "bios" | "uefi";
}

export interface MachineDisk {
  readonly diskId: string;
  /** nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME */
  readonly url: string;
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
  /** As it was created with. */
  readonly disks?: readonly MachineDisk[];
  /** The last lines of the serial console, for a person. */
  readonly consoleTail: string;
  readonly startedAtMs?: number;
}
