/** Expiry at a real master target: what speaks against it, and that an export holds its point from before it opens until it is closed. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { DEFAULT_RETENTION } from "#model/retention/policy.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { s3ObjectStore } from "../../src/adapters/s3/s3-object-store.ts";
import { openSourceStream, ScriptedSource } from "../data-mover/mover-source.ts";
import { GROUP, targetSite, until } from "./target-site.ts";

test("Points expire only of a group that says how long they are kept, while it is protected and its source is there; an export pins its point until it is closed", async (t) => {
  const site = await targetSite(t);
  const { masterTarget } = site.target;
  const source = new ScriptedSource([600], 5);
  await site.prepare(source);
  const stream = await openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 1,
    site: "primary",
  });
  while (source.disks.some((disk) => disk.unsynced.size > 0)) await stream.ship(source.cut({ sweepBlocks: 500 }));
  await stream.ship(source.cut({ writes: 9 }));
  await until("the mover says that it is live", async () => {
    const seen = await masterTarget.observeGroup({ groupId: GROUP, cursor: "", waitMs: 100 });
    return seen.state === "live" && seen.connected ? seen : undefined;
  });
  const stopped = async () => (await masterTarget.expirePoints({ budgetMs: 60_000 }))[0]?.stopped;
  assert.deepEqual(await stopped(), ["not-enabled"]);
  const record = { policy: { retention: DEFAULT_RETENTION }, sourceSite: "primary", targetSite: "secondary" };
  const keep = (revision: number, phase: string) =>
    masterTarget.recordGroup({ groupId: GROUP, revision, record: { ...record, phase } as never });
  await keep(1, "failed-over");
  assert.deepEqual(await stopped(), ["failover-uncommitted"]);
  await keep(2, "protected");
  const [pass] = await masterTarget.expirePoints({ budgetMs: 60_000 });
  assert.deepEqual([pass!.stopped, pass!.fault, pass!.pointsKept > 0, pass!.deleted], [[], undefined, true, 0]);
  assert.ok((await masterTarget.listPoints({ groupId: GROUP }))[0]!.reasonKept.includes("newest point"));

  const store = { ...site.server, bucket: "leeward" };
  await using objects = s3ObjectStore(store, { clock: systemClock, random: systemRandom });
  const pins = async (): Promise<string[]> => {
    let newest = "";
    for await (const { key } of objects.list(`site/disks/${source.disks[0]!.diskId}/manifests/`)) newest = key;
    const { ledger } = JSON.parse(Buffer.from(await objects.get(newest)).toString()) as {
      readonly ledger?: { readonly pins: readonly { readonly id: string }[] };
    };
    return ledger?.pins.map(({ id }) => id) ?? [];
  };
  await masterTarget.openExport({ groupId: GROUP, operationId: "look", point: "latest", mode: "read-only" });
  assert.deepEqual(await pins(), ["export/look"]);
  await masterTarget.expirePoints({ budgetMs: 60_000 });
  assert.deepEqual(await pins(), ["export/look"], "the pass knows the export");
  await masterTarget.closeExport({ operationId: "look", discard: true });
  assert.deepEqual(await pins(), []);
});
