/** A planned failover of a running guest: it is shut down, its last write is in the final cut, and it comes up at the other site without losing a record. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { ledgerStatus, verifyLedger } from "../../src/demo/ledger.ts";
import { watchLedger } from "../../src/demo/watch.ts";
import { createGuestImages } from "../../src/embedded/guest.ts";
import { startSystem, until } from "../support/system.ts";

const GUEST = { cpus: 1, memoryMiB: 160, firmware: "bios" } as const;
const FORWARDS = [{ guestPort: 8080, hostPort: 0 }];

test("a planned failover loses no record, and leaves the source off", { timeout: 400_000 }, async (t) => {
  const { client, folder } = await startSystem(t);
  const images = await createGuestImages(join(folder, "images"));
  await client.protect({
    name: "planned",
    disks: [`tap:${images.system}`, `tap:${images.data}`],
    policy: { intervalMs: 2_000 },
    config: GUEST,
    forwards: FORWARDS,
  });
  const view = await until("the first point", 180_000, async () => {
    const group = await client.group("planned");
    return group.phase === "protected" && group.disks.every((disk) => disk.tapUrl !== undefined) && group;
  });
  const source = await client.createMachine("primary", {
    operationId: "source",
    name: "planned",
    config: GUEST,
    disks: view.disks.map((disk, index) => ({
      diskId: disk.id,
      url: disk.tapUrl ?? "",
      ...(index === 0 ? { bootIndex: 1 } : {}),
    })),
    network: { mode: "isolated", forwards: FORWARDS },
    start: true,
  });
  const sourcePort = source.forwards[0]?.hostPort ?? 0;
  await until("the ledger at the source", 120_000, async () => (await ledgerStatus(sourcePort)).b > 20);

  const watch = watchLedger(sourcePort, 50);
  t.after(() => watch.stop());
  const { operationId } = await client.failover("planned", { mode: "planned" });
  const operation = await until("the end of the failover", 240_000, async () => {
    const state = await client.operation(operationId, { waitMs: 1_000 });
    if (state.state === "running") throw new Error(JSON.stringify(state));
    return state;
  });
  await watch.stop();
  assert.equal(operation.state, "done", JSON.stringify(operation));

  const lastSeen = Math.max(...watch.sightings.map((one) => one.record));
  assert.ok(lastSeen > 20);
  const port = operation.machines?.[0]?.forwards[0]?.hostPort ?? 0;
  const verdict = await until("the ledger at the target", 120_000, () => verifyLedger(port));
  const [atBoot] = verdict.foundAtBoot;
  assert.ok(atBoot >= lastSeen, `record ${lastSeen} was seen at the source, and ${atBoot} was the last at the target`);
  assert.equal(verdict.gapAtBoot, 0, "it was shut down: both disks agree");
  assert.ok(verdict.whole);

  const machines = await client.machines("primary");
  assert.deepEqual(
    machines.filter((machine) => machine.name === "planned").map((machine) => machine.power),
    ["off"],
    "the source",
  );
  const after = await client.group("planned");
  assert.equal(after.phase, "failed-over");
  assert.equal(after.activeSite, "secondary");
});
