import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { openSpool, type Spool, type SpoolCycle } from "../../src/process-server/spool.ts";

const MIB = 1 << 20;

function spoolFor(t: { after(work: () => void): void }, bytesMax: number): { spool: Spool; folder: string } {
  const home = mkdtempSync(join(tmpdir(), "leeward-spool-"));
  t.after(() => rmSync(home, { recursive: true, force: true }));
  const folder = join(home, "spool");
  return { spool: openSpool({ folder, bytesMax }), folder };
}

async function contents(cycle: SpoolCycle): Promise<Buffer[]> {
  const all = [];
  for await (const { diskId, payload } of cycle.read()) all.push(Buffer.concat([Buffer.from(diskId), payload]));
  return all;
}

test("what goes in comes out in order, from memory and from the file, as often as it is asked for", async (t) => {
  const { spool, folder } = spoolFor(t, 16 * MIB);
  const cycle = spool.open("group", 1, () => false);
  const expected = [];
  for (let index = 0; index < 10; index += 1) {
    const payload = randomBytes(MIB - index);
    await cycle.append(`disk-${index % 2}`, payload);
    expected.push(Buffer.concat([Buffer.from(`disk-${index % 2}`), payload]));
    payload.fill(0); // The spool has a copy.
  }
  cycle.complete();
  assert.ok(readdirSync(folder).length === 1, "a quarter stays in memory, the rest is in a file");
  assert.deepEqual(await contents(cycle), expected);
  assert.deepEqual(await contents(cycle), expected);
  assert.ok(cycle.resendable);
  cycle.drop();
  assert.equal(spool.usedBytes, 0);
  await spool.close();
});

test("nothing of a payload can be read in the file", async (t) => {
  const { spool, folder } = spoolFor(t, MIB);
  const cycle = spool.open("group", 1, () => false);
  const payload = Buffer.alloc(MIB / 2, "confidential ");
  await cycle.append("disk", payload);
  const [file] = readdirSync(folder);
  assert.ok(!readFileSync(join(folder, file!)).includes("confidential"));
  assert.deepEqual(openSpool({ folder: `${folder}-other`, bytesMax: MIB }).usedBytes, 0);
  await spool.close();
});

test("full and not drained: the fault comes at once; drained: append waits for room", async (t) => {
  const { spool } = spoolFor(t, 2 * MIB);
  let drained = false;
  const first = spool.open("group", 1, () => drained);
  const second = spool.open("group", 2, () => drained);
  await first.append("disk", randomBytes(1.5 * MIB));
  await assert.rejects(second.append("disk", randomBytes(MIB)), { code: "SPOOL_FULL" });
  drained = true;
  let done = false;
  const waiting = second.append("disk", randomBytes(MIB)).then(() => (done = true));
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.ok(!done);
  first.drop();
  await waiting;
  const third = spool.open("group", 3, () => drained);
  const stuck = assert.rejects(third.append("disk", randomBytes(1.5 * MIB)), { code: "SPOOL_FULL" });
  drained = false;
  spool.recheck();
  await stuck;
  await spool.close();
});

test("a reader follows the writer, and under pressure what was read makes room", async (t) => {
  const { spool } = spoolFor(t, 2 * MIB);
  const cycle = spool.open("group", 1, () => true);
  const payloads = Array.from({ length: 12 }, () => randomBytes(MIB / 2));
  const reading = contents(cycle);
  for (const payload of payloads) await cycle.append("", payload);
  cycle.complete();
  assert.deepEqual(await reading, payloads);
  assert.ok(!cycle.resendable);
  await spool.close();
});

test("a dropped cycle ends its reader and its writer", async (t) => {
  const { spool } = spoolFor(t, MIB);
  const cycle = spool.open("group", 1, () => true);
  await cycle.append("disk", randomBytes(MIB / 2));
  const reading = assert.rejects(contents(cycle), { code: "INTERRUPTED" });
  const writing = assert.rejects(cycle.append("disk", randomBytes(MIB)), { code: "INTERRUPTED" });
  await new Promise((resolve) => setTimeout(resolve, 20));
  cycle.drop();
  await Promise.all([reading, writing]);
  await assert.rejects(cycle.append("disk", randomBytes(10)), { code: "INTERRUPTED" });
  assert.equal(spool.usedBytes, 0);
  await spool.close();
});
