import assert from "node:assert/strict";
import { test } from "node:test";
import { Fault } from "#model/fault.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { memoryStore, type MemoryStore } from "../../src/adapters/memory/memory-store.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { s3ObjectStore } from "../../src/adapters/s3/s3-object-store.ts";
import { probeStore } from "../../src/data-mover/store-probe.ts";
import { startVersitygw } from "../support/versitygw.ts";

const probe = (store: ObjectStore): Promise<void> =>
  probeStore({ store, root: "replica", clock: systemClock, random: systemRandom });

test("A store that keeps the contract passes, and is left as it was", async () => {
  const store = memoryStore();
  await probe(store);
  assert.equal(store.objects.size, 0);
});

test("versitygw passes, and is left as it was", async () => {
  const server = await startVersitygw();
  await using store = s3ObjectStore({ ...server, bucket: "probed" }, { clock: systemClock, random: systemRandom });
  try {
    await store.ensureBucket();
    await probe(store);
    for await (const entry of store.list("")) assert.fail(entry.key);
  } finally {
    await server.stop();
  }
});

const broken: Readonly<Record<string, (inner: MemoryStore) => Partial<ObjectStore>>> = {
  "ignores the condition of a PUT": (inner) => ({
    async create(key, body) {
      await inner.delete([key]);
      return inner.create(key, body);
    },
  }),
  "reports two winners of a race": (inner) => {
    let calls = 0;
    return {
      async create(key, body) {
        const outcome = await inner.create(key, body);
        return ++calls === 5 ? "created" : outcome;
      },
    };
  },
  "keeps the loser of a race": (inner) => ({
    async create(key, body) {
      const outcome = await inner.create(key, body);
      if (outcome === "exists" && body instanceof Uint8Array && body.length === inner.objects.get(key)!.length)
        inner.objects.get(key)!.set(body);
      return outcome;
    },
  }),
  "ignores a range": (inner) => ({ get: (key) => inner.get(key) }),
  "lists late": (inner) => ({
    async *list(prefix, options) {
      const all = [];
      for await (const entry of inner.list(prefix, options)) all.push(entry);
      yield* all.slice(0, -1);
    },
  }),
  "ignores start-after": (inner) => ({ list: (prefix) => inner.list(prefix) }),
  "cuts off large objects": (inner) => ({
    create: (key, body) => {
      const whole = Buffer.concat(body instanceof Uint8Array ? [body] : body);
      return inner.create(key, whole.subarray(0, 16 << 20));
    },
  }),
  "makes up missing objects": (inner) => ({
    get: (key, options) => (inner.objects.has(key) ? inner.get(key, options) : Promise.resolve(new Uint8Array())),
  }),
};

for (const [what, breaking] of Object.entries(broken)) {
  test(`A store that ${what} is refused`, async () => {
    const inner = memoryStore();
    await assert.rejects(probe({ ...inner, ...breaking(inner) }), { code: "STORE_UNSAFE" });
  });
}

test("A store that denies is not called unsafe", async () => {
  const store = { ...memoryStore(), create: () => Promise.reject(new Fault("STORE_DENIED", "No")) };
  await assert.rejects(probe(store), { code: "STORE_DENIED" });
});
