/** `control adopt` over a store in memory: which keys it takes, whom it refuses, and that it can be run again. */
import assert from "node:assert/strict";
import { createHmac, randomUUID } from "node:crypto";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { encodeSealedKeys } from "#model/format/control-records.ts";
import { storeNames } from "#model/format/object-names.ts";
import { Fault, isFault, type FaultCode } from "#model/fault.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { CONTROL_STATE_FILE, ensureControlState, readControlState } from "../../src/control/control-state.ts";
import { ensureRecoveryKey, sealControlKeys, type ControlSecrets } from "../../src/control/recovery-key.ts";
import { readControlSecrets, writeControlSecrets } from "../../src/control/secrets.ts";
import { writeCatalogEntry } from "../../src/data-mover/catalog.ts";
import { claimControl, readControlClaim } from "../../src/data-mover/control-claims.ts";
import type { StoreContext } from "../../src/data-mover/disk-context.ts";
import { ensureStoreRecord } from "../../src/data-mover/mover-store.ts";
import { adoptStore, type AdoptRequest } from "../../src/main/adopt.ts";
import { surveyStore } from "../../src/main/store-survey.ts";
import { testFiles } from "../support/test-files.ts";

const isCode = (code: FaultCode) => (error: unknown) => isFault(error, code);
const secretsOf = (name: string): ControlSecrets => ({
  caCert: `cert ${name}`,
  caKey: `key ${name}`,
  orderKey: `order ${name}`,
  enrolment: JSON.stringify({ pending: [], enrolled: [{ site: "primary", role: "agent", name: "m1" }] }),
});
const TENANT = new Uint8Array(32).fill(9);

interface Lost {
  readonly context: StoreContext;
  readonly objects: ReturnType<typeof memoryStore>;
  readonly folder: string;
  readonly former: { readonly controlId: string; readonly controlEpoch: number };
  request(more?: Partial<AdoptRequest>): AdoptRequest;
}

/** A store with one group, claimed by a control that is gone; its recovery key was copied. */
async function lostControl(t: TestContext): Promise<Lost> {
  const folder = await mkdtemp(join(tmpdir(), "leeward-adopt-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const objects = memoryStore();
  const context: StoreContext = {
    store: objects,
    root: "r",
    clock: systemClock,
    random: systemRandom,
    retry: { attempts: 2, firstMs: 1, mostMs: 1 },
  };
  const former = { controlId: randomUUID(), controlEpoch: 1 };
  const { storeId } = await ensureStoreRecord(context);
  await claimControl(context, { ...former, site: "secondary" });
  const { key } = await ensureRecoveryKey(join(folder, "copy-of-key"), { files: testFiles, random: systemRandom });
  const sealed = sealControlKeys(secretsOf("a"), { ...former, recoveryKey: key, createdAtMs: 1, random: systemRandom });
  await objects.create(storeNames("r").controlKey(1), encodeSealedKeys(sealed));
  const record = {
    version: 1,
    groupId: "web",
    phase: "protected",
    sourceSite: "primary",
    targetSite: "secondary",
    operations: [],
  };
  const { tenantMac } = await import("../../src/data-mover/sealing.ts");
  await writeCatalogEntry(context, { groupId: "web", revision: 7, writtenAtMs: 1, record }, tenantMac(TENANT, storeId));
  return {
    context,
    objects,
    folder,
    former,
    request: (more = {}) => ({
      context,
      site: "secondary",
      stateDir: join(folder, "control"),
      recoveryKeyFile: join(folder, "copy-of-key"),
      newCa: false,
      dryRun: false,
      ...more,
    }),
  };
}

test("the keys are unsealed into an empty folder under the next epoch; run again it changes nothing", async (t) => {
  const { request, context, former, folder } = await lostControl(t);
  const first = await adoptStore(request());
  assert.deepEqual(
    [first.controlEpoch, first.keys, first.already, first.former?.controlId],
    [2, "unsealed", false, former.controlId],
  );
  assert.deepEqual(await readControlSecrets(join(folder, "control"), testFiles), secretsOf("a"));
  const state = await readControlState(join(folder, "control", CONTROL_STATE_FILE), testFiles);
  assert.deepEqual(
    [state?.controlId, state?.controlEpoch, state?.adoption?.storeId, state?.adoption?.rebuilt],
    [first.controlId, 2, first.storeId, []],
  );
  const again = await adoptStore(request({ recoveryKeyFile: undefined }));
  assert.deepEqual([again.controlEpoch, again.keys, again.already], [2, "kept", true]);
  assert.equal((await readControlClaim(context))?.controlEpoch, 2);
});

test("a dry run leaves neither a claim nor a file", async (t) => {
  const { request, objects, folder } = await lostControl(t);
  const before = [...objects.objects.keys()];
  const report = await adoptStore(request({ dryRun: true }));
  assert.deepEqual(
    report.groups.map(({ group, phase, standing }) => [group, phase, standing]),
    [["web", "protected", "seeding"]], // Never claimed in this store.
  );
  assert.deepEqual([...objects.objects.keys()], before);
  assert.deepEqual(await readdir(folder), ["copy-of-key"]);
});

test("without the key, or with another's, nothing is claimed; --new-ca goes on without", async (t) => {
  const { request, context, folder } = await lostControl(t);
  await ensureRecoveryKey(join(folder, "another"), { files: testFiles, random: systemRandom });
  await assert.rejects(adoptStore(request({ recoveryKeyFile: join(folder, "another") })), isCode("KEY_REJECTED"));
  await writeFile(join(folder, "letter"), "Dear all\n");
  await assert.rejects(adoptStore(request({ recoveryKeyFile: join(folder, "letter") })), isCode("KEY_REJECTED"));
  await assert.rejects(adoptStore(request({ recoveryKeyFile: undefined })), isCode("KEY_MISSING"));
  await assert.rejects(adoptStore(request({ recoveryKeyFile: join(folder, "gone") })), isCode("KEY_MISSING"));
  assert.equal((await readControlClaim(context))?.controlEpoch, 1);
  const report = await adoptStore(request({ recoveryKeyFile: undefined, newCa: true }));
  assert.deepEqual([report.keys, report.controlEpoch], ["new", 2]);
  assert.deepEqual(await readdir(join(folder, "control")), [CONTROL_STATE_FILE]);
});

test("keys of an installation that is alive are never replaced; the old control's own folder keeps its", async (t) => {
  const { request, context, folder } = await lostControl(t);
  const alive = join(folder, "alive");
  await ensureControlState(join(alive, CONTROL_STATE_FILE), testFiles);
  await writeControlSecrets(alive, secretsOf("b"), { files: testFiles });
  await assert.rejects(adoptStore(request({ stateDir: alive })), isCode("REFUSED"));
  assert.equal((await readControlClaim(context))?.controlEpoch, 1);
  assert.deepEqual(await readControlSecrets(alive, testFiles), secretsOf("b"));
  // The same CA: it was superseded, and a person wants it back.
  const old = join(folder, "old");
  await ensureControlState(join(old, CONTROL_STATE_FILE), testFiles);
  await writeControlSecrets(old, secretsOf("a"), { files: testFiles });
  const report = await adoptStore(request({ stateDir: old }));
  assert.deepEqual([report.keys, report.controlEpoch], ["kept", 2]);
  // One that nobody is enrolled at was only just started: its keys are nobody's.
  const fresh = join(folder, "fresh");
  await writeControlSecrets(
    fresh,
    { ...secretsOf("c"), enrolment: '{"pending":[],"enrolled":[]}' },
    { files: testFiles },
  );
  assert.equal((await adoptStore(request({ stateDir: fresh }))).keys, "unsealed");
  assert.deepEqual(await readControlSecrets(fresh, testFiles), secretsOf("a"));
});

test("of two who adopt at once one goes on, and the other has changed nothing of his own", async (t) => {
  const { request, context, folder } = await lostControl(t);
  const outcomes = await Promise.allSettled(
    ["one", "two"].map((name) => adoptStore(request({ stateDir: join(folder, name) }))),
  );
  assert.deepEqual(outcomes.map(({ status }) => status).sort(), ["fulfilled", "rejected"]);
  for (const [index, name] of ["one", "two"].entries()) {
    const outcome = outcomes[index]!;
    const state = await readControlState(join(folder, name, CONTROL_STATE_FILE), testFiles);
    if (outcome.status === "rejected") {
      assert.ok(isFault(outcome.reason, "CONTROL_SUPERSEDED"));
      assert.equal(state, undefined);
    } else assert.equal(state?.controlId, (await readControlClaim(context))?.controlId);
  }
});

test("a store that is no store, or cannot be reached, is said, and nothing is changed", async (t) => {
  const { request, context, folder } = await lostControl(t);
  await assert.rejects(adoptStore(request({ context: { ...context, root: "elsewhere" } })), isCode("NOT_FOUND"));
  const away = (): never => {
    throw new Fault("STORE_UNAVAILABLE", "Nobody answers");
  };
  const store: ObjectStore = { create: away, get: away, head: away, list: away, delete: away };
  await assert.rejects(adoptStore(request({ context: { ...context, store } })), isCode("STORE_UNAVAILABLE"));
  assert.deepEqual(await readdir(folder), ["copy-of-key"]);
});

test("a damaged sealed copy gives way to the one before it; forged entries are told by who has the site's key", async (t) => {
  const { request, objects, context } = await lostControl(t);
  const names = storeNames("r");
  objects.overwrite(names.controlKey(2), objects.objects.get(names.controlKey(1))!.subarray(0, 100));
  assert.equal((await adoptStore(request())).keys, "unsealed");
  const record = { version: 1, phase: "unprotected", sourceSite: "primary", targetSite: "secondary", operations: [] };
  await writeCatalogEntry(context, { groupId: "web", revision: 8, writtenAtMs: 2, record }, (data) =>
    createHmac("sha256", "guessed").update(data).digest(),
  );
  const blind = await surveyStore(context);
  assert.equal(blind.groups[0]?.phase, "unprotected");
  const seeing = await surveyStore(context, TENANT);
  assert.deepEqual([seeing.groups[0]?.phase, seeing.groups[0]?.damaged.length], ["protected", 1]);
});

test("a group from before there was a catalog, and a record of a later version, are named with what to do", async (t) => {
  const { context, objects } = await lostControl(t);
  objects.overwrite("r/groups/older/epochs/not-a-number", Buffer.from("{}"));
  const record = { version: 2, phase: "dancing", sourceSite: "primary", targetSite: "secondary", operations: [] };
  await writeCatalogEntry(context, { groupId: "later", revision: 1, writtenAtMs: 1, record }, () => new Uint8Array());
  const { groups } = await surveyStore(context);
  const problems = new Map(groups.map(({ group, problem }) => [group, problem ?? ""]));
  assert.match(problems.get("older") ?? "", /before there was a catalog/);
  assert.match(problems.get("later") ?? "", /FORMAT_UNSUPPORTED/);
  assert.equal(problems.get("web"), "");
});
