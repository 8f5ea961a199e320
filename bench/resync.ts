/**
 * A resync against a full sweep, from a real tap over a line that counts every byte to a real mover: how much crosses the line for a random 1 % of single
 * blocks that changed, and how long it takes.
 *
 * `node bench/resync.ts [--mib N] [--share S] [--delay-ms D]`; `--delay-ms`: on the line, each way.
 */
import { randomBytes } from "node:crypto";
import { closeSync, openSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { BLOCK_SIZE } from "#model/units.ts";
import { memoryStore } from "../src/adapters/memory/memory-store.ts";
import { seededRandom } from "../test/capture/seeded-random.ts";
import { startMoverTarget } from "../test/support/mover-target.ts";
import { eventually, startSourceSite, testOrder } from "../test/support/source-site.ts";
import { startWan } from "../test/support/wan.ts";
import { verdict } from "./system.ts";

const { values } = parseArgs({
  options: {
    mib: { type: "string", default: "512" },
    share: { type: "string", default: "0.01" },
    "delay-ms": { type: "string", default: "0" },
  },
});
const blocks = (Number(values.mib) * 2 ** 20) / BLOCK_SIZE;
const PATIENCE_MS = 600_000;

const site = await startSourceSite();
const target = await startMoverTarget({
  authority: site.authority,
  store: memoryStore(),
  diskBytes: [blocks * BLOCK_SIZE],
});
const wan = await startWan(() => target.port, Number(values["delay-ms"]));
try {
  const image = randomBytes(blocks * BLOCK_SIZE);
  const machine = await site.addMachine("machine-0", [{ diskId: "disk-0", image }], { threads: true });
  const members = [{ machine: machine.name, disks: [{ diskId: "disk-0", source: machine.sources[0]! }] }];
  const unsynced = async (): Promise<number> => {
    const { disks } = await site.processServer.groupState({ groupId: "group" });
    return disks[0] === undefined || disks[0].sizeBytes === 0 ? Infinity : disks[0].unsyncedBytes;
  };
  /** Seconds from the first look at an unsynced disk until nothing of it is left. */
  const sweep = async (what: string): Promise<number> => {
    await eventually(
      `${what} begins`,
      async () => Number.isFinite(await unsynced()) && (await unsynced()) > 0,
      PATIENCE_MS,
    );
    const began = performance.now();
    await eventually(`${what} ends`, async () => (await unsynced()) === 0, PATIENCE_MS);
    return (performance.now() - began) / 1_000;
  };

  machine.startAgent();
  await site.processServer.putOrder({ signed: site.sign(testOrder("group", wan.port, members)) });
  const fullSeconds = await sweep("the initial sync");
  const fullBytes = wan.bytes;

  await machine.loseAgent();
  await machine.killTap();
  rmSync(join(site.folder, machine.name, "intent"), { recursive: true }); // What the tap knew is gone: all of the disk is swept.
  const random = seededRandom(1);
  const changed = new Set<number>();
  while (changed.size < blocks * Number(values.share)) changed.add(Math.floor(random() * blocks));
  const descriptor = openSync(machine.images[0]!, "r+");
  for (const block of changed) writeSync(descriptor, randomBytes(BLOCK_SIZE), 0, BLOCK_SIZE, block * BLOCK_SIZE);
  closeSync(descriptor);
  const before = wan.bytes;
  machine.startAgent();
  const resyncSeconds = await sweep("the resync");
  const different = changed.size * BLOCK_SIZE;

  verdict("resync, bytes over the WAN / bytes different", (wan.bytes - before) / different, { atMost: 1.1 });
  verdict(
    "resync / full sweep, time",
    resyncSeconds / fullSeconds,
    { atMost: 1 },
    `${resyncSeconds.toFixed(2)} s against ${fullSeconds.toFixed(2)} s and ${Math.round(fullBytes / 2 ** 20)} MiB`,
  );
} finally {
  await wan.close();
  await target.close();
  await site.close();
}
