/**
 * The keys of one disk: the disk key, which comes from outside the bucket, and the data keys that it wraps inside.
 *
 * Invariants:
 * - a data key is stored create-only and read back before anything is sealed with it: what we can seal we can open again;
 * - the canary tells a wrong disk key (KEY_REJECTED) from a damaged object (OBJECT_CORRUPT), and so does any data key that opens: a damaged
 *   canary closes nothing;
 * - a damaged data key closes what was sealed with it, and nothing else;
 * - two movers that begin a month at once may each make a key; both are good, and everything says which one it was sealed with.
 *
 * Source: docs/format.md, "Keys".
 */
import { createCipheriv, createDecipheriv, createHmac, createSecretKey, type KeyObject } from "node:crypto";
import { Fault, isFault } from "#model/fault.ts";
import type { Cipher } from "#model/format/header.ts";
import { diskNames } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import {
  CANARY_ID,
  decodeWrappedKey,
  encodeWrappedKey,
  wrapBinding,
  type WrappedKeyHead,
  type WrappedKeyRecord,
} from "#model/format/wrapped-key.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, storeOptions, type StoreContext } from "./disk-context.ts";
import { type DataKey, deriveMacKey, TAG_BYTES } from "./sealing.ts";

const ALGORITHM = "aes-256-gcm";
const DISK_KEY_BYTES = 32;

export interface Keyring {
  readonly cipher: Cipher;
  /** The data key of that id, among those known since the last `refresh`. Throws KEY_MISSING, OBJECT_CORRUPT when it is damaged. */
  keyOf(dataKeyId: string): KeyObject;
  /** Whether the disk key opens a wrapped key. */
  opens(record: WrappedKeyRecord): boolean;
  /** Learn the keys that others have made since. */
  refresh(): Promise<void>;
  /** The data key to seal with this month; made, stored and read back when there is none. Undefined with cipher `none`. */
  current(): Promise<DataKey | undefined>;
  /** MAC for points, HMAC-SHA-256 with a key derived from the disk key. */
  readonly mac: Mac;
  /** The same for manifests. */
  readonly manifestMac: Mac;
}

/** A keyring for tests: nothing is sealed, nothing is stored. */
export function plainKeyring(): Keyring {
  return {
    cipher: "none",
    keyOf(dataKeyId) {
      throw new Fault("KEY_MISSING", `Data key "${dataKeyId}" is asked for in a store without encryption`);
    },
    opens: () => true,
    refresh: () => Promise.resolve(),
    current: () => Promise.resolve(undefined),
    mac: () => new Uint8Array(),
    manifestMac: () => new Uint8Array(),
  };
}

/**
 * `diskKey`: 32 bytes, as this site holds them. `create`: make the canary when the disk has no keys yet.
 *
 * Throws: KEY_MISSING without a disk key, or when the disk has no keys and may not get any; KEY_REJECTED when it is
 * the wrong one; OBJECT_CORRUPT when the canary is damaged and no data key opens either.
 */
export async function openKeyring(
  context: StoreContext,
  options: {
    readonly storeId: string;
    readonly diskId: string;
    readonly diskKey: Uint8Array | undefined;
    readonly create: boolean;
  },
): Promise<Keyring> {
  const { storeId, diskId } = options;
  const diskKey = checkedDiskKey(diskId, options.diskKey);
  const names = diskNames(context.root, diskId);
  const known = new Map<string, { readonly record: WrappedKeyRecord; readonly key: KeyObject }>();
  const damaged = new Map<string, Fault>();

  const read = async (keyId: string): Promise<WrappedKeyRecord | undefined> => {
    const name = names.key(keyId);
    const data = await readIfThere(context, name);
    if (data === undefined) return undefined;
    const record = decodeWrappedKey(data, name);
    if (record.keyId !== keyId || record.diskId !== diskId || record.storeId !== storeId) {
      throw new Fault("OBJECT_CORRUPT", `Object "${name}" holds key "${record.keyId}" of disk "${record.diskId}"`, {
        details: { key: name },
      });
    }
    return record;
  };

  const store = async (keyId: string, month: string, key: Uint8Array): Promise<WrappedKeyRecord> => {
    const record = wrap(diskKey, key, {
      keyId,
      storeId,
      diskId,
      month,
      createdAtMs: context.clock.now(),
      cipher: ALGORITHM,
      nonce: Buffer.from(context.random.bytes(12)).toString("hex"),
    });
    const other = await createOnce(context, {
      key: names.key(keyId),
      body: encodeWrappedKey(record),
      look: () => read(keyId),
      isMine: (found) => found.sealed === record.sealed,
    });
    return other ?? record;
  };

  const keyring: Keyring = {
    cipher: ALGORITHM,
    keyOf(dataKeyId) {
      const found = known.get(dataKeyId);
      if (found !== undefined) return found.key;
      const fault = damaged.get(dataKeyId);
      if (fault !== undefined) throw fault;
      throw new Fault("KEY_MISSING", `Disk "${diskId}" has no data key "${dataKeyId}" in this store`, {
        details: { diskId, key: names.key(dataKeyId) },
        hint: "Restore the object from a copy of the bucket; without it what it sealed stays closed.",
      });
    },
    opens: (record) => unwrap(diskKey, record) !== undefined,
    async refresh() {
      for await (const { key: name } of context.store.list(names.keys, storeOptions(context))) {
        const keyId = name.slice(names.keys.length);
        if (keyId === CANARY_ID || known.has(keyId)) continue;
        try {
          const record = await read(keyId);
          if (record === undefined) continue; // Listed and gone: nothing was sealed with it that is still kept.
          known.set(keyId, { record, key: opened(record, name) });
          damaged.delete(keyId);
        } catch (error) {
          if (!isDamaged(error)) throw error;
          damaged.set(keyId, error);
        }
      }
    },
    async current() {
      const month = new Date(context.clock.now()).toISOString().slice(0, 7);
      const usable = [...known.values()].filter(({ record }) => record.month === month);
      usable.sort((a, b) => a.record.createdAtMs - b.record.createdAtMs);
      const newest = usable.at(-1);
      if (newest !== undefined) return { id: newest.record.keyId, key: newest.key };

      const keyId = Buffer.from(context.random.bytes(8)).toString("hex");
      await store(keyId, month, context.random.bytes(32));
      await keyring.refresh(); // Reads it back, as every other reader will have to.
      return { id: keyId, key: keyring.keyOf(keyId) };
    },
    mac: (data) => createHmac("sha256", macKey).update(data).digest(),
    manifestMac: (data) => createHmac("sha256", manifestMacKey).update(data).digest(),
  };
  const macKey = deriveMacKey(diskKey, storeId);
  const manifestMacKey = deriveMacKey(diskKey, storeId, "manifests");

  let canary: WrappedKeyRecord | undefined;
  let canaryFault: Fault | undefined;
  try {
    canary =
      (await read(CANARY_ID)) ?? (options.create ? await store(CANARY_ID, "", context.random.bytes(32)) : undefined);
  } catch (error) {
    if (!isDamaged(error)) throw error;
    canaryFault = error;
  }
  await keyring.refresh();
  if (known.size > 0 || (canary !== undefined && unwrap(diskKey, canary) !== undefined)) return keyring;
  if (canaryFault !== undefined) throw canaryFault;
  if (canary === undefined) {
    throw new Fault("KEY_MISSING", `Disk "${diskId}" has no keys in this store: it was never prepared here`, {
      details: { diskId, key: names.key(CANARY_ID) },
      hint: "Check that bucket and root are the ones that the disk was protected to.",
    });
  }
  throw new Fault("KEY_REJECTED", `The disk key held here does not open the store's copy of disk "${diskId}"`, {
    details: { diskId, key: names.key(CANARY_ID) },
    hint: "Give this site the key with which the disk was prepared; the escrow has it.",
  });

  /** Throws OBJECT_CORRUPT. */
  function opened(record: WrappedKeyRecord, name: string): KeyObject {
    const key = unwrap(diskKey, record);
    if (key !== undefined) return key;
    throw new Fault(
      "OBJECT_CORRUPT",
      `Data key "${record.keyId}" of disk "${diskId}" does not open with the disk's key`,
      {
        details: { diskId, key: name },
        hint: "Restore the object from a copy of the bucket; without it what it sealed stays closed.",
      },
    );
  }
}

function isDamaged(error: unknown): error is Fault {
  return isFault(error, "OBJECT_CORRUPT") || isFault(error, "FORMAT_UNSUPPORTED");
}

/** Whether `diskKey` opens what the disk's canary or any of its data keys holds; and then their word for whose they are is proven. */
export function provesKey(record: WrappedKeyRecord, diskKey: Uint8Array): boolean {
  return diskKey.length === DISK_KEY_BYTES && unwrap(createSecretKey(diskKey), record) !== undefined;
}

function checkedDiskKey(diskId: string, diskKey: Uint8Array | undefined): KeyObject {
  if (diskKey === undefined) {
    throw new Fault("KEY_MISSING", `No disk key for disk "${diskId}" is held here`, {
      details: { diskId },
      hint: "Restore the key folder of this site, or take the key from escrow.",
    });
  }
  if (diskKey.length !== DISK_KEY_BYTES) {
    throw new Fault(
      "KEY_REJECTED",
      `The disk key of "${diskId}" has ${diskKey.length} bytes, expected ${DISK_KEY_BYTES}`,
      {
        details: { diskId },
      },
    );
  }
  return createSecretKey(diskKey);
}

function wrap(diskKey: KeyObject, key: Uint8Array, head: WrappedKeyHead): WrappedKeyRecord {
  const cipher = createCipheriv(ALGORITHM, diskKey, Buffer.from(head.nonce, "hex"));
  cipher.setAAD(wrapBinding(head));
  const sealed = Buffer.concat([cipher.update(key), cipher.final(), cipher.getAuthTag()]);
  return { ...head, sealed: sealed.toString("hex") };
}

/** Undefined when the disk key does not open it. */
function unwrap(diskKey: KeyObject, record: WrappedKeyRecord): KeyObject | undefined {
  const sealed = Buffer.from(record.sealed, "hex");
  const decipher = createDecipheriv(ALGORITHM, diskKey, Buffer.from(record.nonce, "hex"), { authTagLength: TAG_BYTES });
  decipher.setAAD(wrapBinding(record));
  decipher.setAuthTag(sealed.subarray(-TAG_BYTES));
  const key = decipher.update(sealed.subarray(0, -TAG_BYTES));
  try {
    decipher.final();
  } catch {
    // "Unable to authenticate data": the caller says what that means here.
    return undefined;
  }
  return createSecretKey(key);
}
