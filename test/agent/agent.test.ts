/** The agent by itself: which process server it goes to, what it taps, and that its machine never depends on any of it. */
import assert from "node:assert/strict";
import { closeSync, linkSync, openSync, readdirSync, readFileSync, statSync, writeFileSync, writeSync } from "node:fs";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { GroupTask } from "#ports/source-link.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { openDiskBook } from "../../src/agent/disk-book.ts";
import { runTapHost } from "../../src/agent/tap-host.ts";
import { createTappedDisks, shortPath } from "../../src/agent/tapped-disks.ts";
import type { TapClient } from "../../src/capture/tap/tap-client.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { Fault } from "#model/fault.ts";
import { startFakeMover } from "../support/fake-mover.ts";
import { eventually, startSourceSite, testOrder } from "../support/source-site.ts";
import { testFiles } from "../support/test-files.ts";

function writeAt(file: string, text: string, position: number): void {
  const descriptor = openSync(file, "r+");
  writeSync(descriptor, text, position);
  closeSync(descriptor);
}

function folderFor(t: { after(work: () => void): void }): string {
  const folder = mkdtempSync(join(tmpdir(), "leeward-agent-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

const task = (groupId: string, diskId: string, path: string, state: GroupTask["state"] = "active"): GroupTask => ({
  groupId,
  state,
  compressAt: "agent",
  disks: [{ diskId, source: `tap:${path}` }],
});

/** Only what `TappedDisks` asks of a tap. */
function tapWithDisks(): { readonly tap: TapClient; readonly added: string[] } {
  const added: string[] = [];
  const tap = {
    addDisk: async ({ diskId }: { diskId: string }) => {
      if (!added.includes(diskId)) added.push(diskId);
    },
  };
  return { tap: tap as unknown as TapClient, added };
}

test("an image belongs to one group, until control has stopped it", async (t) => {
  const folder = folderFor(t);
  const image = join(folder, "disk.img");
  writeFileSync(image, Buffer.alloc(8192, 7));
  const book = openDiskBook(join(folder, "disks.json"), testFiles);
  const disks = createTappedDisks({ book, stateDir: folder, log: silentLog });
  const { tap, added } = tapWithDisks();
  await disks.ensure(async () => tap, [task("one", "disk-1", image)]);
  await disks.ensure(async () => tap, [task("one", "disk-1", image), task("two", "disk-2", image)]);
  assert.deepEqual(added, ["disk-1"]);
  assert.equal(disks.ofGroup("two", [])[0]?.fault?.code, "DISK_ALREADY_PROTECTED");
  assert.throws(() => disks.inspect(`tap:${image}`, "two"), { code: "DISK_ALREADY_PROTECTED" });
  linkSync(image, `${image}.link`);
  assert.throws(
    () => disks.inspect(`tap:${image}.link`, "two"),
    { code: "DISK_ALREADY_PROTECTED" },
    "a hard link to it",
  );
  await disks.ensure(async () => tap, [task("one", "disk-1", image, "stopped"), task("two", "disk-2", image)]);
  assert.deepEqual(added, ["disk-1", "disk-2"]);
  assert.equal(disks.ofGroup("two", [])[0]?.fault, undefined);
  // What is served is on the disk, for the next start.
  assert.deepEqual(
    openDiskBook(join(folder, "disks.json"), testFiles).disks.map((disk) => disk.diskId),
    ["disk-2"],
  );
  const [config] = disks.tapConfigs();
  assert.equal(config?.name, "disk-1", "the machine finds it where it was");
  assert.ok(config?.socket.endsWith("disk-1.sock"));
});

test("a replica's image is made once, sparse, at its size, and stays what it was", async (t) => {
  const folder = folderFor(t);
  const book = openDiskBook(join(folder, "disks.json"), testFiles);
  const disks = createTappedDisks({ book, stateDir: folder, log: silentLog });
  const { tap, added } = tapWithDisks();
  const SIZE = 3 * 2 ** 40 + 512;
  const order = (diskId: string, name: string, sizeBytes?: number): GroupTask => ({
    ...task("one", diskId, "", "paused"),
    disks: [{ diskId, source: `replica:${name}`, ...(sizeBytes === undefined ? {} : { sizeBytes }) }],
  });
  const ensure = async (tasked: GroupTask): Promise<Fault | undefined> => {
    await disks.ensure(async () => tap, [tasked]);
    return disks.ofGroup("one", []).find(({ fault }) => fault !== undefined)?.fault;
  };
  assert.throws(() => disks.inspect("replica:disk-1", "one"), { code: "IMAGE_MISSING" });
  assert.equal((await ensure(order("disk-1", "disk-1", SIZE)))?.message, undefined);
  assert.deepEqual(added, ["disk-1"]);
  const image = join(folder, "replicas", "disk-1.img");
  assert.equal(statSync(image).size, SIZE);
  assert.ok(statSync(image).blocks < 64, "sparse");
  assert.equal(disks.inspect("replica:disk-1", "one").sizeBytes, SIZE);
  assert.deepEqual(readdirSync(join(folder, "replicas")), ["disk-1.img"]);

  // It is a disk now: what is in it stays, and if it is gone nobody puts an empty one there.
  writeAt(image, "what a machine wrote", SIZE - 512);
  assert.equal((await ensure(order("disk-1", "disk-1", SIZE)))?.message, undefined);
  assert.equal(statSync(image).blocks > 0, true);
  rmSync(image);
  assert.equal((await ensure(order("disk-1", "disk-1", SIZE)))?.code, "IMAGE_MISSING");
  assert.deepEqual(readdirSync(join(folder, "replicas")), []);

  writeFileSync(join(folder, "replicas", "disk-2.img"), Buffer.alloc(8192, 7));
  assert.equal((await ensure(order("disk-2", "disk-2", 4096)))?.code, "IMAGE_INVALID");
  for (const name of ["", "..", "../disks", "a/b", ".hidden", "a\0b", "x".repeat(129)])
    assert.equal((await ensure(order("disk-3", name, 4096)))?.code, "USAGE", name);
  for (const size of [undefined, 0, 513])
    assert.equal((await ensure(order("disk-4", "disk-4", size)))?.code, "USAGE", String(size));
  // Larger than any file system here has files.
  assert.equal((await ensure(order("disk-5", "disk-5", 2 ** 53 - 512)))?.code, "DISK_FULL");
  assert.deepEqual(readdirSync(join(folder, "replicas")), ["disk-2.img"]);
});

test("without a disk to tap nobody asks for a tap", async (t) => {
  const folder = folderFor(t);
  const disks = createTappedDisks({
    book: openDiskBook(join(folder, "disks.json"), testFiles),
    stateDir: folder,
    log: silentLog,
  });
  const nobody = () => Promise.reject(new Error("A tap was asked for"));
  await disks.ensure(nobody, []);
  await disks.ensure(nobody, [task("one", "disk-1", "/nowhere", "stopped")]);
});

test("a disk that the tap refuses is not kept, and says why", async (t) => {
  const folder = folderFor(t);
  const image = join(folder, "disk.img");
  writeFileSync(image, Buffer.alloc(8192, 7));
  const disks = createTappedDisks({
    book: openDiskBook(join(folder, "disks.json"), testFiles),
    stateDir: folder,
    log: silentLog,
  });
  const tap = {
    addDisk: () => Promise.reject(new Fault("IMAGE_IN_USE", "Another program has the image")),
  } as unknown as TapClient;
  await disks.ensure(async () => tap, [task("one", "disk-1", image)]);
  assert.equal(disks.ofGroup("one", [])[0]?.fault?.code, "IMAGE_IN_USE");
  assert.deepEqual(disks.tapConfigs(), []);
});

test("a list of disks that cannot be read stops the agent, and says what to do", (t) => {
  const folder = folderFor(t);
  writeFileSync(join(folder, "disks.json"), '{"disks": [{"groupId": 3}]}');
  assert.throws(() => openDiskBook(join(folder, "disks.json"), testFiles), { code: "CONFIG_INVALID" });
});

test("sockets of a deep folder go to a short path that is always the same", (t) => {
  const deep = join(folderFor(t), "x".repeat(120));
  const path = shortPath(deep, "disk.sock");
  t.after(() => rmSync(join(path, ".."), { recursive: true, force: true }));
  assert.ok(Buffer.byteLength(path) <= 107);
  assert.equal(shortPath(deep, "disk.sock"), path);
});

test("a tap that ends at once is not started a hundred times a second", async () => {
  let started = 0;
  const host = runTapHost({
    connect: () => Promise.reject(new Fault("PEER_UNREACHABLE", "Nothing listens")),
    spawn: () => {
      started += 1;
      return { pid: undefined, ended: Promise.resolve("exit code 1") };
    },
    clock: systemClock,
    log: silentLog,
    onConnected: () => Promise.resolve(),
  });
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  await host.close();
  assert.ok(started >= 3 && started < 10, `started ${started} times`);
  await assert.rejects(host.connected(), { code: "INTERRUPTED" });
});

test("the agent taps a disk before any process server answers, once it knows of it", { timeout: 60_000 }, async (t) => {
  const site = await startSourceSite();
  t.after(() => site.close());
  const mover = await startFakeMover({ link: await site.authority.link("secondary", "master-target", "mt") });
  t.after(() => mover.close());
  const machine = await site.addMachine("machine", [{ diskId: "disk", image: Buffer.alloc(1 << 20, 0x5a) }]);
  machine.startAgent();
  const members = [{ machine: "machine", disks: [{ diskId: "disk", source: machine.sources[0]! }] }];
  await site.processServer.putOrder({ signed: site.sign(testOrder("group", mover.port, members)) });
  await eventually("a point", () => mover.points > 0);
  await site.loseProcessServer();
  await machine.loseAgent();
  await machine.killTap();
  machine.startAgent();
  const [disk] = await machine.attach(); // The machine boots, with nobody to ask.
  await disk!.write(Buffer.alloc(4096, 0x11), 8192, true);
  assert.ok(readFileSync(machine.images[0]!).subarray(8192, 12288).equals(Buffer.alloc(4096, 0x11)));
  await site.startProcessServer();
  await site.processServer.cutNow({ groupId: "group", operationId: "a", timeoutMs: 5_000 }).catch(() => undefined); // It may be sweeping yet.
  await eventually("what was written alone arrives", () =>
    mover.images.get("disk")!.subarray(8192, 12288).equals(Buffer.alloc(4096, 0x11)),
  );
});
