/**
 * What every ObjectStore must hold. Run by each adapter and each wrapper: `objectStoreContract("memory", open)`.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import type { ObjectEntry, ObjectStore } from "#ports/object-store.ts";

export interface OpenedStore {
  readonly store: ObjectStore;
  close(): Promise<void>;
}

/** `open` yields an empty store. */
export function objectStoreContract(name: string, open: () => Promise<OpenedStore>): void {
  const holds = (what: string, check: (store: ObjectStore) => Promise<void>): void => {
    test(what, async () => {
      const { store, close } = await open();
      try {
        await check(store);
      } finally {
        await close();
      }
    });
  };

  describe(`ObjectStore contract: ${name}`, () => {
    holds("what was created is read back, whole, by range, and by its size", async (store) => {
      const data = sampleBytes("whole", 300_000);
      assert.equal(await store.create("a/b/c", data), "created");
      same(await store.get("a/b/c"), data);
      assert.deepEqual(await store.head("a/b/c"), { size: data.length });
      same(await store.get("a/b/c", { range: { offset: 0, length: 256 } }), data.subarray(0, 256));
      same(await store.get("a/b/c", { range: { offset: 65_537, length: 4097 } }), data.subarray(65_537, 69_634));
      same(await store.get("a/b/c", { range: { offset: data.length - 1, length: 1 } }), data.subarray(-1));
      same(await store.get("a/b/c", { range: { offset: data.length - 10, length: 500 } }), data.subarray(-10));
      same(await store.get("a/b/c", { range: { offset: data.length, length: 5 } }), new Uint8Array());
      same(await store.get("a/b/c", { range: { offset: data.length + 100, length: 5 } }), new Uint8Array());
      same(await store.get("a/b/c", { range: { offset: 5, length: 0 } }), new Uint8Array());
    });

    holds("a body in several pieces is one object", async (store) => {
      const data = sampleBytes("pieces", 100_000);
      const pieces = [data.subarray(0, 256), data.subarray(256, 300), data.subarray(300, 300), data.subarray(300)];
      assert.equal(await store.create("pieces", pieces), "created");
      same(await store.get("pieces"), data);
    });

    holds("an empty object is an object", async (store) => {
      assert.equal(await store.create("empty", new Uint8Array()), "created");
      assert.deepEqual(await store.head("empty"), { size: 0 });
      same(await store.get("empty"), new Uint8Array());
      assert.equal(await store.create("empty", sampleBytes("x", 3)), "exists");
    });

    holds("32 MiB go in and come out unchanged", async (store) => {
      const data = sampleBytes("large", 32 << 20);
      assert.equal(await store.create("large", data), "created");
      assert.equal(sha256(await store.get("large")), sha256(data));
    });

    holds("create never overwrites", async (store) => {
      const first = sampleBytes("first", 1000);
      assert.equal(await store.create("k", first), "created");
      assert.equal(await store.create("k", sampleBytes("second", 2000)), "exists");
      assert.equal(await store.create("k", first), "exists", "not even with the same bytes");
      same(await store.get("k"), first);
    });

    holds("of sixteen creates at once exactly one succeeds, and its bytes are there", async (store) => {
      for (let round = 0; round < 5; round++) {
        const bodies = Array.from({ length: 16 }, (_, index) => sampleBytes(`racer ${round} ${index}`, 50_000 + index));
        const outcomes = await Promise.all(bodies.map((body) => store.create(`race/${round}`, body)));
        const winners = outcomes.flatMap((outcome, index) => (outcome === "created" ? [index] : []));
        assert.equal(winners.length, 1);
        same(await store.get(`race/${round}`), bodies[winners[0]!]!);
      }
    });

    holds("the caller's bytes may be changed once create has settled", async (store) => {
      const body = sampleBytes("mine", 5000);
      const kept = body.slice();
      await store.create("mine", body);
      body.fill(0xee);
      const read = await store.get("mine");
      same(read, kept);
      read.fill(0x11);
      same(await store.get("mine"), kept);
    });

    holds("a missing object is OBJECT_MISSING to get, undefined to head, and no error to delete", async (store) => {
      await assert.rejects(store.get("nothing/here"), { code: "OBJECT_MISSING" });
      await assert.rejects(store.get("nothing/here", { range: { offset: 0, length: 10 } }), { code: "OBJECT_MISSING" });
      assert.equal(await store.head("nothing/here"), undefined);
      await store.delete(["nothing/here", "nothing/there"]);
    });

    holds("what is deleted is gone, and its key may be created again", async (store) => {
      for (const key of ["d/1", "d/2", "d/3"]) await store.create(key, sampleBytes(key, 10));
      await store.delete(["d/1", "d/3", "d/9"]);
      assert.deepEqual(await keysOf(store.list("d/")), ["d/2"]);
      await assert.rejects(store.get("d/1"), { code: "OBJECT_MISSING" });
      assert.equal(await store.create("d/1", sampleBytes("again", 10)), "created");
    });

    holds("a listing has every key behind the prefix once, in order, with its size, at once", async (store) => {
      const keys = Array.from({ length: 40 }, (_, index) => `list/journal/${index.toString(16).padStart(16, "0")}`);
      for (const key of keys.toReversed()) {
        await store.create(key, sampleBytes(key, 100 + key.length));
        assert.ok((await keysOf(store.list(key))).includes(key), "listed as soon as it was created");
      }
      await store.create("list/journal-not", sampleBytes("near", 1));
      await store
        .create("list", sampleBytes("parent", 1))
        .catch(() => "a file system cannot have both; no name of ours needs it");
      assert.deepEqual(await keysOf(store.list("list/journal/")), keys);
      assert.deepEqual(await keysOf(store.list("list/journal/", { startAfter: keys[17]! })), keys.slice(18));
      assert.deepEqual(await keysOf(store.list("list/journal/", { startAfter: "list/journal/" })), keys);
      assert.deepEqual(await keysOf(store.list("list/journal/", { startAfter: `${keys[17]!}0` })), keys.slice(18));
      assert.deepEqual(await keysOf(store.list("list/journal/", { startAfter: keys[39]! })), []);
      assert.deepEqual(await keysOf(store.list("list/journal/", { limit: 3 })), keys.slice(0, 3));
      assert.deepEqual(await keysOf(store.list("list/journal/", { startAfter: keys[5]!, limit: 2 })), keys.slice(6, 8));
      assert.deepEqual(await keysOf(store.list("none/")), []);
      const [first] = await entriesOf(store.list("list/journal/", { limit: 1 }));
      assert.deepEqual(first, { key: keys[0], size: 100 + keys[0]!.length });
    });

    holds("keys of unequal depth are listed in byte order too", async (store) => {
      const keys = [
        "o/d1-x/epochs/1",
        "o/d1/epochs/1",
        "o/d1/keys/canary",
        "o/d10/epochs/1",
        "o/d1.a/epochs/1",
        "o/d1_/b",
        "o/D/z",
      ];
      for (const key of keys) await store.create(key, sampleBytes(key, 9));
      assert.deepEqual(await keysOf(store.list("o/")), keys.toSorted());
    });

    holds("a listing of more than one page is complete", async (store) => {
      const keys = Array.from({ length: 1203 }, (_, index) => `page/${index.toString(16).padStart(16, "0")}`);
      const queue = [...keys];
      const work = async (): Promise<void> => {
        for (let key = queue.pop(); key !== undefined; key = queue.pop()) await store.create(key, sampleBytes(key, 5));
      };
      await Promise.all(Array.from({ length: 16 }, work));
      assert.deepEqual(await keysOf(store.list("page/")), keys);
      assert.deepEqual(await keysOf(store.list("page/", { startAfter: keys[1000]! })), keys.slice(1001));
    });

    holds("keys with unusual characters are keys", async (store) => {
      const keys = ["odd/a b", "odd/ä+ß", "odd/100%", "odd/7%2F+%2B", "odd/x&y<z>", "odd/it's(1)*!", 'odd/"q"'];
      for (const key of keys) {
        await store.create(key, sampleBytes(key, 20));
        same(await store.get(key), sampleBytes(key, 20));
      }
      assert.deepEqual(await keysOf(store.list("odd/")), keys.toSorted());
    });

    holds("an aborted signal ends a call with its reason", async (store) => {
      const reason = new Error("enough");
      const signal = AbortSignal.abort(reason);
      await assert.rejects(store.create("aborted", sampleBytes("a", 10), { signal }), reason);
      await assert.rejects(store.get("aborted", { signal }), reason);
      assert.equal(await store.head("aborted"), undefined);
    });
  });
}

function sampleBytes(seed: string, length: number): Uint8Array {
  const seedBlock = createHash("sha512").update(seed).digest();
  const data = new Uint8Array(length);
  for (let at = 0; at < length; at += 64) data.set(seedBlock.subarray(0, Math.min(64, length - at)), at);
  // Each 64 KiB says where it is.
  for (let at = 0; at + 4 <= length; at += 65_536) new DataView(data.buffer).setUint32(at, at, true);
  return data;
}

function sha256(data: Uint8Array): string {
  return createHash("sha256").update(data).digest("hex");
}

function same(actual: Uint8Array, expected: Uint8Array): void {
  assert.equal(actual.length, expected.length);
  assert.ok(Buffer.from(actual.buffer, actual.byteOffset, actual.byteLength).equals(expected), "other bytes");
}

async function keysOf(entries: AsyncIterable<ObjectEntry>): Promise<string[]> {
  return (await entriesOf(entries)).map((entry) => entry.key);
}

async function entriesOf(entries: AsyncIterable<ObjectEntry>): Promise<ObjectEntry[]> {
  const all: ObjectEntry[] = [];
  for await (const entry of entries) all.push(entry);
  return all;
}
