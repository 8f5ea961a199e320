/** A plan through the whole system: applied, tried, run for real while its worker and control are killed, with a person in the middle. */
import assert from "node:assert/strict";
import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ledgerStatus, verifyLedger } from "../../src/demo/ledger.ts";
import { createGuestImages } from "../../src/embedded/guest.ts";
import { startSystem, until } from "../support/system.ts";

const GUEST = { cpus: 1, memoryMiB: 160, firmware: "bios" } as const;
const FORWARDS = [{ guestPort: 8080, hostPort: 0 }];

const PLAN = (folder: string): string => `
plan: till
objectives: { rto: 10m, rpo: 1m }
scripts:
  note: |
    #!/bin/sh
    echo "$LEEWARD_MODE $LEEWARD_STEP" >> ${folder}/notes
boot:
  - name: shop
    pre:
      - { name: close, script: note, undo: { script: note }, modes: [test, planned] }
    groups:
      - group: shop
        checks: [{ http: { port: 8080, path: /status }, within: 3m }]
    post:
      - { name: looks-right, approval: { question: "Does the till work?" } }
`;

test(
  "a plan is tried in a test, and then moves a running machine with a person's word, over the death of worker and control",
  { timeout: 600_000 },
  async (t) => {
    const system = await startSystem(t);
    const { client, folder, leeward } = system;
    const images = await createGuestImages(join(folder, "images"));
    await client.protect({
      name: "shop",
      disks: [`tap:${images.system}`, `tap:${images.data}`],
      policy: { intervalMs: 2_000 },
      config: GUEST,
      forwards: FORWARDS,
    });
    const view = await until("the first point", 180_000, async () => {
      const group = await client.group("shop");
      return group.phase === "protected" && group.disks.every((disk) => disk.tapUrl !== undefined) && group;
    });
    const source = await client.createMachine("primary", {
      operationId: "source",
      name: "shop",
      config: GUEST,
      disks: view.disks.map((disk, index) => ({
        diskId: disk.id,
        url: disk.tapUrl ?? "",
        ...(index === 0 ? { bootIndex: 1 } : {}),
      })),
      network: { mode: "isolated", forwards: FORWARDS },
      start: true,
    });
    await until(
      "the ledger at the source",
      120_000,
      async () => (await ledgerStatus(source.forwards[0]?.hostPort ?? 0)).b > 20,
    );

    const file = join(folder, "plan.yaml");
    // As root, scripts run as nobody.
    chmodSync(folder, 0o755);
    writeFileSync(join(folder, "notes"), "");
    chmodSync(join(folder, "notes"), 0o666);
    writeFileSync(file, PLAN(folder).replace("group: shop", "group: shoppe"));
    const bad = await leeward("plan", "apply", file);
    assert.equal(bad.code, 2);
    assert.match(bad.stderr, /PLAN_INVALID: Line 13, column 16: Group "shoppe" is not protected/);
    writeFileSync(file, PLAN(folder));
    assert.equal((await leeward("plan", "apply", file)).code, 0);

    const tried = await leeward("--json", "plan", "run", "till", "--mode", "test");
    assert.equal(tried.code, 0, `${tried.stderr}\n${tried.stdout}`);
    const { steps } = JSON.parse(tried.stdout) as { steps: { name: string; state: string }[] };
    assert.deepEqual(
      steps.map(({ name, state }) => `${name} ${state}`),
      ["shop/pre/close done", "shop/shop done", "shop/shop/check-1 done"],
    );
    assert.deepEqual(await client.machines("secondary"), [], "nothing of the test is left");
    const dry = await leeward("--json", "plan", "run", "till", "--mode", "test", "--dry-run");
    const resolved = JSON.parse(dry.stdout) as { predicted: { rtoMs: number; runs: number }; blockers: unknown[] };
    assert.deepEqual([resolved.predicted.runs, resolved.blockers], [1, []]);
    assert.ok(resolved.predicted.rtoMs > 1_000);

    const scheduled = await leeward("drill", "schedule", "till", "--cron", "* * * * *", "--jitter", "0s");
    assert.equal(scheduled.code, 0, scheduled.stderr);
    const drilled = await until("a drill by the schedule", 180_000, async () => {
      const [newest] = await client.planRuns("till");
      return newest !== undefined && newest.number > 1 && newest;
    });
    assert.equal((await leeward("drill", "schedule", "till", "--off")).code, 0);
    assert.equal(drilled.record["previous"] === "", false);
    const reported = await leeward("--json", "drill", "report", "till", "--out", folder);
    assert.equal(reported.code, 0, reported.stderr);
    const { html, json, report } = JSON.parse(reported.stdout) as {
      html: string;
      json: string;
      report: { state: string; drill: boolean };
    };
    assert.deepEqual([report.state, report.drill], ["done", true], reported.stdout);
    assert.match(readFileSync(html, "utf8"), /Difference to number 1/);
    assert.equal((await leeward("drill", "verify", json)).code, 0);
    writeFileSync(json, readFileSync(json, "utf8").replace('"state": "done"', '"state": "failed"'));
    assert.equal((await leeward("drill", "verify", json)).code, 1);
    // One that the schedule began just before it was put off.
    await until("rest", 120_000, async () =>
      (await client.operations()).every(({ kind, state }) => kind !== "plan" || state !== "running"),
    );
    assert.deepEqual(await client.machines("secondary"), []);

    const begun = await leeward("--json", "plan", "run", "till", "--mode", "planned", "--yes", "--no-wait");
    assert.equal(begun.code, 0, begun.stderr);
    const { operationId } = JSON.parse(begun.stdout) as { operationId: string };
    await until(
      "the move to begin",
      60_000,
      async () => (await client.operation(operationId)).steps[1]?.state === "running",
    );
    assert.equal(system.kill("secondary", "worker"), 1);
    await until(
      "the question",
      300_000,
      async () => (await client.operation(operationId)).steps.at(-1)?.choices !== undefined,
    );
    assert.equal(system.kill("secondary", "worker"), 1);
    assert.equal(system.kill("secondary", "control"), 1);
    const approved = await until("an answer", 60_000, async () => {
      const answer = await leeward("operation", "approve", operationId, "--note", "rang it up");
      return answer.code === 0 && answer;
    });
    assert.match(approved.stdout, /looks-right/);
    const ended = await until("the end", 60_000, async () => {
      const state = await client.operation(operationId);
      return state.state !== "running" && state;
    });
    assert.equal(ended.state, "done", JSON.stringify(ended));
    assert.equal((await client.group("shop")).phase, "failed-over");
    const [machine] = await client.machines("secondary");
    assert.ok((await verifyLedger(machine?.forwards[0]?.hostPort ?? 0)).whole);
    const notes = readFileSync(join(folder, "notes"), "utf8").trim().split("\n");
    // Every try was taken back, by hand and by schedule (at least one each); the real run was not.
    assert.equal(notes.pop(), "planned shop/pre/close");
    assert.ok(notes.length >= 4);
    for (const [index, note] of notes.entries())
      assert.equal(note, index % 2 === 0 ? "test shop/pre/close" : "test shop/pre/close undo");
  },
);
