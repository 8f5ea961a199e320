/** A machine leaves its export for a tap's image, at a real master target: its export's process and the master target itself may die on the way. */
import assert from "node:assert/strict";
import { readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import type { DiskMove } from "#ports/hypervisor.ts";
import { openSourceStream, ScriptedSource } from "../data-mover/mover-source.ts";
import { writeAsDevice } from "../support/guest-device.ts";
import { startTestTap } from "../support/tap-process.ts";
import { GROUP, run, targetSite, until } from "./target-site.ts";

const BLOCK = 4096;
const BLOCKS = 12_000;
/** Written in the first part only: the rest of the disk is zero, and stays a hole wherever it is moved. */
const WRITTEN = 6_000;

test("a machine leaves its export while that and the master target are killed: a pause, nothing lost, and the copy goes on", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([BLOCKS], 61);
  source.disks[0]!.content.fill(0, WRITTEN * BLOCK);
  await site.prepare(source);
  const stream = await openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 1,
    site: "primary",
  });
  while (source.disks[0]!.unsynced.size > 0) await stream.ship(source.cut({ sweepBlocks: 2_000 }));
  const point = await stream.ship(source.cut({ writes: 0 }));
  stream.close();
  const expected = Buffer.from(source.states.get(point.barrierNumber)!.get("disk-0")!);
  await site.target.masterTarget.fence({ groupId: GROUP, operationId: "failover-1", activeSite: "secondary" });
  const { disks } = await site.target.masterTarget.openExport({
    groupId: GROUP,
    operationId: "failover-1",
    point: "latest",
    mode: "read-write",
  });
  const { url: exportUrl, sizeBytes } = disks[0]!;
  assert.equal(sizeBytes, expected.length);

  const image = join(site.folder, "disk-0.img");
  await writeFile(image, "");
  await truncate(image, sizeBytes);
  const tap = await startTestTap(join(site.folder, "tap"), [{ diskId: "disk-0", image }]);
  site.defer(() => tap.kill());
  const { id } = await site.target.hypervisor.createMachine({
    operationId: "failover-1",
    name: "web-1",
    config: { cpus: 1, memoryMiB: 32, firmware: "bios" },
    disks: [{ diskId: "disk-0", url: exportUrl }],
    network: { mode: "isolated", forwards: [] },
  });
  await site.target.hypervisor.start(id);
  site.defer(() => site.target.hypervisor.destroy(id));
  const folder = join(site.config.stateDir, "machines", id);
  const write = async (block: number, byte: number): Promise<void> => {
    await writeAsDevice(folder, 0, { offset: block * BLOCK, length: BLOCK, byte });
    expected.fill(byte, block * BLOCK, (block + 1) * BLOCK);
  };
  const ask = async (): Promise<DiskMove> =>
    await until("an answer", async () => {
      try {
        return await site.target.hypervisor.moveDisk!(id, { diskId: "disk-0", url: tap.url("disk-0"), sizeBytes });
      } catch (error) {
        if (isFault(error) && error.retryable) return undefined; // As a workflow would: asked again.
        throw error;
      }
    });
  const killExport = (): boolean => process.kill(site.target.exportPids().get("failover-1")!, "SIGKILL");

  await write(1, 0xa1);
  const began = performance.now();
  let move = await ask();
  killExport();
  await write(2, 0xa2); // It waits for the next process, and is answered.
  const copied = (await ask()).copiedBytes;
  await until("the copy goes on", async () => {
    move = await ask();
    return move.state === "done" || move.copiedBytes > copied ? true : undefined;
  });
  killExport();
  await write(3, 0xa3);
  await site.restart();
  await write(BLOCKS - 1, 0xa4);
  assert.equal((await site.target.hypervisor.inspect(id)).power, "running");
  await tap.kill();
  const back = tap.start();
  await write(4, 0xa5);
  await back;
  await until("done", async () => ((move = await ask()).state === "done" ? true : undefined), 120);
  t.diagnostic(`moved ${sizeBytes} bytes in ${(performance.now() - began).toFixed(0)} ms, with four deaths`);
  assert.deepEqual(
    (await site.target.hypervisor.inspect(id)).disks?.map(({ url }) => url),
    [tap.url("disk-0")],
  );

  // The export has what was written up to the pivot, and nobody attached to it; it can go.
  const copy = join(site.folder, "copy.img");
  await run("nbdcopy", [exportUrl, copy]);
  assert.ok((await readFile(copy)).equals(expected));
  await site.target.masterTarget.closeExport({ operationId: "failover-1", discard: false });
  await write(5, 0xa6);
  await site.target.hypervisor.powerOff(id);
  assert.ok((await readFile(image)).equals(expected), "and the tap's image has that and what came after");
  const { blocks } = await stat(image);
  t.diagnostic(`${blocks * 512} bytes of ${sizeBytes} are allocated`);
  assert.ok(blocks * 512 < (WRITTEN + 500) * BLOCK, "what is zero in the point is a hole in the image");

  await site.target.hypervisor.start(id);
  await write(6, 0xa7);
  await site.target.hypervisor.powerOff(id);
  assert.ok((await readFile(image)).equals(expected), "the next start is from the image");
});
