/** What is asked of a machine's QEMU, and told to it, one connection for each: QEMU listens to one at a time. */
import { isFault } from "#model/fault.ts";
import { CONTROL_SOCKET } from "./command-line.ts";
import { openControlSocket, type ControlSocket } from "./control-socket.ts";
import { findProcess, type ProcessIdentity } from "./process-identity.ts";

/** Who only looks does not wait for one that is busy. */
const STATUS_MS = 5_000;

/** The line to a machine's QEMU, reached through its folder: paths of sockets have 107 bytes only. */
export async function openControl(running: ProcessIdentity, answerMs?: number): Promise<ControlSocket> {
  return await openControlSocket(`/proc/${running.pid}/cwd/${CONTROL_SOCKET}`, answerMs);
}

/** Asked of QEMU, because a machine that lost its disks is paused and yet has a process. */
export async function powerOf(running: ProcessIdentity): Promise<"running" | "paused"> {
  const status = (await command(running, "query-status", STATUS_MS).catch((error: unknown) => {
    // Busy or just ending: a process there is a machine that must be counted as running.
    if (isFault(error, "HYPERVISOR_UNAVAILABLE")) return { status: "running" };
    throw error;
  })) as { readonly status: string };
  return status.status === "running" || status.status === "prelaunch" ? "running" : "paused";
}

export async function isUp(running: ProcessIdentity): Promise<boolean> {
  try {
    const status = (await command(running, "query-status", STATUS_MS)) as { readonly status: string };
    return status.status === "running";
  } catch (error) {
    if (isFault(error, "HYPERVISOR_UNAVAILABLE")) return false; // Its socket is not there yet.
    throw error;
  }
}

export async function command(running: ProcessIdentity, name: string, timeoutMs?: number): Promise<unknown> {
  using control: ControlSocket = await openControl(running, timeoutMs);
  return await control.execute(name);
}

/** A QEMU that ends while it is spoken to is what the caller wanted. */
export async function unlessGone(folder: string, work: () => Promise<unknown>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (findProcess(folder) !== undefined) throw error;
  }
}
