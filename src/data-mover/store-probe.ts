/**
 * Does a store behave as the replica needs it to? Asked when it is attached, after upgrades, and daily.
 *
 * Conditional PUTs were ignored, or raced, in several S3 servers until lately. With such a store the commit protocol loses acknowledged
 * commits, so it is refused. What cannot be probed is durability: that is declared by whoever runs the store. `If-Match` is not probed
 * because it is never sent: nothing in a replica store is ever overwritten.
 *
 * Source: docs/format.md, "What the store must do".
 */
import { Fault, isFault } from "#model/fault.ts";
import { storeNames } from "#model/format/object-names.ts";
import type { ObjectEntry } from "#ports/object-store.ts";
import { storeOptions, type StoreContext, withRetries } from "./disk-context.ts";

const RACERS = 16;
const ROUNDS = 3;
const BODY_BYTES = 64 << 10;
/** The largest object of the format (a pack); some stores and proxies bound the size of a single PUT. */
const LARGE_BYTES = 64 << 20;
const PIECE_BYTES = 1 << 20;

/**
 * Creates and deletes a few objects under `{root}/scratch/`.
 *
 * Throws: STORE_UNSAFE naming the first thing that the store does wrong; STORE_DENIED, STORE_INVALID, STORE_UNAVAILABLE when it cannot
 *         be asked.
 */
export async function probeStore(context: StoreContext): Promise<void> {
  const name = Buffer.from(context.random.bytes(8)).toString("hex");
  const prefix = `${storeNames(context.root).scratch}probe-${name}/`;
  const made: string[] = [];
  try {
    for (let round = 0; round < ROUNDS; round++) await race(context, `${prefix}race-${round}`, made);
    await readBack(context, `${prefix}read`, made);
    await listing(context, `${prefix}list/`, made);
    await large(context, `${prefix}large`, made);
  } finally {
    await cleanUp(context, made);
  }
}

/** Of many creates of one key at once, exactly one may succeed, and its bytes must be there. */
async function race(context: StoreContext, key: string, made: string[]): Promise<void> {
  made.push(key);
  const bodies = Array.from({ length: RACERS }, () => context.random.bytes(BODY_BYTES));
  const outcomes = await Promise.allSettled(
    bodies.map((body) => context.store.create(key, body, storeOptions(context))),
  );
  const created = outcomes.flatMap((outcome, index) =>
    outcome.status === "fulfilled" && outcome.value === "created" ? [index] : [],
  );
  const unknown = outcomes.flatMap((outcome, index) =>
    outcome.status === "rejected" && isFault(outcome.reason, "STORE_AMBIGUOUS") ? [index] : [],
  );
  const other = outcomes.find(
    (outcome) => outcome.status === "rejected" && !isFault(outcome.reason, "STORE_AMBIGUOUS"),
  );
  if (other?.status === "rejected") throw other.reason;
  if (created.length > 1)
    throw unsafe(`of ${RACERS} create-only PUTs of one key at once ${created.length} succeeded, expected one`);
  const stored = await withRetries(context, () => context.store.get(key, storeOptions(context)));
  const possible = created.length === 1 ? created : unknown;
  if (!possible.some((index) => same(stored, bodies[index]!))) {
    throw unsafe("after a race of create-only PUTs the object is not the one that was reported as created");
  }
  const again = await context.store.create(key, context.random.bytes(10), storeOptions(context));
  if (again !== "exists") throw unsafe("a create-only PUT replaced an object");
}

async function readBack(context: StoreContext, key: string, made: string[]): Promise<void> {
  const options = storeOptions(context);
  try {
    await context.store.get(key, options);
    throw unsafe("an object that was never created can be read");
  } catch (error) {
    if (!isFault(error, "OBJECT_MISSING")) throw error;
  }
  made.push(key);
  const body = context.random.bytes(BODY_BYTES);
  await context.store.create(key, body, options);
  if (!same(await context.store.get(key, options), body))
    throw unsafe("an object does not read back as it was created");
  if ((await context.store.head(key, options))?.size !== body.length)
    throw unsafe("HEAD reports another size than was created");
  const range = { offset: 1000, length: 5000 };
  if (!same(await context.store.get(key, { ...options, range }), body.subarray(1000, 6000))) {
    throw unsafe("a range of an object is not what lies there");
  }
}

/** One PUT of the largest size, of which both ends and the middle must read back. */
async function large(context: StoreContext, key: string, made: string[]): Promise<void> {
  const options = storeOptions(context);
  // The same piece under many marks: distinct everywhere, and not 64 MiB of memory.
  const piece = context.random.bytes(PIECE_BYTES);
  const marks = Array.from({ length: LARGE_BYTES / PIECE_BYTES }, () => context.random.bytes(16));
  made.push(key);
  await context.store.create(
    key,
    marks.flatMap((mark) => [mark, piece.subarray(mark.length)]),
    options,
  );
  const { size } = (await context.store.head(key, options)) ?? { size: 0 };
  if (size !== LARGE_BYTES) throw unsafe(`of one PUT of ${LARGE_BYTES} bytes ${size} arrived`);
  for (const index of [0, marks.length / 2, marks.length - 1]) {
    const range = { offset: index * PIECE_BYTES, length: PIECE_BYTES };
    const stored = await context.store.get(key, { ...options, range });
    if (!same(stored, Buffer.concat([marks[index]!, piece.subarray(16)])))
      throw unsafe("a large object does not read back as it was created");
  }
}

/** A new object must be listed at once, in order, behind `startAfter`. */
async function listing(context: StoreContext, prefix: string, made: string[]): Promise<void> {
  const keys = ["1", "2", "3", "4"].map((name) => prefix + name);
  for (const key of [keys[2]!, keys[0]!, keys[3]!, keys[1]!]) {
    made.push(key);
    await context.store.create(key, context.random.bytes(16), storeOptions(context));
    const found = await entries(context.store.list(prefix, storeOptions(context)));
    if (!found.some((entry) => entry.key === key))
      throw unsafe("a LIST does not show an object that was created before it");
  }
  const all = await entries(context.store.list(prefix, storeOptions(context)));
  if (all.map((entry) => entry.key).join() !== keys.join()) throw unsafe("a LIST is not complete and in order");
  const rest = await entries(context.store.list(prefix, { ...storeOptions(context), startAfter: keys[1]! }));
  if (rest.map((entry) => entry.key).join() !== keys.slice(2).join()) throw unsafe("LIST ignores start-after");
}

/** Leftovers harm nobody, and some stores forbid deletion (Object Lock): the verdict counts, not the clean-up. */
async function cleanUp(context: StoreContext, keys: readonly string[]): Promise<void> {
  try {
    await context.store.delete(keys);
  } catch (error) {
    if (!isFault(error)) throw error;
  }
}

async function entries(source: AsyncIterable<ObjectEntry>): Promise<ObjectEntry[]> {
  const all: ObjectEntry[] = [];
  for await (const entry of source) all.push(entry);
  return all;
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

function unsafe(what: string): Fault {
  return new Fault("STORE_UNSAFE", `The store is not safe for a replica: ${what}`, {
    hint: "Use a store with atomic create-only PUTs and strong listing, such as versitygw 1.8 or Amazon S3; a newer version may do.",
  });
}
