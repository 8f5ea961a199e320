/** Protection that is ended and begun anew under a running machine: it keeps its disks, and the new replica is complete. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { assertReplicaEqual, numberedImage, startSystem, startWriter, until, type System } from "../support/system.ts";

const SIZE = 24 << 20;

test("unprotect, and protect again under another name, while a machine writes", { timeout: 300_000 }, async (t) => {
  const system = await startSystem(t);
  const { client } = system;
  const image = join(system.folder, "disk.img");
  await numberedImage(image, SIZE, 5);
  const first = await protect(system, "first", image);
  const writer = startWriter(t, first, system.folder);
  await sleep(2_000);
  const { operationId } = await client.unprotect("first");
  await until("the end of the protection", 60_000, async () => (await client.operation(operationId)).state === "done");
  await sleep(1_000);
  assert.deepEqual(await protect(system, "second", image), first, "the machine finds its disk where it was");
  await sleep(2_000);
  await writer.stop();
  const restedAtMs = Date.now();
  await until("a point of the rested disk", 60_000, async () => {
    const group = await client.group("second");
    return (group.rpoMs ?? Number.MAX_SAFE_INTEGER) < Date.now() - restedAtMs - 500 && group.backlogBytes === 0;
  });
  await assertReplicaEqual(system, "second", [image]);
});

async function protect({ client }: System, name: string, image: string): Promise<string[]> {
  await client.protect({ name, disks: [`tap:${image}`], policy: { intervalMs: 1_000 } });
  return await until("the first point", 60_000, async () => {
    const group = await client.group(name);
    const url = group.disks[0]?.tapUrl;
    return group.phase === "protected" && url !== undefined && [url];
  });
}
