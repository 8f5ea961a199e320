/** `leeward restore`: an export of the running system, copied over its socket into images. */
import assert from "node:assert/strict";
import { connect, createServer, type Socket } from "node:net";
import { mkdtemp, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { BlockDevice } from "#ports/block-device.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { imageDevice, openImage } from "../../src/data-mover/image.ts";
import { listPoints } from "../../src/data-mover/points.ts";
import { copyExport, type CopyRequest } from "../../src/main/copy-export.ts";
import { exportUrl } from "../../src/master-target/export-supervisor.ts";
import { serveNbd } from "../../src/nbd/server.ts";
import { smallStore } from "../support/small-store.ts";

interface Bench {
  readonly request: CopyRequest;
  readonly expected: ReadonlyMap<string, Buffer>;
  readonly objects: ReturnType<typeof memoryStore>;
  readonly seen: number[];
}

/** The newest point served read-only, as the master target does. */
async function bench(t: TestContext): Promise<Bench> {
  const folder = await mkdtemp(join(tmpdir(), "leeward-copy-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const objects = memoryStore();
  const made = await smallStore(objects);
  const store = made.open();
  const [point] = await listPoints(await made.group(store));
  const devices = new Map<string, BlockDevice>();
  for (const { diskId, branch, seq, commitHash } of point!.members) {
    const { context, keyring, storeId } = await store.openDisk({ diskId, sizeBytes: 0, sectorBytes: 512 });
    const options = { keyring, storeId, branch, seq, commitHash, cacheBytes: 64 << 10 };
    devices.set(diskId, imageDevice(await openImage(context, options)));
  }
  const socket = join(folder, "s.sock");
  const exports = { find: (name: string) => devices.get(name), names: () => [...devices.keys()] };
  const server = await serveNbd({ exports, listen: { path: socket }, log: silentLog });
  t.after(() => server.close());
  const seen: number[] = [];
  const request: CopyRequest = {
    pointId: point!.id,
    disks: point!.members.map(({ diskId }) => ({ diskId, url: exportUrl(diskId, socket) })),
    to: join(folder, "images"),
    yes: false,
    stop: new AbortController().signal,
    onProgress: ({ doneBytes }) => seen.push(doneBytes),
  };
  return { request, expected: made.states.get(point!.barrier)!, objects, seen };
}

test("An export is copied into images that are what the disks were, sparse, and complete when they have their names", async (t) => {
  const { request, expected, seen } = await bench(t);
  const copied = await copyExport(request);
  for (const { id, path, sizeBytes, dataBytes } of copied) {
    const disk = expected.get(id)!;
    assert.ok((await readFile(path)).equals(disk), id);
    assert.equal(sizeBytes, disk.length);
    assert.equal(dataBytes, dataIn(disk), id);
  }
  assert.equal(copied.length, 2);
  assert.ok(seen.length > 1);
  assert.equal((await readdir(request.to)).length, 2);
  const system = await stat(join(request.to, "web-system.raw"));
  assert.ok(system.blocks * 512 < system.size, "zeroes take no space");
  await assert.rejects(copyExport(request), { code: "REFUSED" });
  await copyExport({ ...request, yes: true });
});

/** Bytes in pieces of 64 KiB that hold anything, as whole blocks. */
function dataIn(disk: Buffer): number {
  let bytes = 0;
  for (let at = 0; at < disk.length; at += 64 << 10) {
    const piece = disk.subarray(at, at + (64 << 10));
    if (piece.some((byte) => byte !== 0)) bytes += Math.ceil(piece.length / 4096) * 4096;
  }
  return bytes;
}

test("What the export cannot read is an error, and no image has its name", async (t) => {
  const { request, objects } = await bench(t);
  for (const [key, data] of objects.objects) {
    if (!key.includes("web-system/segments")) continue;
    data[data.length - 300]! ^= 1;
  }
  await assert.rejects(copyExport(request), { code: "EXPORT_FAILED" });
  assert.ok(!(await readdir(request.to)).includes("web-system.raw"));
});

test("A server that dies within an answer is an error at once, not a copy that waits for ever", async (t) => {
  const { request } = await bench(t);
  const { socketPath } = await cutAfter(t, new URL(request.disks[0]!.url).searchParams.get("socket")!, 1_000);
  const disks = request.disks.map((disk) => ({ ...disk, url: exportUrl(disk.diskId, socketPath) }));
  await assert.rejects(copyExport({ ...request, disks }), { code: "EXPORT_FAILED" });
  // What is there already is no harm to the one that goes on with the real server.
  for (const { id, path } of await copyExport(request)) assert.ok((await stat(path)).size > 0, id);
});

/** A way to the server that breaks when so many bytes of answers have passed: after the handshake, within the first block. */
async function cutAfter(t: TestContext, to: string, bytes: number): Promise<{ readonly socketPath: string }> {
  const folder = await mkdtemp(join(tmpdir(), "leeward-cut-"));
  const sockets: Socket[] = [];
  const server = createServer((client) => {
    const upstream = connect(to);
    sockets.push(client, upstream);
    for (const socket of [client, upstream]) socket.on("error", () => undefined); // The cut is what is tested.
    client.pipe(upstream);
    let passed = 0;
    upstream.on("data", (chunk: Buffer) => {
      const part = chunk.subarray(0, bytes - passed);
      passed += part.length;
      client.write(part, () => {
        if (passed >= bytes) client.destroySoon();
      });
    });
  });
  const socketPath = join(folder, "s.sock");
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  t.after(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await rm(folder, { recursive: true, force: true });
  });
  return { socketPath };
}

test("An export that is not on this machine is said to be elsewhere", async (t) => {
  const { request } = await bench(t);
  const disks = request.disks.map((disk) => ({ ...disk, url: exportUrl(disk.diskId, "/nowhere/s.sock") }));
  await assert.rejects(copyExport({ ...request, disks }), { code: "PEER_UNREACHABLE" });
  const stop = new AbortController();
  stop.abort();
  await assert.rejects(copyExport({ ...request, stop: stop.signal }), { code: "INTERRUPTED" });
});
