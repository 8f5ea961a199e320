/** The way back at a real master target: a store takes a group that it never had, or that it had once, and then another site's writes. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import { openSourceStream, ScriptedSource, type SourceStream } from "../data-mover/mover-source.ts";
import { GROUP, run, targetSite, type TargetSite } from "./target-site.ts";

type Site = "primary" | "secondary";

const refusedAs =
  (code: Parameters<typeof isFault>[1]) =>
  (error: unknown): boolean =>
    isFault(error, code);

async function connect(site: TargetSite, source: ScriptedSource, from: Site, branch: string): Promise<SourceStream> {
  const link = from === "primary" ? site.sourceLink : site.localLink;
  const stream = await openSourceStream(link, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 1,
    site: from,
    branch,
  });
  source.cycle = Math.max(source.cycle, stream.opened.barrier);
  return stream;
}

/** Everything is swept, then a point is made. Its number. */
async function seed(stream: SourceStream, source: ScriptedSource): Promise<number> {
  while (source.disks.some((disk) => disk.unsynced.size > 0)) await stream.ship(source.cut({ sweepBlocks: 500 }));
  await stream.ship(source.cut({ writes: 5 }));
  return source.cycle;
}

/** All disks of the point at a barrier, as one text per disk. */
async function assertPoint(site: TargetSite, barrier: number, source: ScriptedSource): Promise<void> {
  const { masterTarget } = site.target;
  const point = (await masterTarget.listPoints({ groupId: GROUP })).find((one) => one.barrier === barrier);
  assert.ok(point !== undefined, `no point at barrier ${barrier}`);
  const operationId = `look-${barrier}`;
  const status = await masterTarget.openExport({ groupId: GROUP, operationId, point: point.id, mode: "read-only" });
  for (const { diskId, url } of status.disks) {
    const file = join(site.folder, `${operationId}.img`);
    await run("nbdcopy", [url, file]);
    assert.ok((await readFile(file)).equals(source.states.get(barrier)!.get(diskId)!), `${diskId} at ${barrier}`);
  }
  await masterTarget.closeExport({ operationId, discard: true });
}

function prepareFor(masterTarget: MasterTarget, source: ScriptedSource, sourceSite: Site, operationId: string) {
  return masterTarget.prepareGroup({
    groupId: GROUP,
    operationId,
    groupName: "Web tier",
    sourceSite,
    disks: source.disks.map((disk) => ({
      diskId: disk.diskId,
      machine: "web-1",
      sizeBytes: disk.content.length,
      sectorBytes: 512,
    })),
    record: "{}",
    atLeastEpoch: 7,
  });
}

test("An empty store takes a group at an epoch above the one it comes from, then turns it to another site's writes", async (t) => {
  const site = await targetSite(t);
  const { masterTarget } = site.target;
  const old = new ScriptedSource([700, 300], 3);
  const prepared = await prepareFor(masterTarget, old, "secondary", "re1");
  assert.deepEqual([prepared.branch, prepared.groupEpoch], ["root", 8]);
  assert.deepEqual(await prepareFor(masterTarget, old, "secondary", "re1"), prepared);
  const local = await connect(site, old, "secondary", "root");
  const before = await seed(local, old);
  await masterTarget.bookmark({ groupId: GROUP, operationId: "b1", barrier: before, name: "before-reprotect" });

  const turn = { groupId: GROUP, operationId: "re1-turn", activeSite: "primary", atLeastEpoch: 8 };
  const turned = await masterTarget.turn(turn);
  assert.deepEqual(await masterTarget.turn(turn), turned);
  assert.match(turned.branch, /^r-[0-9a-f]{16}$/);
  assert.deepEqual([turned.groupEpoch, turned.newestPoint?.barrier], [9, before]);
  // The old disk's source is told, whether it comes again or was connected.
  await assert.rejects(local.ship(old.cut({ writes: 1 })));
  await assert.rejects(connect(site, old, "secondary", "root"), refusedAs("FENCED"));
  await assert.rejects(connect(site, old, "secondary", turned.branch), refusedAs("FENCED"));
  // A late repeat of the preparation takes nothing back, also when the master target has forgotten everything else.
  const known = await prepareFor(masterTarget, old, "primary", "re1");
  assert.deepEqual([known.branch, known.groupEpoch], [turned.branch, 9]);

  const machine = new ScriptedSource([700, 300], 4);
  const stream = await connect(site, machine, "primary", turned.branch);
  assert.ok(machine.cycle >= before, "numbers go on above those of the old disk");
  const after = await seed(stream, machine);
  assert.ok(after > before);
  await assertPoint(site, after, machine);
  await assertPoint(site, before, old);
  const line = await masterTarget.listPoints({ groupId: GROUP, branch: turned.branch });
  assert.deepEqual([line[0]?.barrier, line.some((point) => point.name === "before-reprotect")], [after, true]);
  assert.deepEqual(await masterTarget.turn(turn), turned);
  await stream.ship(machine.cut({ writes: 3 }));
});

test("A store that had the group takes it again at its newest point, whoever wrote that, and never goes back to its root", async (t) => {
  const site = await targetSite(t);
  const { masterTarget } = site.target;
  const first = new ScriptedSource([500], 5);
  await site.prepare(first);
  const stream = await connect(site, first, "primary", "root");
  await seed(stream, first);
  await masterTarget.fence({ groupId: GROUP, operationId: "f1", activeSite: "secondary", resume: "root" });
  const status = await masterTarget.openExport({
    groupId: GROUP,
    operationId: "f1",
    point: "latest",
    mode: "read-write",
  });
  await run("qemu-io", ["-f", "raw", "-c", "write -P 65 8192 65536", "-c", "flush", status.disks[0]!.url]);
  await masterTarget.closeExport({ operationId: "f1", discard: true });
  const [kept] = await masterTarget.listPoints({ groupId: GROUP, branch: status.branch! });

  // Its machines were replicated elsewhere meanwhile; now their old disks are swept into it.
  const old = new ScriptedSource([500], 6);
  const prepared = await prepareFor(masterTarget, old, "secondary", "re2");
  assert.match(prepared.branch, /^r-/);
  assert.equal(prepared.groupEpoch, 8);
  assert.deepEqual(await prepareFor(masterTarget, old, "secondary", "re2"), prepared);
  const [newest] = await masterTarget.listPoints({ groupId: GROUP, branch: prepared.branch });
  assert.equal(newest?.id, kept?.id);
  await assert.rejects(connect(site, first, "primary", "root"), refusedAs("FENCED"));
  await seed(await connect(site, old, "secondary", prepared.branch), old);

  // Given up, and asked for again under another id: from what is there.
  await masterTarget.releaseGroup({ groupId: GROUP, operationId: "re2" });
  const again = await prepareFor(masterTarget, old, "secondary", "re3");
  assert.notEqual(again.branch, prepared.branch);
  for (const disk of old.disks)
    for (let block = 0; block < disk.content.length / 4_096; block += 1) disk.unsynced.add(block);
  const before = await seed(await connect(site, old, "secondary", again.branch), old);
  await site.restart();
  const turned = await site.target.masterTarget.turn({
    groupId: GROUP,
    operationId: "re3-turn",
    activeSite: "primary",
    atLeastEpoch: again.groupEpoch,
  });
  assert.equal(turned.newestPoint?.barrier, before);
  const machine = new ScriptedSource([500], 7);
  const after = await seed(await connect(site, machine, "primary", turned.branch), machine);
  await assertPoint(site, after, machine);
  await assertPoint(site, before, old);
  const all = await site.target.masterTarget.listPoints({ groupId: GROUP });
  assert.ok(
    all.some((point) => point.id === kept?.id),
    "what was written here before stays",
  );
});

test("A master target that lost its state takes the store's word for where a group is", async (t) => {
  const site = await targetSite(t);
  const old = new ScriptedSource([200], 8);
  await prepareFor(site.target.masterTarget, old, "secondary", "re1");
  await seed(await connect(site, old, "secondary", "root"), old);
  const turned = await site.target.masterTarget.turn({
    groupId: GROUP,
    operationId: "re1-turn",
    activeSite: "primary",
    atLeastEpoch: 8,
  });
  await site.target.close();
  await run("rm", ["-f", join(site.config.stateDir, "groups.json")]);
  await site.restart();
  const known = await prepareFor(site.target.masterTarget, old, "primary", "re1");
  assert.deepEqual([known.branch, known.groupEpoch], [turned.branch, turned.groupEpoch]);
  const machine = new ScriptedSource([200], 9);
  await assertPoint(site, await seed(await connect(site, machine, "primary", turned.branch), machine), machine);
});

test("Preparation that stopped half-way is finished by another operation; without a point the branch goes on", async (t) => {
  const site = await targetSite(t);
  const { masterTarget } = site.target;
  const old = new ScriptedSource([100, 100], 10);
  await prepareFor(masterTarget, old, "secondary", "re1");
  const again = await prepareFor(masterTarget, old, "secondary", "re2");
  assert.deepEqual([again.branch, again.groupEpoch], ["root", 9]);
  const turned = await masterTarget.turn({ groupId: GROUP, operationId: "t", activeSite: "primary", atLeastEpoch: 20 });
  assert.deepEqual([turned.branch, turned.groupEpoch, turned.newestPoint], ["root", 21, undefined]);
  const machine = new ScriptedSource([100, 100], 11);
  await assertPoint(site, await seed(await connect(site, machine, "primary", "root"), machine), machine);
});
