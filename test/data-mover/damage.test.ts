/**
 * Every object of a small store is damaged in every way that a store may damage it: bits flipped, cut off, grown, deleted, exchanged with another of
 * its kind. Whatever is done,
 *
 * - a point reads as it was, or a coded fault says why not; never anything else;
 * - a point that does not need the object reads as it was;
 * - the check says exactly which points cannot be read whole, and names the object, or what it did cost nothing.
 *
 * `LEEWARD_DAMAGE=all` flips a bit in every byte of every record, and in many more places of every container.
 */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { Fault, isFault } from "#model/fault.ts";
import { decodeHeader, FOOTER_BYTES, HEADER_BYTES } from "#model/format/header.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { memoryStore, type MemoryStore } from "../../src/adapters/memory/memory-store.ts";
import type { ObjectKind } from "../../src/data-mover/check-findings.ts";
import { openImage } from "../../src/data-mover/image.ts";
import { kindOfObject } from "../../src/data-mover/object-kinds.ts";
import { openRescue } from "../../src/data-mover/rescue.ts";
import { checkStore, type StoreCheck } from "../../src/data-mover/store-check.ts";
import { seededRandom } from "../support/format-samples.ts";
import { MARKED, SMALL_GROUP, SMALL_ROOT, smallStore, type SmallStore } from "../support/small-store.ts";

const ALL = process.env["LEEWARD_DAMAGE"] === "all";

let whole: ReadonlyMap<string, Uint8Array>;
let made: SmallStore;
/** Keys that each point cannot do without. */
const needs = new Map<number, ReadonlySet<string>>();

before(async () => {
  const objects = memoryStore();
  made = await smallStore(objects);
  whole = new Map([...objects.objects].map(([key, data]) => [key, data.slice()]));
  for (const barrier of made.states.keys()) needs.set(barrier, await neededBy(barrier));
});

const contextOf = (store: ObjectStore) => ({ ...made.context, store, retry: { attempts: 1, firstMs: 1, mostMs: 1 } });
const heldKeys = () => ({ tenantKey: made.tenantKey, keyOf: (diskId: string) => made.keys.get(diskId) });
const kindOf = (key: string): ObjectKind => kindOfObject(key.slice(SMALL_ROOT.length + 1)).kind;

function fresh(): MemoryStore {
  const objects = memoryStore();
  for (const [key, data] of whole) objects.objects.set(key, data);
  return objects;
}

/** What is read of a point: whether each disk was as it had been at the cut. Throws what is not a coded fault, and for wrong bytes. */
async function readPoints(store: ObjectStore): Promise<Map<number, "right" | Fault>> {
  const rescue = await openRescue(contextOf(store), heldKeys(), silentLog);
  const group = await rescue.group(SMALL_GROUP);
  const found = new Map<number, "right" | Fault>();
  const read = new Map<string, Promise<Buffer>>();
  for (const point of await group.points({})) {
    let verdict: "right" | Fault = "right";
    for (const { diskId, branch, seq, commitHash } of point.members) {
      const place = [diskId, branch, seq, commitHash].join();
      let reading = read.get(place);
      if (reading === undefined) {
        reading = (async () => {
          const { context, keyring, storeId } = await rescue.store.openDisk({ diskId, sizeBytes: 0, sectorBytes: 512 });
          const image = await openImage(context, { keyring, storeId, branch, seq, commitHash });
          const data = Buffer.alloc(image.sizeBytes, 0xee);
          await image.read(data, 0);
          return data;
        })();
        reading.catch(() => undefined); // Whoever awaits it below has the error, this point and every other of the same commit.
        read.set(place, reading);
      }
      try {
        const expected = made.states.get(point.barrier)?.get(diskId);
        assert.ok(expected, `barrier ${point.barrier} was written`);
        assert.ok((await reading).equals(expected), `point ${point.barrier} of ${diskId} reads as it was`);
      } catch (error) {
        if (!isFault(error)) throw error;
        verdict = error;
      }
    }
    found.set(point.barrier, verdict);
  }
  return found;
}

const check = (store: ObjectStore, keys = true): Promise<StoreCheck> =>
  checkStore(contextOf(store), { readData: 100, ...(keys && { keys: heldKeys() }) });

/** Containers that reading it touches, the keys that open them, and the records that lead to it and hold what nothing else does. */
async function neededBy(barrier: number): Promise<Set<string>> {
  const store = fresh();
  const needed = new Set<string>();
  const watched: ObjectStore = {
    ...store,
    async get(key, options) {
      needed.add(key);
      return store.get(key, options);
    },
  };
  const rescue = await openRescue(contextOf(watched), heldKeys(), silentLog);
  const group = await rescue.group(SMALL_GROUP);
  const point = (await group.points({})).find((one) => one.barrier === barrier)!;
  needed.clear();
  for (const { diskId, branch, seq, commitHash } of point.members) {
    const { context, keyring, storeId } = await rescue.store.openDisk({ diskId, sizeBytes: 0, sectorBytes: 512 });
    const image = await openImage(context, { keyring, storeId, branch, seq, commitHash });
    await image.read(Buffer.alloc(image.sizeBytes), 0);
  }
  for (const key of [...needed]) {
    const kind = kindOf(key);
    const isNeeded = kind === "commit" || kind === "segment" || (kind === "origin" && !key.includes("/root/"));
    if (!isNeeded) needed.delete(key);
    if (kind !== "commit" && kind !== "segment") continue;
    const { diskId, dataKeyId } = decodeHeader(whole.get(key)!);
    needed.add(`${SMALL_ROOT}/disks/${diskId}/keys/${dataKeyId}`);
  }
  // The marked one has two records of which either will do.
  if (barrier !== MARKED)
    needed.add(`${SMALL_ROOT}/groups/${SMALL_GROUP}/barriers/${barrier.toString(16).padStart(16, "0")}`);
  return needed;
}

interface Mutation {
  readonly what: string;
  readonly keys: readonly string[];
  apply(store: MemoryStore): void;
}

function* mutationsOf(key: string): Generator<Mutation> {
  const data = whole.get(key)!;
  const one = (what: string, change: (copy: Uint8Array) => Uint8Array): Mutation => ({
    what: `${key.slice(SMALL_ROOT.length + 1)}: ${what}`,
    keys: [key],
    apply: (store) => store.overwrite(key, change(data.slice())),
  });
  for (const at of placesOf(key, data)) {
    const bit = 1 << (at % 8);
    yield one(`bit ${at % 8} of byte ${at}`, (copy) => {
      copy[at]! ^= bit;
      return copy;
    });
  }
  for (const length of ALL ? [0, Math.floor(data.length / 2), data.length - 1] : [Math.floor(data.length * 0.6)])
    yield one(`cut to ${length}`, (copy) => copy.subarray(0, length));
  yield one("grown", (copy) => Buffer.concat([copy, Buffer.from("\n")]));
  yield {
    what: `${key.slice(SMALL_ROOT.length + 1)}: deleted`,
    keys: [key],
    apply: (store) => void store.objects.delete(key),
  };
  const other = [...whole.keys()].find((name) => name > key && kindOf(name) === kindOf(key) && kindOf(key) !== "store");
  if (other === undefined) return;
  yield {
    what: `${key.slice(SMALL_ROOT.length + 1)}: exchanged with ${other.slice(SMALL_ROOT.length + 1)}`,
    keys: [key, other],
    apply(store) {
      store.overwrite(key, whole.get(other)!);
      store.overwrite(other, data);
    },
  };
}

function placesOf(key: string, data: Uint8Array): number[] {
  const random = seededRandom(key);
  const some = (count: number, from: number, to: number): number[] =>
    to <= from ? [] : Array.from({ length: count }, () => from + random.below(to - from));
  if (kindOf(key) !== "commit" && kindOf(key) !== "segment") {
    return ALL ? Array.from(data.keys()) : some(2, 0, data.length);
  }
  const more = ALL ? 12 : 1;
  const head = HEADER_BYTES + decodeHeader(data).indexBytes;
  const footer = data.length - FOOTER_BYTES;
  return [
    ...some(more, 0, HEADER_BYTES),
    ...some(more, HEADER_BYTES, head),
    ...some(more, head, footer),
    ...some(more, footer, data.length),
  ];
}

/** Records in which something is said to people only (who, when, which operation), and of which nothing hangs on it. */
const COSTS_NOTHING: readonly ObjectKind[] = ["store", "disk-claim", "group-claim", "origin", "point", "catalog"];

test("A whole store has no findings, with keys and without, and all of it is read", async () => {
  for (const keys of [true, false]) {
    const found = await check(fresh(), keys);
    assert.deepEqual(found.findings, []);
    assert.deepEqual(new Set(found.points.map(({ state }) => state)), new Set(["good"]));
    assert.equal(found.points.length, made.states.size);
    assert.equal(found.objectCount, whole.size);
    assert.ok(found.readBytes >= found.storedBytes * 0.9);
    assert.equal(
      found.disks.every(({ closed }) => (closed === undefined) === keys),
      true,
    );
  }
  const ratio = await check(fresh());
  assert.ok(ratio.disks.every(({ plainBytes, packedBytes }) => plainBytes > packedBytes && packedBytes > 0));
  assert.deepEqual(
    [...(await readPoints(fresh())).values()],
    Array.from({ length: made.states.size }, () => "right"),
  );
});

test("Whatever happens to any object: points read right or not at all, others read on, and the check says which and why", async () => {
  let count = 0;
  const wrong: string[] = [];
  const holds = (condition: boolean, text: string): void => void (condition || wrong.push(text));
  for (const key of whole.keys()) {
    for (const mutation of mutationsOf(key)) {
      count++;
      const store = fresh();
      mutation.apply(store);
      const { what } = mutation;
      const say = (text: string): string => `${what}: ${text}`;
      let read: Map<number, "right" | Fault>;
      try {
        read = await readPoints(store);
      } catch (error) {
        wrong.push(say(error instanceof Error ? (error.stack ?? "") : String(error)));
        continue;
      }
      const found = await check(store);
      const list = (): string => JSON.stringify(found.findings, undefined, 1);
      for (const barrier of made.states.keys()) {
        const verdict = read.get(barrier);
        const needed = mutation.keys.some((name) => needs.get(barrier)!.has(name));
        if (verdict !== "right") {
          holds(needed, say(`point ${barrier} does not need it, and is lost: ${String(verdict)}`));
          const id = found.points.find((point) => Number.parseInt(point.id.slice(14), 16) === barrier)?.id;
          const named = found.findings.some((finding) =>
            id === undefined ? mutation.keys.includes(finding.key) : finding.points.includes(id),
          );
          assert.ok(
            named,
            say(`point ${barrier} is lost (${String(verdict)}), and the check does not say so: ${list()}`),
          );
        }
      }
      for (const point of found.points) {
        const verdict = read.get(Number.parseInt(point.id.slice(14), 16));
        holds(
          (point.state === "good") === (verdict === "right"),
          say(`the check says ${point.state}, reading ${String(verdict)}: ${list()}`),
        );
      }
      const lost = [...made.states.keys()].some((barrier) => read.get(barrier) !== "right");
      const isNamed = found.findings.some((finding) => mutation.keys.includes(finding.key));
      const spare = what.endsWith("deleted") && [...needs.values()].every((needed) => !needed.has(key)); // The last fence of a line.
      if (!isNamed)
        holds(
          !lost && (spare || COSTS_NOTHING.includes(kindOf(key))),
          say(`it is not named, and costs something: ${list()}`),
        );
    }
  }
  assert.deepEqual(wrong.slice(0, 20), [], `${wrong.length} of ${count} mutations`);
  assert.ok(count > 300, `${count} mutations`);
});
