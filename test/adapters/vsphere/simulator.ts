/** One vCenter of our own (tools/vsphere) for the length of a test, with its datastore as a folder and its guests as processes. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { access, mkdir, mkdtemp, rename, rm, truncate, writeFile } from "node:fs/promises";
import { Agent, request } from "undici";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import type { MachineDisk } from "#ports/hypervisor.ts";
import { systemClock } from "../../../src/adapters/clock/system-clock.ts";
import {
  createVsphereHypervisor,
  type VsphereHypervisor,
  type VsphereOptions,
} from "../../../src/adapters/vsphere/vsphere-hypervisor.ts";
import { findTool } from "../../../src/embedded/tools.ts";
import { buildVsphereSimulator } from "../../../scripts/vsphere-simulator.ts";

export interface Simulator extends AsyncDisposable {
  readonly url: string;
  readonly thumbprint: string;
  readonly datastore: string;
  /** The datastore's files. */
  readonly folder: string;
  readonly pid: number;
  readonly options: VsphereOptions;
  /** A new driver, with a session of its own that ends with the simulator. */
  connect(options?: Partial<VsphereOptions>): VsphereHypervisor;
  /** What tools/vsphere/world.go serves below /test. */
  control(name: string, query?: Readonly<Record<string, string>>): Promise<string>;
  /** A disk on the datastore: a descriptor, and `image` (moved there, from the same file system) or `sizeBytes` of nothing as its bytes. */
  makeDisk(diskId: string, bytes: { readonly image: string } | { readonly sizeBytes: number }): Promise<MachineDisk>;
  bytesOf(disk: MachineDisk): string;
}

const CREDENTIALS = { userName: "leeward", password: "correct horse" };

export async function startSimulator({ machines = 2 } = {}): Promise<Simulator> {
  const program = await buildVsphereSimulator();
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-vc-"));
  const child = spawn(program, ["-qemu", await findTool("qemu-system-x86_64"), "-machines", String(machines)], {
    env: { ...process.env, TMPDIR: folder },
    stdio: ["pipe", "pipe", "pipe"],
  });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => (said = `${said}${text}`.slice(-10_000)));
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  const line = await Promise.race([
    new Promise<string>((resolve) => createInterface(child.stdout).once("line", resolve)),
    ended.then(() => assert.fail(`The simulator ended: ${said}`)),
  ]);
  const world = JSON.parse(line) as { url: string; thumbprint: string; datastore: string; folder: string };
  const agent = new Agent({ connect: { rejectUnauthorized: false } }); // A test's own questions, on the loopback.
  const options: VsphereOptions = {
    url: world.url,
    trust: { by: "thumbprint", sha256: world.thumbprint },
    credentials: () => Promise.resolve(CREDENTIALS),
    clock: systemClock,
    placement: { folder: "DC0/vm", resourcePool: "DC0/host/DC0_C0/Resources", datastore: world.datastore },
    networks: { user: "DC0/network/VM Network", isolated: "DC0/network/DC0_DVPG0" },
  };
  const drivers: VsphereHypervisor[] = [];
  const bytesOf = (disk: MachineDisk): string =>
    path.join(world.folder, new URL(disk.url).pathname.replace(/\.vmdk$/, "-flat.vmdk"));
  assert.ok(child.pid !== undefined);
  return {
    ...world,
    pid: child.pid,
    options,
    bytesOf,
    connect: (changes = {}) => {
      const driver = createVsphereHypervisor({ ...options, ...changes });
      drivers.push(driver);
      return driver;
    },
    control: async (name, query = {}) => {
      const answer = await request(new URL(`/test/${name}?${new URLSearchParams(query).toString()}`, world.url), {
        dispatcher: agent,
      });
      const text = await answer.body.text();
      assert.equal(answer.statusCode, 200, `${name} ${JSON.stringify(query)}: ${text}`);
      return text;
    },
    makeDisk: async (diskId, bytes) => {
      const disk = { diskId, url: `datastore://${world.datastore}/guest/${diskId}.vmdk` };
      await mkdir(path.join(world.folder, "guest"), { recursive: true });
      await writeFile(path.join(world.folder, "guest", `${diskId}.vmdk`), "# Disk DescriptorFile\nversion=1\n");
      if ("image" in bytes) await rename(bytes.image, bytesOf(disk));
      else {
        await writeFile(bytesOf(disk), "");
        await truncate(bytesOf(disk), bytes.sizeBytes);
      }
      return disk;
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all(drivers.map((driver) => driver[Symbol.asyncDispose]()));
      await agent.destroy();
      child.stdin.end(); // It ends with its guests.
      const timer = setTimeout(() => child.kill("SIGKILL"), 10_000);
      await ended;
      clearTimeout(timer);
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export async function isThere(file: string): Promise<boolean> {
  return await access(file).then(
    () => true,
    () => false,
  );
}
