import assert from "node:assert/strict";
import { createHmac, randomUUID } from "node:crypto";
import { test } from "node:test";
import { isFault, type FaultCode } from "#model/fault.ts";
import { storeNames } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { readCatalog, readStanding, writeCatalogEntry } from "../../src/data-mover/catalog.ts";
import { assertNewest, claimControl, readControlClaim } from "../../src/data-mover/control-claims.ts";
import { fenceGroup } from "../../src/data-mover/group-fence.ts";
import { ensureStoreRecord } from "../../src/data-mover/mover-store.ts";
import { checkStore } from "../../src/data-mover/store-check.ts";
import { commitFixture, protect } from "./commit-fixture.ts";

const mac: Mac = (data) => createHmac("sha256", "tenant").update(data).digest();
const isCode = (code: FaultCode) => (error: unknown) => isFault(error, code);
const entry = (revision: number, phase: string) => ({
  groupId: "web",
  revision,
  writtenAtMs: 1_000,
  record: { version: 1, phase, nested: { later: [revision] } },
});

test("the highest revision counts, also when an older attempt lands last; it is kept whole", async () => {
  const { group: context } = commitFixture(["a"]);
  assert.equal(await writeCatalogEntry(context, entry(5, "protected"), mac), 5);
  assert.equal(await writeCatalogEntry(context, entry(5, "protected"), mac), 5, "a repeat is no error");
  assert.equal(await writeCatalogEntry(context, entry(3, "seeding"), mac), 5, "a late one is told what is newer");
  await assert.rejects(writeCatalogEntry(context, entry(5, "failed-over"), mac), isCode("REFUSED"));
  const [found, ...others] = await readCatalog(context, mac);
  assert.deepEqual(found, { groupId: "web", entry: entry(5, "protected"), damaged: [] });
  assert.deepEqual(others, []);
});

test("a damaged, half-written or forged entry is named, and the one before it stands", async () => {
  const { group: context, memory } = commitFixture(["a"]);
  await writeCatalogEntry(context, entry(1, "protected"), mac);
  const names = storeNames(context.root);
  const whole = memory.objects.get(names.catalogEntry("web", 1))!;
  memory.overwrite(names.catalogEntry("web", 2), whole.subarray(0, whole.length - 7));
  memory.overwrite(names.catalogEntry("web", 3), new Uint8Array());
  memory.overwrite(names.catalogEntry("web", 4), whole); // In another's place.
  const forger: Mac = (data) => createHmac("sha256", "guessed").update(data).digest();
  await writeCatalogEntry(context, entry(5, "failed-over"), forger);
  const [found] = await readCatalog(context, mac);
  assert.equal(found?.entry?.record["phase"], "protected");
  assert.deepEqual(
    found?.damaged.map(({ key, fault }) => [key, fault.code]),
    [5, 4, 3, 2].map((revision) => [names.catalogEntry("web", revision), "OBJECT_CORRUPT"]),
  );
  // Who has no key cannot tell the forged one; control, which rebuilds, always has it.
  assert.equal((await readCatalog(context))[0]?.entry?.revision, 5);
});

test("a store without a catalog has none, and records of a preparation are not entries", async () => {
  const { group: context, memory } = commitFixture(["a"]);
  assert.deepEqual(await readCatalog(context, mac), []);
  memory.overwrite(storeNames(context.root).catalog("groups/old/0123456789abcdef.json"), Buffer.from("{}"));
  assert.deepEqual(await readCatalog(context, mac), [{ groupId: "old", damaged: [] }]);
});

test("where a group stands is read from its claims, without a key", async () => {
  const fixture = commitFixture(["a", "b"]);
  assert.deepEqual(await readStanding(fixture.group, "web"), {});
  await protect(fixture, ["a", "b"]);
  const before = await readStanding(fixture.group, "web");
  assert.deepEqual([before.claim?.activeSite, before.disk?.branch, before.disk?.moving], ["P", "root", undefined]);
  await fenceGroup(fixture.group, { operation: "f1", activeSite: "S", disks: ["a", "b"], holder: "w", resume: false });
  const after = await readStanding(fixture.group, "web");
  assert.deepEqual([after.claim?.activeSite, after.claim?.operation, after.disk?.moving], ["S", "f1", true]);
});

const term = (controlEpoch: number) => ({ controlId: randomUUID(), controlEpoch, site: "S" });

test("of two controls that adopt at once one has the claim, and the other is told by whom", async () => {
  for (let round = 0; round < 20; round += 1) {
    const { group: context } = commitFixture(["a"]);
    await claimControl(context, term(1));
    const adopters = [term(2), term(2), term(2)];
    const outcomes = await Promise.allSettled(adopters.map((one) => claimControl(context, one)));
    const won = outcomes.flatMap(({ status }, index) => (status === "fulfilled" ? [adopters[index]!] : []));
    assert.equal(won.length, 1);
    const holder = await readControlClaim(context);
    assert.equal(holder?.controlId, won[0]?.controlId);
    for (const outcome of outcomes)
      if (outcome.status === "rejected")
        assert.equal(
          isFault(outcome.reason, "CONTROL_SUPERSEDED") && outcome.reason.details["controlId"],
          holder?.controlId,
        );
  }
});

test("a term is claimed in every store with its own number, and an older one is stopped there at its next order", async () => {
  const { group: context } = commitFixture(["a"]);
  const first = term(1);
  await claimControl(context, first);
  await claimControl(context, first);
  await assertNewest(context, first);
  const adopted = term(4); // Adopted from another store, where numbers went on.
  await claimControl(context, adopted);
  await assert.rejects(assertNewest(context, first), isCode("CONTROL_SUPERSEDED"));
  await assert.rejects(claimControl(context, first), isCode("CONTROL_SUPERSEDED"));
  await assert.rejects(claimControl(context, term(4)), isCode("CONTROL_SUPERSEDED"));
  await assertNewest(context, adopted);
});

test("a claim whose reply is lost is found again, and is not another's", async () => {
  const memory = memoryStore();
  let lose = true;
  const store: ObjectStore = {
    ...memory,
    create: async (key, body) => {
      const made = await memory.create(key, body);
      if (!lose) return made;
      lose = false;
      const { Fault } = await import("#model/fault.ts");
      throw new Fault("STORE_AMBIGUOUS", "The reply was lost");
    },
  };
  const { group: context } = commitFixture(["a"], store, memory);
  const mine = term(1);
  await claimControl(context, mine);
  assert.equal((await readControlClaim(context))?.controlId, mine.controlId);
});

test("a check of the store reads what the control plane left in it, and names what is damaged", async () => {
  const { group: context, memory } = commitFixture(["a"]);
  const names = storeNames(context.root);
  await ensureStoreRecord(context);
  await claimControl(context, term(1));
  await writeCatalogEntry(context, entry(1, "protected"), mac);
  const { findings } = await checkStore(context, { readData: 0 });
  assert.deepEqual(findings, []);
  const damaged = [names.catalogEntry("web", 1), names.controlEpoch(1), names.controlKey(1)];
  for (const key of damaged) memory.overwrite(key, Buffer.from('{"format":1}'));
  const after = await checkStore(context, { readData: 0 });
  assert.deepEqual(
    after.findings.map(({ key, code }) => [key, code]).sort(),
    damaged.map((key) => [key, "OBJECT_CORRUPT"]).sort(),
  );
});
