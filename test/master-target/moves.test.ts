/** The moves after a failover at a real master target: another point, back to what was left, back to the source. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import type { ExportStatus, MasterTarget } from "#ports/master-target.ts";
import { openSourceStream, ScriptedSource, type SourceStream } from "../data-mover/mover-source.ts";
import { GROUP, run, targetSite, type TargetSite } from "./target-site.ts";

const refusedAs =
  (code: Parameters<typeof isFault>[1]) =>
  (error: unknown): boolean =>
    isFault(error, code);

function connect(site: TargetSite, source: ScriptedSource): Promise<SourceStream> {
  return openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 1,
    site: "primary",
  });
}

async function content(site: TargetSite, status: ExportStatus): Promise<Buffer> {
  const file = join(site.folder, "copy.img");
  await run("nbdcopy", [status.disks[0]!.url, file]);
  return await readFile(file);
}

async function write(status: ExportStatus, offset: number, pattern: number): Promise<void> {
  const command = ["-f", "raw", "-c", `write -P ${pattern} ${offset} 65536`, "-c", "flush"];
  await run("qemu-io", [...command, status.disks[0]!.url]);
}

/** A source with two points, failed over to the newer one; `pattern` was written to it at the target. */
async function failedOver(site: TargetSite, masterTarget: MasterTarget) {
  const source = new ScriptedSource([1_000], 5);
  await site.prepare(source);
  const stream = await connect(site, source);
  while (source.disks.some((disk) => disk.unsynced.size > 0)) await stream.ship(source.cut({ sweepBlocks: 500 }));
  const older = await stream.ship(source.cut({ writes: 9 }));
  const newer = await stream.ship(source.cut({ writes: 9 }));
  assert.notEqual(older, newer);
  await masterTarget.fence({ groupId: GROUP, operationId: "f1", activeSite: "secondary", resume: "root" });
  const points = await masterTarget.listPoints({ groupId: GROUP });
  const request = { groupId: GROUP, operationId: "f1", point: points[0]!.id, mode: "read-write" } as const;
  const status = await masterTarget.openExport(request);
  const expected = Buffer.from(await content(site, status));
  await write(status, 8_192, 0x41);
  expected.fill(0x41, 8_192, 8_192 + 65_536);
  assert.ok((await content(site, status)).equals(expected));
  return { source, points, request, expected };
}

test("An export that was closed comes back with all that was written, for who says so; another point in between changes nothing of that", async (t) => {
  const site = await targetSite(t);
  const { masterTarget } = site.target;
  const { points, request, expected } = await failedOver(site, masterTarget);
  const close = { operationId: "f1", discard: false };
  await masterTarget.closeExport(close);
  await masterTarget.closeExport(close);
  await assert.rejects(masterTarget.openExport(request), refusedAs("REFUSED"));
  for (let twice = 0; twice < 2; twice++) {
    const back = await masterTarget.openExport({ ...request, reopen: "c0-back" });
    assert.ok((await content(site, back)).equals(expected), "reopened");
  }
  // A change of point that is taken back before its machines ran.
  await masterTarget.closeExport(close);
  const older = { ...request, operationId: "c1", point: points.at(-1)!.id, reason: "changed-point" } as const;
  const changed = await masterTarget.openExport(older);
  assert.ok(!(await content(site, changed)).equals(expected));
  await write(changed, 0, 0x42);
  await masterTarget.closeExport({ operationId: "c1", discard: true });
  const back = await masterTarget.openExport({ ...request, reopen: "c1-back" });
  assert.ok((await content(site, back)).equals(expected), "reopened after another point");
  await write(back, 262_144, 0x43);
  expected.fill(0x43, 262_144, 262_144 + 65_536);
  await masterTarget.closeExport(close);

  // What it wrote after it came back is committed too: the claim is really its own again.
  const [newest] = await masterTarget.listPoints({ groupId: GROUP, branch: back.branch ?? "" });
  assert.equal(newest?.members[0]?.branch, back.branch);
  const look = { groupId: GROUP, operationId: "look", point: newest!.id, mode: "read-only" } as const;
  assert.ok((await content(site, await masterTarget.openExport(look))).equals(expected), "from its branch");
  // And its overlay is gone only when somebody says so.
  await masterTarget.closeExport({ operationId: "f1", discard: true });
  await assert.rejects(masterTarget.openExport({ ...request, reopen: "c2-back" }), refusedAs("REFUSED"));
});

test("Given back, the group goes on along the source's branch; what was left is listed beside it and opens for reading only", async (t) => {
  const site = await targetSite(t);
  const { masterTarget } = site.target;
  const { source, request, expected } = await failedOver(site, masterTarget);
  await masterTarget.closeExport({ operationId: "f1", discard: false });
  const giveBack = { groupId: GROUP, operationId: "u1", activeSite: "primary", resume: "root" };
  const back = await masterTarget.fence(giveBack);
  assert.deepEqual(await masterTarget.fence(giveBack), back);
  await assert.rejects(masterTarget.openExport({ ...request, reopen: "u1-back" }), refusedAs("FENCED"));
  await assert.rejects(
    masterTarget.openExport({ ...request, operationId: "f2", mode: "read-write" }),
    refusedAs("REFUSED"),
  );
  const before = await masterTarget.listPoints({ groupId: GROUP });
  const [kept] = before;
  assert.notEqual(kept?.members[0]?.branch, "root");
  const line = await masterTarget.listPoints({ groupId: GROUP, branch: "root" });
  assert.ok(line.length > 0 && line.every(({ members }) => members[0]?.branch === "root"));

  const stream = await connect(site, source);
  assert.equal(stream.opened.barrier, kept?.barrier, "the source numbers its cuts on from what the replica used");
  source.cycle = stream.opened.barrier;
  await stream.ship(source.cut({ writes: 7 }));
  const [newest] = await masterTarget.listPoints({ groupId: GROUP, limit: 1 });
  assert.equal(newest?.members[0]?.branch, "root");
  assert.ok(newest.barrier > (kept?.barrier ?? 0));
  const read = async (operationId: string, point: string): Promise<Buffer> =>
    await content(site, await masterTarget.openExport({ groupId: GROUP, operationId, point, mode: "read-only" }));
  assert.ok((await read("look-1", newest.id)).equals(source.states.get(newest.barrier)!.get(source.disks[0]!.diskId)!));
  assert.ok((await read("look-2", kept!.id)).equals(expected));
});

test("A group that is released after its failover and prepared anew waits for its source: it is not fenced by what was here before", async (t) => {
  const site = await targetSite(t);
  const { masterTarget } = site.target;
  await failedOver(site, masterTarget);
  await masterTarget.closeExport({ operationId: "f1", discard: true });
  await masterTarget.releaseGroup({ groupId: GROUP, operationId: "x1" });
  // Whoever looks in between sees no group, and leaves nothing behind.
  await assert.rejects(masterTarget.observeGroup({ groupId: GROUP, cursor: "", waitMs: 0 }), refusedAs("NOT_FOUND"));
  await masterTarget.prepareGroup({
    groupId: GROUP,
    operationId: "protect-2",
    groupName: "Web tier",
    sourceSite: "primary",
    disks: [{ diskId: "disk-anew", machine: "web-1", sizeBytes: 1_000 * 4_096, sectorBytes: 512, bootIndex: 0 }],
    record: "{}",
  });
  const seen = await masterTarget.observeGroup({ groupId: GROUP, cursor: "", waitMs: 0 });
  assert.deepEqual([seen.state, seen.fault], ["waiting", undefined]);
});
