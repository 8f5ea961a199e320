/** Fresh disks of the demo's machine, served over NBD by QEMU's own server: a block device that owes nothing to our code. */
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { MachineDisk } from "#ports/hypervisor.ts";
import { createGuestImages, type GuestImages } from "../../src/embedded/guest.ts";

export interface GuestDisks extends AsyncDisposable {
  readonly folder: string;
  readonly images: GuestImages;
  readonly disks: readonly MachineDisk[];
  /** Ends the servers as a crash would. */
  killServers(): Promise<void>;
  startServers(): Promise<void>;
  /** An empty, sparse image of the disk's size, served as long as this lives; the same one each time. */
  spare(
    diskId: "system" | "data",
  ): Promise<{ readonly url: string; readonly sizeBytes: number; readonly image: string }>;
}

export async function serveGuestDisks(options: { readonly recordsPerSecond?: number } = {}): Promise<GuestDisks> {
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-guest-"));
  const images = await createGuestImages(folder, options);
  const sockets = { system: path.join(folder, "system.sock"), data: path.join(folder, "data.sock") };
  let servers: readonly ChildProcess[] = [];
  const spares = new Map<string, ChildProcess>();
  const startServers = async (): Promise<void> => {
    servers = await Promise.all([
      serve("system", images.system, sockets.system),
      serve("data", images.data, sockets.data),
    ]);
  };
  const killServers = async (): Promise<void> => {
    await Promise.all(servers.map((server) => kill(server)));
    servers = [];
  };
  await startServers();
  return {
    folder,
    images,
    disks: [
      { diskId: "system", url: `nbd+unix:///system?socket=${sockets.system}`, bootIndex: 1 },
      { diskId: "data", url: `nbd+unix:///data?socket=${sockets.data}` },
    ],
    killServers,
    startServers,
    async spare(diskId) {
      const [image, socket] = ["img", "sock"].map((kind) => path.join(folder, `${diskId}-spare.${kind}`)) as [
        string,
        string,
      ];
      const { size: sizeBytes } = await stat(images[diskId]);
      if (!spares.has(diskId)) {
        await writeFile(image, "");
        await truncate(image, sizeBytes);
        spares.set(diskId, await serve(diskId, image, socket));
      }
      return { url: `nbd+unix:///${diskId}?socket=${socket}`, sizeBytes, image };
    },
    [Symbol.asyncDispose]: async () => {
      await killServers();
      await Promise.all([...spares.values()].map(kill));
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function serve(name: string, image: string, socket: string): Promise<ChildProcess> {
  await rm(socket, { force: true });
  const server = spawn(
    "qemu-nbd",
    ["--persistent", "--shared=0", "-f", "raw", "--discard=unmap", "-x", name, "-k", socket, image],
    { stdio: "ignore" },
  );
  for (let waited = 0; waited < 10_000 && !existsSync(socket); waited += 20) await sleep(20);
  return server;
}

async function kill(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null) return;
  const gone = new Promise((resolve) => server.once("exit", resolve));
  server.kill("SIGKILL");
  await gone;
}
