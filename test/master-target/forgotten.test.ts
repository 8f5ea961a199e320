/** A master target that has lost its state folder, and kept its keys: the store tells it where its groups stand. */
import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { openSourceStream, ScriptedSource, type SourceStream } from "../data-mover/mover-source.ts";
import { GROUP, run, targetSite, until, type TargetSite } from "./target-site.ts";

function connect(site: TargetSite, source: ScriptedSource): Promise<SourceStream> {
  return openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 1,
    site: "primary",
  });
}

async function forget(site: TargetSite): Promise<void> {
  await site.target.close();
  await rm(site.config.stateDir, { recursive: true });
  await site.restart();
}

async function pass(site: TargetSite, source: ScriptedSource): Promise<SourceStream> {
  const stream = await connect(site, source);
  while (source.disks.some((disk) => disk.unsynced.size > 0)) await stream.ship(source.cut({ sweepBlocks: 500 }));
  await stream.ship(source.cut({ writes: 9 }));
  return stream;
}

test("prepared again after a failover and an undo, it knows the epoch, and its source goes on where it was", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([1_000], 5);
  await site.prepare(source);
  await pass(site, source);
  const { masterTarget } = site.target;
  await masterTarget.fence({ groupId: GROUP, operationId: "f1", activeSite: "secondary", resume: "root" });
  await masterTarget.fence({ groupId: GROUP, operationId: "u1", activeSite: "primary", resume: "root" });
  const record = { version: 1, phase: "protected" };
  await masterTarget.recordGroup({ groupId: GROUP, revision: 4, record });
  await forget(site);

  const { groups } = await site.target.masterTarget.readCatalog({});
  assert.deepEqual(
    groups.map(({ groupId, entry, claim, disk, damaged }) => [groupId, entry?.record, claim, disk, damaged]),
    [[GROUP, record, { groupEpoch: 3, activeSite: "primary", operation: "u1" }, { branch: "root", moving: false }, []]],
  );
  await assert.rejects(site.target.masterTarget.listPoints({ groupId: GROUP }), (error) => isFault(error, "NOT_FOUND"));
  await site.prepare(source);
  const stream = await connect(site, source);
  assert.equal(stream.opened.disks[0]?.cycle, source.cycle, "nothing is copied anew");
  const { barrierNumber } = await stream.ship(source.cut({ writes: 9 }));
  const [newest] = await site.target.masterTarget.listPoints({ groupId: GROUP, limit: 1 });
  assert.equal(newest?.barrier, barrierNumber);
});

test("failed over, it does not serve a point as if it were what the machines had made of it", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([1_000], 5);
  await site.prepare(source);
  await pass(site, source);
  const { masterTarget } = site.target;
  await masterTarget.fence({ groupId: GROUP, operationId: "f1", activeSite: "secondary", resume: "root" });
  const [point] = await masterTarget.listPoints({ groupId: GROUP });
  const request = { groupId: GROUP, operationId: "f1", point: point!.id, mode: "read-write" } as const;
  const status = await masterTarget.openExport(request);
  await run("qemu-io", ["-f", "raw", "-c", "write -P 65 8192 65536", "-c", "flush", status.disks[0]!.url]);
  const branch = status.branch!;
  await until("a commit", async () =>
    (await masterTarget.listPoints({ groupId: GROUP, branch })).find(onBranch(branch)),
  );
  await forget(site);

  await site.prepare(source);
  const again = site.target.masterTarget;
  await assert.rejects(
    again.openExport(request),
    (error) => isFault(error, "REFUSED") && /change-point/.test(error.hint ?? ""),
  );
  const newest = (await again.listPoints({ groupId: GROUP })).find(onBranch(branch));
  const on = { ...request, operationId: "c1", point: newest!.id, reason: "changed-point" } as const;
  const changed = await again.openExport(on);
  await run("qemu-io", ["-f", "raw", "-c", "read -P 65 8192 65536", changed.disks[0]!.url]);
});

const onBranch =
  (branch: string) =>
  ({ members }: { readonly members: readonly { readonly branch: string }[] }): boolean =>
    members.every((member) => member.branch === branch);
