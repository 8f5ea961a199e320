import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { decodeSealedKeys, encodeSealedKeys } from "#model/format/control-records.ts";
import { isFault } from "#model/fault.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { ensureControlState, readControlState, writeControlState } from "../../src/control/control-state.ts";
import {
  ensureRecoveryKey,
  openControlKeys,
  parseRecoveryKey,
  sealControlKeys,
  type ControlSecrets,
} from "../../src/control/recovery-key.ts";
import { readControlSecrets, writeControlSecrets } from "../../src/control/secrets.ts";
import { testFiles } from "../support/test-files.ts";

const SECRETS: ControlSecrets = {
  caCert: "-----BEGIN CERTIFICATE-----\nca\n",
  caKey: "-----BEGIN PRIVATE KEY-----\nca\n",
  orderKey: "-----BEGIN PRIVATE KEY-----\norder\n",
  enrolment: JSON.stringify({
    pending: [],
    enrolled: Array.from({ length: 2_000 }, (_, index) => ({ site: "primary", role: "agent", name: `m${index}` })),
  }),
};
const seal = (recoveryKey: Uint8Array, secrets = SECRETS) =>
  sealControlKeys(secrets, {
    recoveryKey,
    controlId: randomUUID(),
    controlEpoch: 1,
    createdAtMs: 1_000,
    random: systemRandom,
  });

test("what is sealed opens with the same recovery key, through the store's bytes, and says nothing without it", () => {
  const key = systemRandom.bytes(32);
  const stored = encodeSealedKeys(seal(key));
  for (const secret of ["PRIVATE", "primary", Buffer.from("PRIVATE").toString("hex")])
    assert.ok(!Buffer.from(stored).includes(secret), secret);
  assert.deepEqual(openControlKeys(decodeSealedKeys(stored, "k"), key), SECRETS);
});

test("another key, or a copy of which anything was changed, is KEY_REJECTED or no copy at all", () => {
  const key = systemRandom.bytes(32);
  const record = seal(key);
  const rejected = (error: unknown) => isFault(error, "KEY_REJECTED");
  assert.throws(() => openControlKeys(record, systemRandom.bytes(32)), rejected);
  for (const change of [
    { controlEpoch: 2 },
    { controlId: randomUUID() },
    { createdAtMs: 2 },
    { mark: "0".repeat(64) },
    { sealed: record.sealed.replace(/^../, (two) => (two === "00" ? "01" : "00")) },
  ])
    assert.throws(() => openControlKeys({ ...record, ...change }, key), rejected, JSON.stringify(change).slice(0, 60));
  const text = Buffer.from(encodeSealedKeys(record)).toString();
  for (const damaged of [text.slice(0, -20), text.replace('"sealed":"', '"sealed":"x'), "{}"])
    assert.throws(
      () => decodeSealedKeys(Buffer.from(damaged), "k"),
      (error) => isFault(error, "OBJECT_CORRUPT"),
    );
});

test("equal contents have the same mark under one key, and tell nobody else that they are equal", () => {
  const key = systemRandom.bytes(32);
  assert.equal(seal(key).mark, seal(key).mark);
  assert.notEqual(seal(key).sealed, seal(key).sealed);
  assert.notEqual(seal(key).mark, seal(systemRandom.bytes(32)).mark);
  assert.notEqual(seal(key).mark, seal(key, { ...SECRETS, caKey: "another" }).mark);
});

test("the recovery key is made once, readable by its owner only; a file that holds none is not replaced", async (t) => {
  const folder = await temporary(t);
  const file = join(folder, "recovery-key");
  const first = await ensureRecoveryKey(file, { files: testFiles, random: systemRandom });
  const again = await ensureRecoveryKey(file, { files: testFiles, random: systemRandom });
  assert.deepEqual([first.made, again.made, again.key], [true, false, first.key]);
  assert.equal((await stat(file)).mode & 0o777, 0o600);
  const text = await readFile(file, "utf8");
  assert.deepEqual(parseRecoveryKey(`  ${text}\n`, "copied by hand"), first.key);
  await writeFile(file, text.slice(0, -10));
  await assert.rejects(ensureRecoveryKey(file, { files: testFiles, random: systemRandom }), (error) =>
    isFault(error, "KEY_REJECTED"),
  );
});

test("secrets go from one folder through a seal into another; tokens that are waiting stay behind", async (t) => {
  const [from, to] = [await temporary(t), await temporary(t)];
  const identity = { site: "primary", role: "agent", name: "m1" };
  const pending = [{ hash: "h", identity, expiresAtMs: 5 }];
  const waiting = { ...SECRETS, enrolment: JSON.stringify({ pending, enrolled: [identity] }) };
  await writeControlSecrets(from, waiting, { files: testFiles });
  await writeControlSecrets(to, await readControlSecrets(from, testFiles), { files: testFiles });
  const { enrolment, ...keys } = await readControlSecrets(to, testFiles);
  assert.deepEqual(keys, { caCert: SECRETS.caCert, caKey: SECRETS.caKey, orderKey: SECRETS.orderKey });
  assert.deepEqual(JSON.parse(enrolment), { pending: [], enrolled: [identity] });
});

test("a control keeps its term over restarts, and an adopted one what is left to do", async (t) => {
  const file = join(await temporary(t), "control.json");
  const first = await ensureControlState(file, testFiles);
  assert.equal(first.controlEpoch, 1);
  assert.deepEqual(await ensureControlState(file, testFiles), first);
  const adopted = { controlId: randomUUID(), controlEpoch: 3, adoption: { storeId: "s", atMs: 7, rebuilt: ["s"] } };
  await writeControlState(file, adopted, { files: testFiles });
  assert.deepEqual(await readControlState(file, testFiles), adopted);
  await writeFile(file, '{"controlId":"me","controlEpoch":1}');
  await assert.rejects(readControlState(file, testFiles), (error) => isFault(error, "CONFIG_INVALID"));
});

async function temporary(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "leeward-keys-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}
