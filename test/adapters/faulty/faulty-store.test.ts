import assert from "node:assert/strict";
import { test } from "node:test";
import { faultyStore, type CreateFate } from "../../../src/adapters/faulty/faulty-store.ts";
import { memoryStore } from "../../../src/adapters/memory/memory-store.ts";
import { objectStoreContract } from "../../contract/object-store.contract.ts";

objectStoreContract("faulty, with nothing going wrong", async () => ({
  store: faultyStore(memoryStore(), {}),
  close: async () => undefined,
}));

const body = (name: string): Uint8Array => new TextEncoder().encode(`block of ${name}`);

/** A store in which every create meets `fate`; late PUTs wait until `arrive` is called. */
function storeWith(fate: CreateFate) {
  const inner = memoryStore();
  const late: (() => Promise<void>)[] = [];
  const store = faultyStore(inner, { create: () => fate, later: (put) => late.push(put) });
  const arrive = async (): Promise<void> => {
    for (const put of late.splice(0)) await put();
  };
  return { inner, store, arrive, late };
}

test("a lost request leaves nothing, and says that nothing is known", async () => {
  const { inner, store } = storeWith("lost-request");
  await assert.rejects(store.create("k", body("k")), { code: "STORE_AMBIGUOUS" });
  assert.equal(inner.objects.size, 0);
});

test("a lost reply leaves the object, and says that nothing is known", async () => {
  const { inner, store } = storeWith("lost-reply");
  await assert.rejects(store.create("k", body("k")), { code: "STORE_AMBIGUOUS" });
  assert.deepEqual(inner.objects.get("k"), body("k"));
});

test("a late PUT lands with the bytes that were sent, whatever the caller does with them since, and never over another's", async () => {
  const { inner, store, arrive } = storeWith("late");
  const sent = body("k");
  await assert.rejects(store.create("k", sent), { code: "STORE_AMBIGUOUS" });
  sent.fill(7);
  assert.equal(inner.objects.size, 0);
  await arrive();
  assert.deepEqual(inner.objects.get("k"), body("k"));

  await assert.rejects(store.create("taken", body("late")), { code: "STORE_AMBIGUOUS" });
  await inner.create("taken", body("first"));
  await arrive();
  assert.deepEqual(inner.objects.get("taken"), body("first"));
});

test("a doubled PUT arrives twice: its caller hears of the first, or of the second", async () => {
  const first = storeWith("doubled");
  assert.equal(await first.store.create("k", body("k")), "created");
  assert.equal(first.late.length, 1);
  await first.arrive();
  const second = storeWith("doubled-early");
  assert.equal(await second.store.create("k", body("k")), "exists");
  assert.deepEqual(second.inner.objects.get("k"), body("k"));
});

test("a refused PUT leaves nothing and says so; reads fail when the plan says so", async () => {
  const { inner, store } = storeWith("refused");
  await assert.rejects(store.create("k", body("k")), { code: "STORE_THROTTLED" });
  assert.equal(inner.objects.size, 0);
  const failing = faultyStore(inner, { fails: (operation) => operation !== "head" });
  await assert.rejects(failing.get("k"), { code: "STORE_UNAVAILABLE" });
  await assert.rejects(failing.delete(["k"]), { code: "STORE_UNAVAILABLE" });
  await assert.rejects(failing.list("")[Symbol.asyncIterator]().next(), { code: "STORE_UNAVAILABLE" });
  assert.equal(await failing.head("k"), undefined);
});
