/**
 * Who a store is, when its own record may be damaged.
 *
 * `store.json` is one small object without a seal, and everything else names its id: a flipped bit in it would close a whole company's replica. But
 * each wrapped key carries the id under its seal, so whoever holds a disk key can prove which id is the right one.
 */
import { isFault, type Fault } from "#model/fault.ts";
import { diskNames } from "#model/format/object-names.ts";
import { decodeWrappedKey } from "#model/format/wrapped-key.ts";
import { readIfThere, storeOptions, type StoreContext } from "./disk-context.ts";
import { provesKey } from "./keyring.ts";
import { readStoreRecord, type DiskKeys } from "./mover-store.ts";
import { findDisks } from "./store-groups.ts";

export interface StoreIdentity {
  readonly storeId: string;
  /** Why it was not taken from the store's own record. */
  readonly fault?: Fault;
}

/** Throws what reading `store.json` throws when no key proves an id either: NOT_FOUND, OBJECT_CORRUPT, FORMAT_UNSUPPORTED. */
export async function identifyStore(context: StoreContext, keys: DiskKeys): Promise<StoreIdentity> {
  let said: string | undefined;
  let fault: Fault | undefined;
  try {
    said = (await readStoreRecord(context)).storeId;
  } catch (error) {
    if (!isFault(error, "NOT_FOUND") && !isFault(error, "OBJECT_CORRUPT") && !isFault(error, "FORMAT_UNSUPPORTED"))
      throw error;
    fault = error;
  }
  for (const diskId of await findDisks(context)) {
    const diskKey = keys(diskId);
    const proven = diskKey === undefined ? undefined : await provenId(context, diskId, diskKey);
    if (proven === undefined) continue;
    if (proven === said) return { storeId: proven };
    return { storeId: proven, ...(fault === undefined ? {} : { fault }) };
  }
  if (said !== undefined) return { storeId: said };
  if (fault === undefined) throw new RangeError("A store record without an id");
  throw fault;
}

/** The id in a wrapped key that `diskKey` opens. */
async function provenId(context: StoreContext, diskId: string, diskKey: Uint8Array): Promise<string | undefined> {
  for await (const { key } of context.store.list(diskNames(context.root, diskId).keys, storeOptions(context))) {
    const data = await readIfThere(context, key);
    if (data === undefined) continue;
    try {
      const record = decodeWrappedKey(data, key);
      if (record.diskId === diskId && provesKey(record, diskKey)) return record.storeId;
    } catch (error) {
      if (!isFault(error, "OBJECT_CORRUPT") && !isFault(error, "FORMAT_UNSUPPORTED")) throw error;
    }
  }
  return undefined;
}
