/**
 * Bytes shipped for 2,000 random 4 KiB writes that do not compress, and how long after the cut they are durable at the target.
 * For comparison: what `restic backup` uploads for the same writes to the same image.
 */
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { promisify } from "node:util";
import { open } from "node:fs/promises";
import { startBenchSystem, verdict, waitForGroup } from "./system.ts";

const run = promisify(execFile);
const WRITES = 2_000;
const SIZE_BYTES = 1 << 30;
const WRITER = `
import nbd, os, random, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1])
random.seed(int(sys.argv[3]))
for block in random.sample(range(h.get_size() // 4096), int(sys.argv[2])): h.pwrite(os.urandom(4096), block * 4096)
h.flush()
`;

await using system = await startBenchSystem();
const { client } = system;
const image = join(system.state, "..", "disk.img");
const file = await open(image, "w");
for (let at = 0; at < SIZE_BYTES; at += 1 << 20) await file.write(randomBytes(1 << 20), 0, 1 << 20, at);
await file.close();

await client.protect({ name: "deltas", disks: [`tap:${image}`], policy: { intervalMs: 2_000 } });
const seeded = await waitForGroup(client, "deltas", (view) => view.phase === "protected");
const url = seeded.disks[0]?.tapUrl ?? "";
const lags: number[] = [];
const before = await client.group("deltas");
for (let round = 0; round < 5; round += 1) {
  const point = (await client.group("deltas")).newestPoint?.barrier ?? 0;
  const written = (await client.group("deltas")).writtenBytes;
  await run("/usr/bin/python3", ["-c", WRITER, url, String(WRITES / 5), String(round)]);
  const after = await waitForGroup(
    client,
    "deltas",
    (view) =>
      (view.newestPoint?.barrier ?? 0) > point &&
      view.backlogBytes === 0 &&
      view.writtenBytes >= written + (WRITES / 5) * 4096,
  );
  lags.push(after.lagMs ?? Number.NaN);
}
const after = await client.group("deltas");
const shipped = after.shippedBytes - before.shippedBytes;
verdict("bytes shipped / bytes written", shipped / (WRITES * 4096), { atMost: 1.1 }, `${shipped} bytes`);
verdict("longest time from cut to durable, s", Math.max(...lags) / 1000, { atMost: 1 });
