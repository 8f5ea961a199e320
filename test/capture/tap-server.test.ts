/** The control socket against callers that make mistakes, and the reasons that a tap gives. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import type { FaultCode } from "#model/fault.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { openImage } from "../../src/adapters/image/image-device.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { connectTap } from "../../src/capture/tap/tap-client.ts";
import type { TapClient } from "../../src/capture/tap/tap-client.ts";
import { openTapDisk } from "../../src/capture/tap/tap-disk.ts";
import {
  createTapFrameReader,
  decodeRuns,
  encodeRuns,
  encodeTapFrameHead,
  tapUrl,
} from "../../src/capture/tap/tap-protocol.ts";
import type { TapDiskConfig } from "../../src/capture/tap/tap-protocol.ts";
import { startTap } from "../../src/capture/tap/tap-server.ts";
import { connectNbd } from "../nbd/nbd-client.ts";
import { patterned } from "../nbd/memory-device.ts";

const fault = (code: FaultCode) => (error: unknown) => isFault(error, code);

async function withTap(
  body: (
    client: TapClient,
    disk: (id: string, image?: string) => TapDiskConfig,
    controlSocket: string,
  ) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "leeward-tap-"));
  const controlSocket = join(folder, "control.sock");
  const disk = (diskId: string, image = join(folder, `${diskId}.img`)): TapDiskConfig => ({
    diskId,
    image,
    socket: join(folder, `${diskId}.sock`),
    stateDir: join(folder, "state"),
  });
  for (const id of ["one", "two"]) writeFileSync(disk(id).image, patterned(3 << 20));
  const openDisk = (config: TapDiskConfig) => openTapDisk(config, { openImage, clock: systemClock, log: silentLog });
  const tap = await startTap({ controlSocket, disks: [disk("one"), disk("missing")], openDisk, log: silentLog });
  try {
    assert.deepEqual(
      tap.failed.map(({ diskId, fault: why }) => [diskId, why.code]),
      [["missing", "IMAGE_MISSING"]],
    );
    const client = await connectTap(controlSocket);
    await body(client, disk, controlSocket);
    client.close();
  } finally {
    await tap.stop();
    await tap.stopped;
    rmSync(folder, { recursive: true, force: true });
  }
}

test("disks come and go, each once", async () => {
  await withTap(async (client, disk) => {
    await assert.rejects(client.addDisk(disk("missing")), fault("IMAGE_MISSING"));
    await assert.rejects(client.addDisk(disk("two", disk("one").image)), fault("IMAGE_IN_USE"));
    await assert.rejects(client.addDisk({ ...disk("one"), socket: "/elsewhere" }), fault("DISK_ALREADY_PROTECTED"));
    await assert.rejects(client.addDisk({ ...disk("two"), diskId: "../two" }), fault("CONFIG_INVALID"));
    await assert.rejects(client.addDisk({ ...disk("two"), socket: disk("one").socket }), fault("PORT_IN_USE"));
    assert.equal((await client.addDisk(disk("one"))).diskId, "one");
    const added = await client.addDisk(disk("two"));
    assert.deepEqual([added.url, added.unsyncedBytes], [tapUrl("two", disk("two").socket), 3 << 20]);
    assert.deepEqual((await client.disks()).map((status) => status.diskId).sort(), ["one", "two"]);
    const machine = await connectNbd({ path: disk("two").socket }, "two");
    await machine.write(Buffer.alloc(5000, 9), 4000);
    await client.removeDisk("two");
    await machine.closed;
    await assert.rejects(client.removeDisk("two"), fault("NOT_FOUND"));
    const again = await client.addDisk(disk("two"));
    assert.ok(again.tracker.generation > added.tracker.generation);
    assert.equal(again.unsyncedBytes, 3 << 20);
  });
});

test("an image that is protected anew under another id stays attached, and is unsynced as a whole", async () => {
  await withTap(async (client, disk) => {
    await client.addDisk(disk("two"));
    const machine = await connectNbd({ path: disk("two").socket }, "two");
    await machine.write(Buffer.alloc(5000, 9), 4000);
    await client.hold(["two"], 1);
    await client.mark(["two"], 1);
    await client.release(["two"], 1);
    await client.committed("two", 1, await client.unsynced("two"));
    assert.equal((await client.disks()).find(({ diskId }) => diskId === "two")?.unsyncedBytes, 0);

    const anew = { ...disk("two"), diskId: "three", name: "two" };
    const status = await client.addDisk(anew);
    assert.deepEqual([status.diskId, status.url], ["three", tapUrl("two", disk("two").socket)]);
    assert.equal(status.unsyncedBytes, 3 << 20);
    assert.deepEqual(status.cuts, []);
    await machine.write(Buffer.alloc(5000, 8), 4000);
    assert.deepEqual((await client.disks()).map(({ diskId }) => diskId).sort(), ["one", "three"]);
    assert.equal((await client.addDisk(anew)).diskId, "three", "again is fine");
    machine.destroy();

    // Over a restart the state file is the new disk's.
    await client.hold(["three"], 2);
    await client.mark(["three"], 2);
    await client.release(["three"], 2);
    await client.committed("three", 2, await client.unsynced("three"));
    await client.removeDisk("three");
    assert.equal((await client.addDisk(anew)).unsyncedBytes, 0);
  });
});

test("a clean stop keeps what was committed: only what was written since is swept", async () => {
  await withTap(async (client, disk) => {
    await client.addDisk(disk("two"));
    await client.hold(["one", "two"], 1);
    await client.mark(["one", "two"], 1);
    assert.equal((await client.release(["one", "two"], 1)).heldThroughout, true);
    await client.committed("two", 1, await client.unsynced("two"));
    const machine = await connectNbd({ path: disk("two").socket }, "two");
    await machine.write(Buffer.alloc(10, 9), (1 << 20) - 5);
    machine.destroy();
    await client.removeDisk("two");
    const again = await client.addDisk(disk("two"));
    assert.deepEqual(await client.unsynced("two"), [{ start: 0, count: 512 }]);
    assert.match(again.sweepReason, /catch-up/);
    await client.removeDisk("two");
    writeFileSync(disk("two").image, patterned(3 << 20));
    assert.match((await client.addDisk(disk("two"))).sweepReason, /image was changed/);
  });
});

test("mistakes are named, and the tap goes on", async () => {
  await withTap(async (client) => {
    await assert.rejects(client.readLive("one", [{ start: 767, count: 2 }]), fault("PROTOCOL_INVALID"));
    await assert.rejects(client.readLive("none", [{ start: 0, count: 1 }]), fault("NOT_FOUND"));
    await assert.rejects(client.readCut("one", 5, [{ start: 0, count: 1 }]), fault("NOT_FOUND"));
    await assert.rejects(client.mark(["one"], 5), fault("HOLD_EXPIRED"));
    await client.hold(["one"], 5);
    await assert.rejects(client.hold(["one"], 6), fault("REFUSED"));
    await client.mark(["one"], 5);
    await assert.rejects(client.mark(["one"], 5), fault("REFUSED"));
    await client.release(["one"], 5);
    await client.discard("one", 99);
    await client.discard("one", 5);
    const bytes = patterned(3 << 20);
    assert.ok(
      Buffer.from(
        await client.readLive("one", [
          { start: 1, count: 2 },
          { start: 9, count: 1 },
        ]),
      ).equals(Buffer.concat([bytes.subarray(4096, 12288), bytes.subarray(36864, 40960)])),
    );
  });
});

test("garbage on the control socket ends that connection only", async () => {
  await withTap(async (client, _, controlSocket) => {
    const json = (text: string): Buffer => {
      const head = Buffer.alloc(8);
      head.writeUInt32LE(4 + text.length, 0);
      head.writeUInt32LE(text.length, 4);
      return Buffer.concat([head, Buffer.from(text)]);
    };
    for (const garbage of [
      Buffer.alloc(100, 0xff),
      Buffer.alloc(8),
      json("no json"),
      json("[]"),
      json('{"id":-1}'),
      json('{"id":1,"method":7}'),
    ]) {
      const socket = connect({ path: controlSocket });
      socket.write(garbage);
      socket.resume();
      await once(socket, "close");
    }
    const socket = connect({ path: controlSocket });
    const reader = createTapFrameReader();
    for (const [method, params] of [
      ["nope", {}],
      ["hasOwnProperty", {}],
      ["hold", null],
      ["hold", { diskIds: "one" }],
      ["committed", { diskId: "one", cutId: 0.5 }],
    ] as const) {
      socket.write(encodeTapFrameHead({ id: 3, method, params }));
      const [chunk] = (await once(socket, "data")) as [Buffer];
      assert.match(JSON.stringify(reader.push(chunk)[0]!.header), /"id":3,"fault":\{"code":"PROTOCOL_INVALID"/);
    }
    socket.destroy();
    assert.equal((await client.disks()).length, 1);
  });
});

test("runs of blocks survive the wire, and half a run does not", () => {
  const runs = [
    { start: 0, count: 1 },
    { start: 2 ** 40, count: 2 ** 32 - 1 },
  ];
  assert.deepEqual(decodeRuns(encodeRuns(runs)), runs);
  assert.throws(() => decodeRuns(encodeRuns(runs).subarray(0, 20)), fault("PROTOCOL_INVALID"));
  assert.throws(() => decodeRuns(Buffer.alloc(12)), fault("PROTOCOL_INVALID"));
});
