/** A tap as a process of its own, over given images, that a test kills and starts again. */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

const PROGRAM = fileURLToPath(new URL("../../src/main/tap.ts", import.meta.url));

export interface TestTap extends AsyncDisposable {
  url(diskId: string): string;
  start(): Promise<void>;
  kill(): Promise<void>;
}

/** It serves when this settles. `folder` is for its own files and must be short: its sockets are there. */
export async function startTestTap(
  folder: string,
  disks: readonly { readonly diskId: string; readonly image: string }[],
): Promise<TestTap> {
  await mkdir(folder, { recursive: true });
  const configFile = path.join(folder, "tap.json");
  const socket = (diskId: string): string => path.join(folder, `${diskId}.sock`);
  await writeFile(
    configFile,
    JSON.stringify({
      controlSocket: path.join(folder, "control.sock"),
      disks: disks.map((disk) => ({ ...disk, socket: socket(disk.diskId), stateDir: folder })),
      logFile: path.join(folder, "tap.log"),
    }),
  );
  let child: ChildProcess | undefined;
  const tap: TestTap = {
    url: (diskId) => `nbd+unix:///${diskId}?socket=${socket(diskId)}`,
    async start() {
      child = spawn(process.execPath, [PROGRAM, "--config", configFile], { stdio: ["ignore", "pipe", "inherit"] });
      await Promise.race([
        once(child.stdout!, "data"),
        once(child, "exit").then(() => Promise.reject(new Error("The tap ended"))),
      ]);
    },
    async kill() {
      const lost = child;
      child = undefined;
      if (lost === undefined || lost.exitCode !== null || lost.signalCode !== null) return;
      const gone = once(lost, "exit");
      lost.kill("SIGKILL");
      await gone;
    },
    [Symbol.asyncDispose]: () => tap.kill(),
  };
  await tap.start();
  return tap;
}
