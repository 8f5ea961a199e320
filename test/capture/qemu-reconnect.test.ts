/** A machine whose tap is killed: QEMU with `reconnect-delay` waits, the tap comes back, and no request fails. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { connectTap } from "../../src/capture/tap/tap-client.ts";
import { patterned } from "../nbd/memory-device.ts";

const TAP = new URL("../../src/main/tap.ts", import.meta.url).pathname;

test("QEMU waits for a tap that was killed, and goes on without an error", { timeout: 60_000 }, async (context) => {
  const folder = mkdtempSync(join(tmpdir(), "leeward-reconnect-"));
  const image = join(folder, "disk.img");
  const socket = join(folder, "nbd.sock");
  const controlSocket = join(folder, "control.sock");
  const config = join(folder, "tap.json");
  writeFileSync(image, patterned(8 << 20));
  writeFileSync(
    config,
    JSON.stringify({
      controlSocket,
      disks: [{ diskId: "disk", image, socket, stateDir: folder }],
      logFile: join(folder, "log"),
    }),
  );
  const children: ChildProcess[] = [];

  async function startTap(): Promise<ChildProcess> {
    const child = spawn(process.execPath, [TAP, "--config", config], { stdio: ["ignore", "pipe", "inherit"] });
    children.push(child);
    await once(child.stdout!, "data");
    return child;
  }

  try {
    const first = await startTap();
    const qemu = spawn(
      "qemu-io",
      ["--image-opts", `driver=nbd,server.type=unix,server.path=${socket},export=disk,reconnect-delay=30`],
      { stdio: ["pipe", "pipe", "pipe"] },
    );
    children.push(qemu);
    let output = "";
    for (const stream of [qemu.stdout, qemu.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk.toString()));
    const said = async (text: RegExp, times: number): Promise<void> => {
      const until = performance.now() + 40_000;
      while ((output.match(new RegExp(text, "g")) ?? []).length < times) {
        assert.ok(performance.now() < until, `QEMU said: ${output}`);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    };
    qemu.stdin.write("write -P 1 0 64k\n");
    await said(/wrote 65536/, 1);
    first.kill("SIGKILL");
    await once(first, "exit");
    const killed = performance.now();
    qemu.stdin.write("write -f -P 2 64k 64k\n");
    await startTap();
    const up = performance.now() - killed;
    await said(/wrote 65536/, 2);
    context.diagnostic(
      `the tap was back after ${up.toFixed(0)} ms, the write took ${(performance.now() - killed).toFixed(0)} ms`,
    );
    // One at a time: qemu-io reads no second line of what came together.
    qemu.stdin.write("read -P 1 0 64k\n");
    await said(/read 65536/, 1);
    qemu.stdin.write("read -P 2 64k 64k\n");
    await said(/read 65536/, 2);
    qemu.stdin.write("quit\n");
    if (qemu.exitCode === null) await once(qemu, "exit");
    assert.doesNotMatch(output, /fail|error|Pattern/i);
    const client = await connectTap(controlSocket);
    const [status] = await client.disks();
    assert.equal(status?.tracker.generation, 2);
    assert.equal(status.unsyncedBytes, 8 << 20);
    await client.stop();
    await client.closed;
    const bytes = readFileSync(image);
    assert.ok(
      bytes.subarray(0, 65536).every((byte) => byte === 1) && bytes.subarray(65536, 131072).every((byte) => byte === 2),
    );
  } finally {
    for (const child of children) if (child.exitCode === null) child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  }
});
