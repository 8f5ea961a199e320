/**
 * Numbered series of records in the catalog: versions of plans, runs. Written once, under a number that nobody else has; a record that cannot be
 * read is named and does not hide the others.
 *
 * Source: docs/format.md, "Catalog".
 */
import { isFault, type Fault } from "#model/fault.ts";
import { decodeKeptRecord, encodeKeptRecord, type KeptCollection, type KeptRecord } from "#model/format/kept-record.ts";
import { canonicalJson, damagedRecord } from "#model/format/json-record.ts";
import { parseNumbered, storeNames } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, storeOptions, withRetries, type StoreContext } from "./disk-context.ts";

export interface KeptSeries {
  readonly name: string;
  /** All that are there, lowest first. */
  readonly numbers: readonly number[];
  /** Newest first. */
  readonly records: readonly KeptRecord[];
  readonly damaged: readonly { readonly key: string; readonly fault: Fault }[];
}

/** True: it is there, put by this call or by one before with the same content. False: the number holds something else. */
export async function keepRecord(context: StoreContext, kept: KeptRecord, mac: Mac): Promise<boolean> {
  const key = storeNames(context.root).keptRecord(kept.collection, kept.name, kept.number);
  const mine = canonicalJson(kept.record);
  const taken = await createOnce(context, {
    key,
    body: encodeKeptRecord(kept, mac),
    look: async () => {
      const data = await readIfThere(context, key);
      if (data === undefined) return undefined;
      try {
        return decodeKeptRecord(data, key, mac).record;
      } catch (error) {
        if (!isFault(error, "OBJECT_CORRUPT")) throw error;
        return {}; // Damaged: the number is taken all the same.
      }
    },
    isMine: (found) => canonicalJson(found) === mine,
  });
  return taken === undefined;
}

/** Series by name, each with its `newest` records of a number up to `upTo`. */
export async function readKeptRecords(
  context: StoreContext,
  mac: Mac,
  {
    collection,
    name,
    newest,
    upTo = Number.MAX_SAFE_INTEGER,
  }: {
    readonly collection: KeptCollection;
    readonly name?: string;
    readonly newest: number;
    readonly upTo?: number;
  },
): Promise<readonly KeptSeries[]> {
  const names = storeNames(context.root);
  const prefix = name === undefined ? names.keptCollection(collection) : names.keptSeries(collection, name);
  const numbers = new Map<string, number[]>();
  await withRetries(context, async () => {
    numbers.clear();
    for await (const { key } of context.store.list(prefix, storeOptions(context))) {
      const [found = ""] = key.slice(names.keptCollection(collection).length).split("/");
      const number = found === "" ? undefined : parseNumbered(names.keptSeries(collection, found), key);
      if (number !== undefined) numbers.set(found, [...(numbers.get(found) ?? []), number]);
    }
  });
  const series: KeptSeries[] = [];
  for (const [found, known] of [...numbers].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const sorted = known.toSorted((a, b) => a - b);
    const records: KeptRecord[] = [];
    const damaged: { key: string; fault: Fault }[] = [];
    for (const number of sorted.filter((one) => one <= upTo).toReversed()) {
      if (records.length >= newest) break;
      const key = names.keptRecord(collection, found, number);
      try {
        const data = await readIfThere(context, key);
        if (data !== undefined) records.push(readPlaced(data, key, mac, { collection, name: found, number }));
      } catch (error) {
        if (!isFault(error, "OBJECT_CORRUPT")) throw error;
        damaged.push({ key, fault: error });
      }
    }
    series.push({ name: found, numbers: sorted, records, damaged });
  }
  return series;
}

function readPlaced(
  data: Uint8Array,
  key: string,
  mac: Mac,
  place: Pick<KeptRecord, "collection" | "name" | "number">,
): KeptRecord {
  const kept = decodeKeptRecord(data, key, mac);
  if (kept.collection === place.collection && kept.name === place.name && kept.number === place.number) return kept;
  throw damagedRecord(key, "it is a record of another place");
}
