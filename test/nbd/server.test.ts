/** The server against a client that shows every number: errors, flags, order, shutdown. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Fault } from "#model/fault.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import { serveNbd } from "../../src/nbd/server.ts";
import { createMemoryDevice, patterned } from "./memory-device.ts";
import { connectNbd, ConnectionLost, NbdError } from "./nbd-client.ts";
import type { NbdClient } from "./nbd-client.ts";

const MIB = 1 << 20;

async function withServer(
  device: BlockDevice,
  body: (connect: () => Promise<NbdClient>, close: () => Promise<void>) => Promise<void>,
): Promise<void> {
  const server = await serveNbd({
    exports: { find: (name) => (name === "disk" ? device : undefined), names: () => ["disk"] },
    listen: { host: "127.0.0.1", port: 0 },
  });
  try {
    await body(
      () => connectNbd({ host: "127.0.0.1", port: server.port! }, "disk"),
      () => server.close(),
    );
  } finally {
    await server.close();
  }
}

const errno = (expected: number) => (error: unknown) => error instanceof NbdError && error.errno === expected;

test("reads give what writes wrote, at any offset and length, on devices that answer at once and late", async () => {
  for (const lateMs of [undefined, () => 0, () => Math.random() * 3]) {
    const backing = patterned(40 * MIB + 512);
    const expected = Buffer.from(backing);
    await withServer(createMemoryDevice(backing, lateMs === undefined ? {} : { lateMs }), async (connect) => {
      const client = await connect();
      assert.equal(client.sizeBytes, backing.length);
      for (const [offset, length] of [
        [0, 1],
        [511, 3],
        [4096, 4096],
        [1, 300_000],
        [backing.length - 1, 1],
        [7, 32 * MIB],
      ] as const) {
        const data = patterned(length + 8).subarray(3, 3 + length);
        await client.write(data, offset);
        data.copy(expected, offset);
        assert.ok((await client.read(offset, length)).equals(data), `${offset}+${length}`);
      }
      await client.zero(5000, 70_000);
      expected.fill(0, 5000, 75_000);
      assert.ok((await client.read(0, 32 * MIB)).equals(expected.subarray(0, 32 * MIB)));
      await client.disconnect();
      assert.ok(backing.equals(expected));
    });
  }
});

test("many requests in flight are all answered, each with its own data", async () => {
  const backing = patterned(8 * MIB);
  await withServer(createMemoryDevice(backing, { lateMs: () => Math.random() * 10 }), async (connect) => {
    const client = await connect();
    await Promise.all(
      Array.from({ length: 2000 }, async (_, index) => {
        const offset = (index * 37_123) % (8 * MIB - 9000);
        const length = 1 + ((index * 977) % 9000);
        assert.ok((await client.read(offset, length)).equals(backing.subarray(offset, offset + length)));
      }),
    );
    client.destroy();
  });
});

test("large reads of a client that does not take them are not piled up", async () => {
  let reading = 0;
  let most = 0;
  const device = createMemoryDevice(Buffer.alloc(64 * MIB, 1));
  const counting: BlockDevice = {
    ...device,
    read: async (target, offset) => {
      reading += target.length;
      most = Math.max(most, reading);
      await new Promise((resolve) => setTimeout(resolve, 5));
      reading -= target.length;
      return device.read(target, offset);
    },
  };
  await withServer(counting, async (connect) => {
    const client = await connect();
    const reads = Array.from({ length: 12 }, () => client.read(0, 16 * MIB));
    for (const data of await Promise.all(reads)) assert.equal(data.length, 16 * MIB);
    assert.ok(most <= 80 * MIB, String(most));
    client.destroy();
  });
});

test("what lies outside, is not allowed or not known has its error number, and the session goes on", async () => {
  const backing = patterned(MIB);
  await withServer(createMemoryDevice(backing), async (connect) => {
    const client = await connect();
    await assert.rejects(client.read(MIB - 10, 11), errno(22));
    await assert.rejects(client.read(2 ** 53, 1), errno(22));
    await assert.rejects(client.read(0, 0), errno(22));
    await assert.rejects(client.write(Buffer.alloc(11), MIB - 10), errno(28));
    await assert.rejects(client.zero(MIB - 10, 11), errno(28));
    await assert.rejects(client.trim(MIB - 10, 11), errno(22));
    await assert.rejects(client.zero(0, 100, { fast: true }), errno(95));
    await assert.rejects(client.request(99, 0, 0, 0), errno(22));
    await assert.rejects(client.request(0, 1 << 9, 0, 1), errno(22));
    await assert.rejects(client.request(7, 0, 0, 100), errno(22));
    await assert.rejects(client.request(0, 0, 0, 33 * MIB), errno(22));
    await assert.rejects(client.request(1, 0, 0, 33 * MIB, Buffer.alloc(33 * MIB)), errno(22));
    assert.ok((await client.read(0, MIB)).equals(backing));
    client.destroy();
  });
});

test("a read-only export refuses to be changed", async () => {
  await withServer(createMemoryDevice(patterned(MIB), { readOnly: true }), async (connect) => {
    const client = await connect();
    assert.equal(client.flags & 2, 2);
    await assert.rejects(client.write(Buffer.alloc(10), 0), errno(1));
    await assert.rejects(client.zero(0, 10), errno(1));
    await assert.rejects(client.trim(0, 10), errno(1));
    client.destroy();
  });
});

test("faults of the device become error numbers, at once and late", async () => {
  const device = createMemoryDevice(patterned(MIB));
  const failing: BlockDevice = {
    ...device,
    read: () => {
      throw new Fault("SOURCE_READ_FAILED", "A bad sector");
    },
    write: () => Promise.reject(new Fault("OVERLAY_FULL", "No room")),
    flush: () => Promise.reject(new Fault("STORE_UNAVAILABLE", "Away")),
  };
  await withServer(failing, async (connect) => {
    const client = await connect();
    await assert.rejects(client.read(0, 10), errno(5));
    await assert.rejects(client.write(Buffer.alloc(10), 0), errno(28));
    await assert.rejects(client.flush(), errno(5));
    client.destroy();
  });
});

test("FUA and flush reach the device, and fast zeroes where it is fast", async () => {
  const device = createMemoryDevice(patterned(MIB), { fastZero: true });
  await withServer(device, async (connect) => {
    const client = await connect();
    await client.write(Buffer.alloc(10, 1), 0, { fua: true });
    await client.flush();
    assert.equal(device.flushes, 2);
    await client.zero(0, 10, { fast: true });
    client.destroy();
  });
});

test("an unknown export is refused, and no other client is harmed", async () => {
  const backing = patterned(MIB);
  const server = await serveNbd({
    exports: { find: (name) => (name === "disk" ? createMemoryDevice(backing) : undefined), names: () => ["disk"] },
    listen: { host: "127.0.0.1", port: 0 },
  });
  try {
    const where = { host: "127.0.0.1", port: server.port! };
    const client = await connectNbd(where, "disk");
    await assert.rejects(connectNbd(where, "nope"), errno(6));
    assert.ok((await client.read(0, MIB)).equals(backing));
    assert.deepEqual(server.sessions(), ["disk"]);
    client.destroy();
  } finally {
    await server.close();
  }
});

test("closing answers what is in flight, then ends every session", async () => {
  const backing = patterned(MIB);
  await withServer(createMemoryDevice(backing, { lateMs: () => 50 }), async (connect, close) => {
    const client = await connect();
    const idle = await connect();
    const reading = client.read(0, 1000);
    await new Promise((resolve) => setTimeout(resolve, 10));
    const closing = close();
    assert.ok((await reading).equals(backing.subarray(0, 1000)));
    await closing;
    await Promise.all([client.closed, idle.closed]);
    await assert.rejects(client.read(0, 1), ConnectionLost);
    await assert.rejects(connect());
  });
});

test("a second server on a socket that is in use says so", async () => {
  const folder = mkdtempSync(join(tmpdir(), "leeward-nbd-"));
  const path = join(folder, "nbd.sock");
  const exports = { find: () => undefined, names: () => [] };
  const server = await serveNbd({ exports, listen: { path } });
  try {
    await assert.rejects(
      serveNbd({ exports, listen: { path } }),
      (error) => error instanceof Fault && error.code === "PORT_IN_USE",
    );
    await assert.rejects(
      serveNbd({ exports, listen: { path: join(folder, "no", "nbd.sock") } }),
      (error) => error instanceof Fault && error.code === "CONFIG_INVALID",
    );
  } finally {
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
