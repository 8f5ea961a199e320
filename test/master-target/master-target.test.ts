import assert from "node:assert/strict";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { openSourceStream, ScriptedSource, type Cut, type SourceStream } from "../data-mover/mover-source.ts";
import { GROUP, run, targetSite, until, type TargetSite } from "./target-site.ts";

function connect(site: TargetSite, source: ScriptedSource): Promise<SourceStream> {
  return openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 2,
    site: "primary",
  });
}

async function seed(stream: SourceStream, source: ScriptedSource): Promise<void> {
  while (source.disks.some((disk) => disk.unsynced.size > 0))
    await stream.ship(source.cut({ sweepBlocks: 500, writes: 20 }));
  await stream.ship(source.cut({ writes: 5 }));
}

async function nbdContent(site: TargetSite, url: string, name: string): Promise<Buffer> {
  const file = join(site.folder, name);
  await run("nbdcopy", [url, file]);
  return readFile(file);
}

function firstDifference(seen: Uint8Array, expected: Uint8Array): number {
  if (seen.length !== expected.length) return -1;
  for (let at = 0; at < seen.length; at += BLOCK_SIZE) {
    if (Buffer.compare(seen.subarray(at, at + BLOCK_SIZE), expected.subarray(at, at + BLOCK_SIZE)) !== 0)
      return at / BLOCK_SIZE;
  }
  return Number.NaN;
}

function assertSame(seen: Uint8Array, expected: Uint8Array, what: string): void {
  const block = firstDifference(seen, expected);
  assert.ok(Number.isNaN(block), `${what} differs at block ${block}`);
}

test("A group is prepared once however often it is asked, its keys outside the bucket, its canary read back", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([300, 200], 2);
  const first = await site.prepare(source);
  assert.deepEqual(await site.prepare(source), first);
  assert.equal((await stat(site.config.keysFile)).mode & 0o777, 0o600);
  const { disks } = JSON.parse(await readFile(site.config.keysFile, "utf8")) as { disks: Record<string, string> };
  assert.deepEqual(Object.keys(disks), ["disk-0", "disk-1"]);
  const objects = await readdir(join(site.server.root, "leeward"), { recursive: true });
  for (const name of objects) {
    const path = join(site.server.root, "leeward", name);
    if (!(await stat(path)).isFile()) continue;
    const text = (await readFile(path)).toString("latin1");
    for (const key of Object.values(disks)) assert.ok(!text.includes(key), `${name} has no disk key`);
  }
  await assert.rejects(
    site.target.masterTarget.prepareGroup({
      groupId: "other",
      operationId: "protect-2",
      groupName: "Other",
      sourceSite: "primary",
      disks: [{ diskId: "disk-0", machine: "m", sizeBytes: 1 << 20, sectorBytes: 512 }],
      record: "{}",
    }),
    (error) => isFault(error, "DISK_ALREADY_PROTECTED"),
  );
  const mover = await until("the mover runs", () => site.target.moverPid());
  for (const what of ["environ", "cmdline"]) {
    const seen = await readFile(`/proc/${mover}/${what}`, "latin1");
    for (const secret of [site.server.secretKey, ...Object.values(disks)]) {
      assert.ok(!seen.includes(secret), `no secret in the mover's ${what}`);
    }
  }
  const waiting = await site.target.masterTarget.observeGroup({ groupId: GROUP, cursor: "", waitMs: 0 });
  assert.deepEqual([waiting.state, waiting.connected], ["waiting", false]);
  await assert.rejects(
    site.target.masterTarget.openExport({ groupId: GROUP, operationId: "x", point: "latest", mode: "read-only" }),
    (error) => isFault(error, "NO_POINT"),
  );
});

test("kill -9 of the mover in the middle of cycles: the source comes back, and every acknowledged point is whole over NBD", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([900, 400], 17);
  await site.prepare(source);
  let stream = await connect(site, source);
  await seed(stream, source);
  const acknowledged: number[] = [];
  let pending: Cut | undefined;
  for (let round = 0; round < 9; round++) {
    pending ??= source.cut({ writes: 10 });
    try {
      const shipping = stream.ship(pending);
      shipping.catch(() => undefined); // Awaited below.
      if (round % 3 === 1) {
        await new Promise((resolve) => setTimeout(resolve, source.random() * 25));
        const pid = site.target.moverPid();
        assert.ok(pid !== undefined);
        process.kill(pid, "SIGKILL");
      }
      const result = await shipping;
      if (result.barrierNumber === pending.cycle) acknowledged.push(pending.cycle);
      pending = undefined;
    } catch (error) {
      assert.ok(isFault(error, "PEER_UNREACHABLE"), String(error));
      stream.close();
      stream = await until("the mover is back", () => connect(site, source).catch(() => undefined));
    }
  }
  stream.close();
  const points = await site.target.masterTarget.listPoints({ groupId: GROUP });
  for (const cycle of acknowledged)
    assert.ok(
      points.some((point) => point.barrier === cycle),
      `acknowledged cut ${cycle} is a point`,
    );
  for (const point of [points[0]!, points.at(-1)!]) {
    const status = await site.target.masterTarget.openExport({
      groupId: GROUP,
      operationId: `look-${point.barrier}`,
      point: point.id,
      mode: "read-only",
    });
    for (const disk of status.disks) {
      const expected = source.states.get(point.barrier)!.get(disk.diskId)!;
      assertSame(
        await nbdContent(site, disk.url, `${point.barrier}-${disk.diskId}`),
        expected,
        `point ${point.barrier}, ${disk.diskId}`,
      );
    }
    await site.target.masterTarget.closeExport({ operationId: `look-${point.barrier}`, discard: true });
  }
  assert.deepEqual(await site.target.masterTarget.listExports({}), []);
});

test("A throw-away export can be written, forgets it on close, and never touches the replica", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([600], 8);
  await site.prepare(source);
  const stream = await connect(site, source);
  await seed(stream, source);
  const { masterTarget } = site.target;
  const status = await masterTarget.openExport({
    groupId: GROUP,
    operationId: "test-1",
    point: "latest",
    mode: "throw-away",
  });
  const [disk] = status.disks;
  await run("qemu-io", ["-f", "raw", "-c", "write -P 0xab 8k 64k", "-c", "flush", disk!.url]);
  await run("qemu-io", ["-f", "raw", "-c", "read -P 0xab 8k 64k", disk!.url]);
  await stream.ship(source.cut({ writes: 10 })); // Replication goes on beside it.
  await masterTarget.closeExport({ operationId: "test-1", discard: true });
  await masterTarget.closeExport({ operationId: "test-1", discard: true });
  await assert.rejects(
    masterTarget.openExport({ groupId: GROUP, operationId: "test-1", point: "latest", mode: "throw-away" }),
    (error) => isFault(error, "REFUSED"),
  );
  assert.deepEqual(
    await readdir(join(site.config.stateDir, "exports")).then((names) =>
      names.filter((name) => !name.endsWith(".json")),
    ),
    [],
  );
  const again = await masterTarget.openExport({
    groupId: GROUP,
    operationId: "look",
    point: status.pointId,
    mode: "read-only",
  });
  const barrier = (await masterTarget.listPoints({ groupId: GROUP })).find(
    (point) => point.id === status.pointId,
  )!.barrier;
  assertSame(
    await nbdContent(site, again.disks[0]!.url, "after"),
    source.states.get(barrier)!.get("disk-0")!,
    "the point",
  );
  await masterTarget.closeExport({ operationId: "look", discard: true });
});

test("Failover: fenced, the point exported read-write, and what is written there survives kill -9 and reaches its branch", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([2000, 800], 29);
  await site.prepare(source);
  const stream = await connect(site, source);
  await seed(stream, source);
  await assert.rejects(
    site.target.masterTarget.openExport({
      groupId: GROUP,
      operationId: "too-early",
      point: "latest",
      mode: "read-write",
    }),
    (error) => isFault(error, "REFUSED"),
  );

  const streaming = (async () => {
    for (;;) await stream.ship(source.cut({ writes: 8 }));
  })();
  const refused = assert.rejects(streaming, (error) => isFault(error, "FENCED") || isFault(error, "PEER_UNREACHABLE"));
  await new Promise((resolve) => setTimeout(resolve, 150));
  const { masterTarget } = site.target;
  const fenced = await masterTarget.fence({ groupId: GROUP, operationId: "failover-1", activeSite: "secondary" });
  await refused;
  assert.equal((await stream.session.closed)?.code ?? "FENCED", "FENCED");
  assert.deepEqual(
    await masterTarget.fence({ groupId: GROUP, operationId: "failover-1", activeSite: "secondary" }),
    fenced,
  );
  await assert.rejects(connect(site, source), (error) => isFault(error, "FENCED"));

  const status = await masterTarget.openExport({
    groupId: GROUP,
    operationId: "failover-1",
    point: fenced.newestPoint!.id,
    mode: "read-write",
  });
  assert.deepEqual(
    (
      await masterTarget.openExport({
        groupId: GROUP,
        operationId: "failover-1",
        point: fenced.newestPoint!.id,
        mode: "read-write",
      })
    ).disks,
    status.disks,
  );
  const expected = new Map(
    [...source.states.get(fenced.newestPoint!.barrier)!].map(([diskId, content]) => [diskId, content.slice()]),
  );

  // A client that reconnects, as QEMU does with reconnect-delay, writes through three kills of the export.
  const write = async (diskId: string, offset: number, length: number, pattern: number): Promise<void> => {
    const { url } = status.disks.find((disk) => disk.diskId === diskId)!;
    await until("the export is back", async () => {
      try {
        await run("qemu-io", ["-f", "raw", "-c", `write -P ${pattern} ${offset} ${length}`, "-c", "flush", url]);
        return true;
      } catch {
        return undefined; // Its process was killed under it: the write is repeated, as QEMU would.
      }
    });
    expected.get(diskId)!.fill(pattern, offset, offset + length);
  };
  for (let round = 0; round < 12; round++) {
    const disk = status.disks[round % 2]!;
    const offset = Math.floor((source.random() * (disk.sizeBytes - 70_000)) / 512) * 512;
    await write(disk.diskId, offset, 512 * (1 + Math.floor(source.random() * 130)), 1 + round);
    if (round % 4 === 2) process.kill(site.target.exportPids().get("failover-1")!, "SIGKILL");
  }
  for (const disk of status.disks) {
    const content = await until("the export answers", () =>
      nbdContent(site, disk.url, `live-${disk.diskId}`).catch(() => undefined),
    );
    assertSame(content, expected.get(disk.diskId)!, `${disk.diskId} over NBD after three kills`);
  }

  await site.restart(); // Of the whole master target: sockets, overlays and branch go on.
  const back = await until("the export is served again", async () => {
    const [one] = await site.target.masterTarget.listExports({ groupId: GROUP });
    return one && one.barrier > 0 ? one : undefined;
  });
  assert.deepEqual(back.disks, status.disks);
  await site.target.masterTarget.closeExport({ operationId: "failover-1", discard: false });

  // Everything that was written is in the store, without the overlay.
  const [newest] = await site.target.masterTarget.listPoints({ groupId: GROUP, limit: 1 });
  assert.ok(newest!.members.every((member) => member.branch === status.branch));
  const look = await site.target.masterTarget.openExport({
    groupId: GROUP,
    operationId: "look",
    point: newest!.id,
    mode: "read-only",
  });
  for (const disk of look.disks)
    assertSame(
      await nbdContent(site, disk.url, `branch-${disk.diskId}`),
      expected.get(disk.diskId)!,
      `${disk.diskId} from its branch`,
    );
  await site.target.masterTarget.closeExport({ operationId: "look", discard: true });
});
