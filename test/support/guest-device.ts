/** A machine's disk device without a guest: requests of its own, sent through QEMU's control socket in the way that the guest's go. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { openControlSocket, type ControlSocket } from "../../src/adapters/qemu/control-socket.ts";

/** QEMU talks to one at a time: dispose of it before anybody else is to. */
export async function machineControl(folder: string): Promise<ControlSocket> {
  return await openControlSocket(`/proc/${await qemuPid(folder)}/cwd/control.sock`);
}

export async function qemuPid(folder: string): Promise<number> {
  return Number.parseInt(await readFile(path.join(folder, "qemu.pid"), "utf8"), 10);
}

/** `length` bytes of `byte` at `offset` of the machine's disk number `index`; settles when the device was answered. */
export async function writeAsDevice(
  folder: string,
  index: number,
  { offset, length, byte }: { readonly offset: number; readonly length: number; readonly byte: number },
): Promise<void> {
  using line = await machineControl(folder);
  const devices = (await line.execute("query-block")) as readonly {
    readonly qdev: string;
    readonly inserted?: { readonly "node-name": string };
  }[];
  const device = devices.find(({ inserted }) => new RegExp(`^disk${index}(\\.|$)`).test(inserted?.["node-name"] ?? ""));
  assert.ok(device !== undefined, `disk ${index} has a device`);
  const said = (await line.execute("human-monitor-command", {
    arguments: { "command-line": `qemu-io -d ${device.qdev} "write -P ${byte} ${offset} ${length}"` },
    timeoutMs: 90_000,
  })) as string;
  assert.equal(said, "");
}
