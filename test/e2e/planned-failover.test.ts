/** A planned failover of a running guest: it is shut down, its last write is in the final cut, and it comes up at the other site without losing a record. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { verifyLedger } from "../../src/demo/ledger.ts";
import { watchLedger } from "../../src/demo/watch.ts";
import { ended, startProtectedGuest } from "../support/protected-guest.ts";
import { startSystem, until } from "../support/system.ts";

test("a planned failover loses no record, and leaves the source off", { timeout: 400_000 }, async (t) => {
  const system = await startSystem(t);
  const { client } = system;
  const { port: sourcePort } = await startProtectedGuest(system, { name: "planned", intervalMs: 2_000 });

  const watch = watchLedger(sourcePort, 50);
  t.after(() => watch.stop());
  const { operationId } = await client.failover("planned", { mode: "planned" });
  const operation = await ended(client, operationId);
  await watch.stop();

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
