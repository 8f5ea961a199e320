import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import { storeNames } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import { keepRecord, readKeptRecords } from "../../src/data-mover/kept-records.ts";
import { commitFixture } from "./commit-fixture.ts";

const mac: Mac = (data) => createHmac("sha256", "tenant").update(data).digest();
const kept = (number: number, source: string, name = "shop") => ({
  collection: "plans" as const,
  name,
  number,
  writtenAtMs: 1_000 + number,
  record: { version: 1, source },
});

test("versions are kept under their numbers; a repeat is no error, and a number that is taken is said to be", async () => {
  const { group: context } = commitFixture(["a"]);
  assert.deepEqual(await readKeptRecords(context, mac, { collection: "plans", newest: 5 }), []);
  assert.equal(await keepRecord(context, kept(1, "one"), mac), true);
  assert.equal(
    await keepRecord(context, { ...kept(1, "one"), writtenAtMs: 9 }, mac),
    true,
    "a lost reply, repeated later",
  );
  assert.equal(await keepRecord(context, kept(1, "another"), mac), false);
  for (const number of [2, 3, 17]) await keepRecord(context, kept(number, `n${number}`), mac);
  await keepRecord(context, kept(1, "bakery", "bakery"), mac);
  await keepRecord(context, { ...kept(1, "run"), collection: "runs" }, mac);
  const series = await readKeptRecords(context, mac, { collection: "plans", newest: 2 });
  assert.deepEqual(
    series.map(({ name, numbers, records }) => [name, numbers, records.map(({ record }) => record["source"])]),
    [
      ["bakery", [1], ["bakery"]],
      ["shop", [1, 2, 3, 17], ["n17", "n3"]],
    ],
  );
  const [older] = await readKeptRecords(context, mac, { collection: "plans", name: "shop", newest: 1, upTo: 16 });
  assert.deepEqual(older?.records, [kept(3, "n3")]);
});

test("one that is damaged, forged, or copied from another place is named, and hides nothing", async () => {
  const { group: context, memory } = commitFixture(["a"]);
  const names = storeNames(context.root);
  await keepRecord(context, kept(1, "one"), mac);
  await keepRecord(context, { ...kept(3, "a run"), collection: "runs" }, mac);
  const whole = memory.objects.get(names.keptRecord("plans", "shop", 1))!;
  memory.overwrite(names.keptRecord("plans", "shop", 2), whole);
  memory.overwrite(names.keptRecord("plans", "shop", 3), memory.objects.get(names.keptRecord("runs", "shop", 3))!);
  memory.overwrite(names.keptRecord("plans", "shop", 4), whole.subarray(0, 20));
  await keepRecord(context, kept(5, "rm -rf /"), (data) => createHmac("sha256", "guessed").update(data).digest());
  const [found] = await readKeptRecords(context, mac, { collection: "plans", newest: 9 });
  assert.deepEqual(found?.records, [kept(1, "one")]);
  assert.deepEqual(
    found?.damaged.map(({ key, fault }) => [key, fault.code]),
    [5, 4, 3, 2].map((number) => [names.keptRecord("plans", "shop", number), "OBJECT_CORRUPT"]),
  );
  assert.equal(await keepRecord(context, kept(4, "four"), mac), false, "a damaged number is taken");
});
