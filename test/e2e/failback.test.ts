/**
 * The whole way with a running guest: its site is lost, it runs at the other one and is committed; its site comes back and is reprotected; it comes home,
 * without losing a record, to the disks it once had; and is protected in the first direction again.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { test } from "node:test";
import type { OperationState } from "../../src/api/contract.ts";
import { ledgerStatus, verifyLedger } from "../../src/demo/ledger.ts";
import { ended, startProtectedGuest } from "../support/protected-guest.ts";
import { startSystem, until } from "../support/system.ts";

const GROUP = "home";

test(
  "out, work on the other side, home again without losing a record, and protected as at first",
  { timeout: 1_500_000 },
  async (t) => {
    const system = await startSystem(t);
    const { client } = system;
    const { files, view } = await startProtectedGuest(system, { name: GROUP, intervalMs: 2_000 });
    const lost = await system.leeward("site", "lose", "primary", "--yes");
    assert.equal(lost.code, 0, lost.stderr);
    const out = await ended(
      client,
      (await client.failover(GROUP, { mode: "unplanned", sourceLost: true })).operationId,
    );
    let port = portOf(out);
    await written(port, 10);
    assert.equal((await client.commit(GROUP)).phase, "committed");
    const switchedOn = await system.leeward("site", "start", "primary");
    assert.equal(switchedOn.code, 0, switchedOn.stderr);
    const before = await Promise.all(files.map(digest));

    await t.test("reprotect, through kill -9 of worker, master target and process server", async () => {
      const beganAt = await ledgerStatus(port);
      const started = await until("the old disks are reported", 120_000, async () => {
        const { operationId } = await client.reprotect(GROUP);
        const first = await until("a step", 60_000, async () => {
          const state = await client.operation(operationId, { waitMs: 500 });
          return (
            (state.state !== "running" ||
              state.steps.some((step) => step.name === "prepare target" && step.state !== "waiting")) &&
            state
          );
        });
        return first.fault?.code !== "REFUSED" && first;
      });
      for (const [step, site, name] of [
        ["sweep old disks", "primary", "master-target"],
        ["move disks", "secondary", "worker"],
        ["first point", "secondary", "process-server"],
      ] as const) {
        await until(step, 240_000, async () => {
          const state = await client.operation(started.operationId, { waitMs: 100 });
          return state.steps.some((one) => one.name === step && one.state !== "waiting");
        });
        assert.ok(system.kill(site, name) > 0, `there was no ${name} to kill`);
      }
      const operation = await ended(client, started.operationId);
      assert.deepEqual(
        operation.steps.filter((step) => step.state !== "done"),
        [],
      );
      const group = await until("protected", 120_000, async () => {
        const one = await client.group(GROUP);
        return one.phase === "protected" && one;
      });
      assert.deepEqual(
        [group.sourceSite, group.targetSite, group.reversed, group.activeSite],
        ["secondary", "primary", true, "secondary"],
      );
      assert.deepEqual(await Promise.all(files.map(digest)), before, "the old disks were only read");
      assert.ok((await client.points(GROUP)).some((point) => point.name?.startsWith("before-reprotect-") === true));
      // The guest never noticed: same machine, same port, and it went on writing.
      await written(port, 10);
      assert.ok((await ledgerStatus(port)).b > beganAt.b);
      const shown = await system.leeward("group", "show", GROUP);
      assert.match(shown.stdout, /secondary → primary \(reversed\)/);
    });

    await t.test("home, without losing a record", async () => {
      const last = await ledgerStatus(port);
      const answer = await system.leeward("failback", GROUP, "--yes", "--json");
      assert.equal(answer.code, 0, answer.stderr);
      const operation = JSON.parse(answer.stdout) as OperationState;
      assert.deepEqual(
        operation.machines?.map(({ name, site }) => [name, site]),
        [[view.disks[0]?.machine, "primary"]],
      );
      port = portOf(operation);
      const verdict = await until("the ledger at home", 180_000, () => verifyLedger(port));
      assert.ok(verdict.whole && verdict.ok);
      assert.ok(verdict.foundAtBoot[0] >= last.b, `record ${last.b} was acknowledged before the failback`);
      assert.deepEqual(await Promise.all(files.map(digest)), before, "its old disks are still as they were");
    });

    await t.test("committed and reprotected, it is protected as at first, on the disks it once had", async () => {
      assert.equal((await client.commit(GROUP)).phase, "committed");
      await ended(client, (await client.reprotect(GROUP)).operationId);
      const group = await client.group(GROUP);
      assert.deepEqual(
        [group.phase, group.sourceSite, group.targetSite, group.reversed],
        ["protected", "primary", "secondary", false],
      );
      assert.deepEqual(
        group.disks.map(({ source: disk }) => disk),
        view.disks.map(({ source: disk }) => disk),
      );
      await written(port, 5);
      assert.notDeepEqual(await Promise.all(files.map(digest)), before);
      const verdict = await verifyLedger(port);
      assert.ok(verdict.whole);
    });
  },
);

function portOf(operation: OperationState): number {
  return operation.machines?.[0]?.forwards[0]?.hostPort ?? 0;
}

/** The guest goes on: so many records more. */
async function written(port: number, records: number): Promise<void> {
  const from = await until("the ledger", 180_000, () => ledgerStatus(port));
  await until("records", 120_000, async () => (await ledgerStatus(port)).b > from.b + records);
}

async function digest(file: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file)) hash.update(chunk as Uint8Array);
  return hash.digest("hex");
}
