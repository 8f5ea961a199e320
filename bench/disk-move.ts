/**
 * Moving a running machine's disk: how fast it is copied, and for how long the machine is held when it changes over.
 *
 * The machine has no guest; what "writes" is its device. The first move is from `qemu-nbd`, which says what is a hole as an export does, to a tap with a
 * new image; the others go to and fro between two taps, each right after a burst of writes that the new disk has not flushed yet.
 *
 * `node bench/disk-move.ts [--mib 1024] [--holes-gib 16] [--rounds 10] [--burst-mib 16]`
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, open, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { systemClock } from "../src/adapters/clock/system-clock.ts";
import type { ControlSocket } from "../src/adapters/qemu/control-socket.ts";
import { moveDisk } from "../src/adapters/qemu/disk-move.ts";
import { readRecord } from "../src/adapters/qemu/machine-file.ts";
import { createQemuHypervisor } from "../src/adapters/qemu/qemu-hypervisor.ts";
import { machineControl, writeAsDevice } from "../test/support/guest-device.ts";
import { startTestTap } from "../test/support/tap-process.ts";
import { patterned } from "../test/nbd/memory-device.ts";

const MIB = 1 << 20;
const { values } = parseArgs({
  options: {
    mib: { type: "string", default: "1024" },
    "holes-gib": { type: "string", default: "16" },
    rounds: { type: "string", default: "10" },
    "burst-mib": { type: "string", default: "16" },
  },
});
const dataBytes = Number(values.mib) * MIB;
const sizeBytes = dataBytes + Number(values["holes-gib"]) * 1024 * MIB;
const folder = await mkdtemp(join(tmpdir(), "leeward-bench-move-"));
await using cleanUp = new AsyncDisposableStack();
cleanUp.defer(() => rm(folder, { recursive: true, force: true }));

const source = join(folder, "source.img");
await writeFile(source, "");
await truncate(source, sizeBytes);
{
  await using file = await open(source, "r+");
  const piece = patterned(MIB);
  for (let at = 0; at < dataBytes; at += MIB) {
    piece.writeUInt32LE(at / MIB + 1, 0);
    await file.write(piece, 0, MIB, at);
  }
  await file.sync();
}
const sourceSocket = join(folder, "source.sock");
const server = spawn("qemu-nbd", [
  ...["--persistent", "--shared=0", "-f", "raw", "--discard=unmap", "-x", "disk", "-k", sourceSocket, source],
]);
cleanUp.defer(() => void server.kill("SIGKILL"));
while (!existsSync(sourceSocket)) await sleep(20);
const taps = await Promise.all(
  ["one", "two"].map(async (name) => {
    const image = join(folder, `${name}.img`);
    await writeFile(image, "");
    await truncate(image, sizeBytes);
    const tap = await startTestTap(join(folder, name), [{ diskId: "disk", image }]);
    cleanUp.defer(() => tap.kill());
    return { image, url: tap.url("disk") };
  }),
);
const hypervisor = createQemuHypervisor({
  stateFolder: join(folder, "machines"),
  clock: systemClock,
  program: "qemu-system-x86_64",
});
const { id } = await hypervisor.createMachine({
  operationId: "bench",
  name: "bench",
  config: { cpus: 1, memoryMiB: 32, firmware: "bios" },
  disks: [{ diskId: "disk", url: `nbd+unix:///disk?socket=${sourceSocket}` }],
  network: { mode: "isolated", forwards: [] },
});
await hypervisor.start(id);
cleanUp.defer(() => hypervisor.destroy(id));
const machine = join(folder, "machines", id);

const first = await move(taps[0]!.url, 0);
const { blocks } = await stat(taps[0]!.image);
console.log(
  `${dataBytes / MIB} MiB and ${values["holes-gib"]} GiB of holes: ${first.copyMs.toFixed(0)} ms, ${(dataBytes / MIB / (first.copyMs / 1000)).toFixed(0)} MiB/s of data; ` +
    `the new image takes ${((blocks * 512) / MIB).toFixed(0)} MiB`,
);
console.log(`held for ${first.heldMs.toFixed(1)} ms`);
// The way back is over taps, which do not say what is a hole: a smaller disk would do, so only the change-over is of interest.
const held: number[] = [];
if (Number(values["holes-gib"]) === 0) {
  for (let round = 1; round <= Number(values.rounds); round++) {
    held.push((await move(taps[round % 2]!.url, Number(values["burst-mib"]) * MIB)).heldMs);
  }
  held.sort((a, b) => a - b);
  console.log(
    `${held.length} change-overs right after ${values["burst-mib"]} MiB of writes: held for ${held[0]?.toFixed(1)} / ${held[Math.floor(held.length / 2)]?.toFixed(1)} / ${held.at(-1)?.toFixed(1)} ms (least, median, most)`,
  );
}

/** Copy, write a burst, change over. */
async function move(url: string, burstBytes: number): Promise<{ readonly copyMs: number; readonly heldMs: number }> {
  const request = { diskId: "disk", url, sizeBytes };
  const began = performance.now();
  await hypervisor.moveDisk!(id, request);
  for (let ready = false; !ready; await sleep(ready ? 0 : 20)) {
    using line = await machineControl(machine);
    ready = ((await line.execute("query-block-jobs")) as readonly { readonly ready: boolean }[]).every(
      (job) => job.ready,
    );
  }
  const copyMs = performance.now() - began;
  for (let at = 0; at < burstBytes; at += MIB)
    await writeAsDevice(machine, 0, { offset: at, length: MIB, byte: (at / MIB + 1) & 0xff });
  let stoppedAt = 0;
  let heldMs = 0;
  using line = await machineControl(machine);
  const control: ControlSocket = {
    async execute(command, options) {
      if (command === "stop") stoppedAt = performance.now();
      const answer = await line.execute(command, options);
      if (command === "cont") heldMs = performance.now() - stoppedAt;
      return answer;
    },
    [Symbol.dispose]: () => undefined,
  };
  const record = (await readRecord(machine))!;
  assert.equal((await moveDisk({ record, folder: machine, control, clock: systemClock }, request)).state, "done");
  return { copyMs, heldMs };
}
