/**
 * A machine as QEMU's command line. Pure: the same record gives the same words.
 *
 * Disks are NBD clients inside QEMU. When their server goes away, requests wait `reconnect-delay` for it to come back; after that
 * the machine is paused rather than shown an I/O error (`werror=stop`), so that a disk server may be restarted under a running
 * machine, and a file system is never remounted read-only because of us.
 *
 * Source: QEMU 7.2, qapi/block-core.json (BlockdevOptionsNbd), qemu-options.hx (-netdev user).
 */
import { Fault } from "#model/fault.ts";
import type { MachineDisk } from "#ports/hypervisor.ts";
import type { MachineRecord } from "./machine-file.ts";
import { PID_FILE } from "./process-identity.ts";

export const CONSOLE_FILE = "console.log";
export const QEMU_LOG_FILE = "qemu.log";
/** Relative, in the machine's folder: socket paths may have 107 bytes only. */
export const CONTROL_SOCKET = "control.sock";

const RECONNECT_SECONDS = 60;
/** How long QEMU tries to reach a disk's server at start. */
export const OPEN_SECONDS = 10;
/** virtio-blk shows the guest so much of a serial number. */
const SERIAL_LENGTH = 20;

export interface CommandLineOptions {
  /** "tcg" emulates anywhere; "kvm" where it works. */
  readonly accelerator: string;
  readonly mac: string;
}

export function commandLine(machine: MachineRecord, options: CommandLineOptions): readonly string[] {
  if (machine.config.firmware !== "bios") {
    throw new Fault(
      "REFUSED",
      `Machine "${machine.name}" has firmware "${machine.config.firmware}", and this hypervisor starts "bios" only`,
      {
        hint: "Use a hypervisor that has it, or export the point and boot it there",
      },
    );
  }
  return [
    ...["-nodefaults", "-no-user-config", "-name", `guest=${machine.id}`, "-display", "none"],
    ...["-machine", "q35", "-accel", options.accelerator, "-cpu", "max"],
    ...["-smp", String(machine.config.cpus), "-m", `${machine.config.memoryMiB}M`],
    ...["-pidfile", PID_FILE],
    ...["-chardev", `file,id=console,path=${CONSOLE_FILE}`, "-serial", "chardev:console"],
    ...[
      "-chardev",
      `socket,id=control,path=${CONTROL_SOCKET},server=on,wait=off`,
      "-mon",
      "chardev=control,mode=control",
    ],
    ...["-device", "virtio-rng-pci"],
    ...machine.disks.flatMap(diskWords),
    ...networkWords(machine, options.mac),
  ];
}

function diskWords(disk: MachineDisk, index: number): readonly string[] {
  const node = firstNode(index);
  const block = nbdNode(disk.url, { node, openSeconds: OPEN_SECONDS });
  const device = {
    driver: "virtio-blk-pci",
    drive: node,
    serial: disk.diskId.slice(0, SERIAL_LENGTH),
    werror: "stop",
    rerror: "stop",
    ...(disk.bootIndex === undefined ? {} : { bootindex: disk.bootIndex }),
  };
  return ["-blockdev", JSON.stringify(block), "-device", JSON.stringify(device)];
}

/** The block node that a disk has when QEMU starts; after a move it has another (disk-move.ts). */
export function firstNode(index: number): string {
  return `disk${index}`;
}

/** A disk's server as a block node, the same at start and as the target of a move. */
export function nbdNode(
  url: string,
  { node, openSeconds }: { readonly node: string; readonly openSeconds: number },
): Readonly<Record<string, unknown>> {
  const { server, exportName } = parseNbdUrl(url);
  return {
    driver: "nbd",
    "node-name": node,
    server,
    export: exportName,
    "reconnect-delay": RECONNECT_SECONDS,
    "open-timeout": openSeconds,
    discard: "unmap",
    "detect-zeroes": "off",
  };
}

/** `isolated` can be called from the host through its forwards, and reaches nothing itself, not even the host. */
function networkWords(machine: MachineRecord, mac: string): readonly string[] {
  const forwards = machine.forwards.map((one) => `,hostfwd=tcp:127.0.0.1:${one.hostPort}-:${one.guestPort}`).join("");
  const restricted = machine.network.mode === "isolated" ? "on" : "off";
  // No boot ROM: the machine boots from its disks only.
  return [
    "-netdev",
    `user,id=net0,restrict=${restricted}${forwards}`,
    "-device",
    `virtio-net-pci,netdev=net0,mac=${mac},romfile=`,
  ];
}

export type NbdServer =
  | { readonly type: "unix"; readonly path: string }
  | { readonly type: "inet"; readonly host: string; readonly port: string };

/**
 * `nbd+unix:///NAME?socket=PATH` or `nbd://HOST:PORT/NAME`.
 *
 * Throws: CONFIG_INVALID.
 * Source: github.com/NetworkBlockDevice/nbd, doc/uri.md
 */
export function parseNbdUrl(url: string): { readonly server: NbdServer; readonly exportName: string } {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  const exportName = decodeURIComponent(parsed?.pathname.slice(1) ?? "");
  const socket = parsed?.searchParams.get("socket");
  if (parsed?.protocol === "nbd+unix:" && socket) return { server: { type: "unix", path: socket }, exportName };
  if (parsed?.protocol === "nbd:" && parsed.hostname !== "") {
    const host = parsed.hostname.replace(/^\[(.*)\]$/, "$1");
    return { server: { type: "inet", host, port: parsed.port === "" ? "10809" : parsed.port }, exportName };
  }
  throw new Fault("CONFIG_INVALID", `Disk URL "${url}", expected nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME`);
}
