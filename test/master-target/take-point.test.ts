/** A machine's disks go on from another point within the export that they are in, at a real master target whose processes may die on the way. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import type { TakenPoint } from "#ports/master-target.ts";
import { connectNbd } from "../nbd/nbd-client.ts";
import { openSourceStream, ScriptedSource } from "../data-mover/mover-source.ts";
import { GROUP, run, targetSite, until } from "./target-site.ts";

const BLOCKS = 6_001;
const BLOCK = 4096;

test("a machine's disk reads as at the other point, its branch has that, a repeat changes nothing, and a disk in use is refused", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([BLOCKS], 67);
  await site.prepare(source);
  const stream = await openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 1,
    site: "primary",
  });
  while (source.disks[0]!.unsynced.size > 0) await stream.ship(source.cut({ sweepBlocks: 2_000 }));
  const good = await stream.ship(source.cut({ writes: 0 }));
  await stream.ship(source.cut({ writes: 700 }));
  stream.close();
  const { masterTarget } = site.target;
  const expected = source.states.get(good.barrierNumber)!.get("disk-0")!;
  await masterTarget.fence({ groupId: GROUP, operationId: "failover-1", activeSite: "secondary" });
  const { disks } = await masterTarget.openExport({
    groupId: GROUP,
    operationId: "failover-1",
    point: "latest",
    mode: "read-write",
  });
  const { url, machine } = disks[0]!;
  const points = await masterTarget.listPoints({ groupId: GROUP });
  const point = points.find(({ barrier }) => barrier === good.barrierNumber)!.id;
  const take = async (requestId: string, waitMs = 20_000): Promise<TakenPoint> =>
    await site.target.masterTarget.takePoint({ operationId: "failover-1", requestId, machine, point, waitMs });
  const socket = new URL(url).searchParams.get("socket")!;

  const attached = await connectNbd({ path: socket }, "disk-0");
  await assert.rejects(take("retry-0"), (error: unknown) => isFault(error, "REFUSED"));
  await attached.disconnect();
  const copy = join(site.folder, "copy.img");
  /** A process that was just started may not serve yet. */
  const read = async (): Promise<Buffer> =>
    await until("an export that answers", async () => {
      const copied = await run("nbdcopy", [url, copy]).catch(() => undefined);
      return copied === undefined ? undefined : await readFile(copy);
    });
  assert.ok(!(await read()).equals(expected), "the newest point is another state");

  // Asked without patience it has begun; its process dies, and the master target is restarted: it says so, and is asked again.
  await until("the client is gone", async () => {
    try {
      return await take("retry-1", 0);
    } catch (error) {
      if (isFault(error, "REFUSED")) return undefined; // The server has not noticed yet that nobody is there.
      throw error;
    }
  });
  process.kill(site.target.exportPids().get("failover-1")!, "SIGKILL");
  await site.restart();
  assert.deepEqual((await site.target.masterTarget.exportStatus({ operationId: "failover-1" })).taking, {
    [machine]: point,
  });
  const taken = await until("the end", async () => {
    const seen = await take("retry-1");
    return seen.done ? seen : undefined;
  });
  assert.equal(taken.comparedBytes, BLOCKS * BLOCK);
  assert.ok((await read()).equals(expected));
  assert.equal((await site.target.masterTarget.exportStatus({ operationId: "failover-1" })).taking, undefined);

  // The machine has written since; whoever asks late for what is done changes nothing, also after a restart.
  const writer = await connectNbd({ path: socket }, "disk-0");
  const block = Buffer.alloc(BLOCK, "written since");
  await writer.write(block, 17 * BLOCK, { fua: true });
  await writer.disconnect();
  await site.restart();
  assert.ok((await take("retry-1")).done);
  block.copy(expected, 17 * BLOCK);
  assert.ok((await read()).equals(expected));

  await site.target.masterTarget.closeExport({ operationId: "failover-1", discard: false });
  await assert.rejects(take("retry-2"), (error: unknown) => isFault(error, "REFUSED"));
  // The branch has it too: its newest point, opened anew.
  const last = await site.target.masterTarget.openExport({
    groupId: GROUP,
    operationId: "look",
    point: (await site.target.masterTarget.listPoints({ groupId: GROUP }))[0]!.id,
    mode: "read-only",
  });
  await run("nbdcopy", [last.disks[0]!.url, copy]);
  assert.ok((await readFile(copy)).equals(expected));
});
