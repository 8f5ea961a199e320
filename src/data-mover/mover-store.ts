/**
 * One replica store with the keys to it: what the mover, an export and the master target each open for themselves, and all that
 * the commit protocol asks for of a disk or a group.
 */
import { randomUUID } from "node:crypto";
import { Fault } from "#model/fault.ts";
import { diskNames, storeNames } from "#model/format/object-names.ts";
import { decodeStoreRecord, encodeStoreRecord, type StoreRecord } from "#model/format/records.ts";
import { groupContext, type GroupContext } from "./barriers.ts";
import { containerCodec, type DiskShape } from "./container-codec.ts";
import { createOnce } from "./create-once.ts";
import { withLedger } from "./disk-ledger.ts";
import { readIfThere, type DiskContext, type StoreContext } from "./disk-context.ts";
import { openKeyring, type Keyring } from "./keyring.ts";

export interface MoverStore {
  readonly context: StoreContext;
  /** Who the store says that it is; asked once. Throws NOT_FOUND before `ensureStoreRecord`, STORE_FOREIGN when it is another than expected. */
  storeId(): Promise<string>;
  /** Open the keys of a disk, once; `create` for a disk that is being prepared. Throws KEY_MISSING, KEY_REJECTED. */
  openDisk(disk: { readonly diskId: string } & DiskShape, options?: { readonly create?: boolean }): Promise<OpenedDisk>;
  /** Its disks must be open. Learns first the keys that other processes have made since: commits are read with them. */
  group(groupId: string, diskIds: readonly string[]): Promise<GroupContext>;
}

export interface OpenedDisk {
  readonly storeId: string;
  readonly diskId: string;
  readonly shape: DiskShape;
  readonly keyring: Keyring;
  readonly context: DiskContext;
}

/** Where disk keys come from: 32 bytes, or undefined for a disk that this process has no key of. */
export type DiskKeys = (diskId: string) => Uint8Array | undefined;

/**
 * Asks the store nothing yet. `expectedStoreId`: what it said of itself when groups were prepared in it. `storeId`: who it is, for who knows it
 * better than the store's own record (store-identity.ts).
 */
export function openMoverStore(
  context: StoreContext,
  options: { readonly keys: DiskKeys; readonly expectedStoreId?: string; readonly storeId?: string },
): MoverStore {
  const { keys, expectedStoreId } = options;
  let record: Promise<StoreRecord> | undefined;
  const disks = new Map<string, Promise<OpenedDisk>>();
  const opened = new Map<string, OpenedDisk>();

  const identify = async (): Promise<string> => {
    if (options.storeId !== undefined) return options.storeId;
    if (!record) {
      const reading = readStoreRecord(context);
      record = reading;
      reading.catch(() => (record = undefined)); // The next call tries again; this one's caller has the error.
    }
    const { storeId } = await record;
    if (expectedStoreId === undefined || storeId === expectedStoreId) return storeId;
    throw new Fault("STORE_FOREIGN", `The store says that it is "${storeId}", expected "${expectedStoreId}"`, {
      details: { storeId, expectedStoreId },
      hint: "The bucket was replaced: correct the store's address, or move the state folder of this master target away and protect again.",
    });
  };

  const open = async (disk: { readonly diskId: string } & DiskShape, create: boolean): Promise<OpenedDisk> => {
    const storeId = await identify();
    const { diskId, sizeBytes, sectorBytes } = disk;
    const shape = { sizeBytes, sectorBytes };
    const keyring = await openKeyring(context, { storeId, diskId, diskKey: keys(diskId), create });
    const codec = containerCodec({
      storeId,
      diskId,
      keyring,
      random: context.random,
      now: () => context.clock.now(),
      shape: () => shape,
    });
    const plain = { ...context, diskId, names: diskNames(context.root, diskId), codec };
    const made: OpenedDisk = {
      storeId,
      diskId,
      shape,
      keyring,
      context: withLedger({ disk: plain, keyring, storeId }),
    };
    opened.set(diskId, made);
    return made;
  };

  return {
    context,
    storeId: identify,
    openDisk(disk, more = {}) {
      const known = disks.get(disk.diskId);
      if (known) return known;
      const opening = open(disk, more.create ?? false);
      disks.set(disk.diskId, opening);
      opening.catch(() => disks.delete(disk.diskId)); // The next call tries again; this one's caller has the error.
      return opening;
    },
    async group(groupId, diskIds) {
      const diskOf = (diskId: string): OpenedDisk => {
        const disk = opened.get(diskId);
        if (!disk) throw new RangeError(`Disk "${diskId}" is not open`);
        return disk;
      };
      await Promise.all(diskIds.map((diskId) => diskOf(diskId).keyring.refresh()));
      return groupContext(
        context,
        groupId,
        (diskId) => diskOf(diskId).context,
        (diskId) => diskIds.includes(diskId),
      );
    },
  };
}

/** The store's own record; made when there is none. Throws FORMAT_UNSUPPORTED, OBJECT_CORRUPT, STORE_…. */
export async function ensureStoreRecord(context: StoreContext): Promise<StoreRecord> {
  const found = await findStoreRecord(context);
  if (found) return found;
  const record: StoreRecord = { storeId: randomUUID(), features: [], createdAtMs: context.clock.now() };
  const other = await createOnce<StoreRecord>(context, {
    key: storeNames(context.root).store,
    body: encodeStoreRecord(record),
    look: () => findStoreRecord(context),
    isMine: (there) => there.storeId === record.storeId,
  });
  return other ?? record;
}

/** Throws NOT_FOUND when there is no replica store. */
export async function readStoreRecord(context: StoreContext): Promise<StoreRecord> {
  const found = await findStoreRecord(context);
  if (found) return found;
  throw new Fault("NOT_FOUND", `There is no replica store under "${context.root}"`, {
    hint: "Check endpoint, bucket and root.",
  });
}

async function findStoreRecord(context: StoreContext): Promise<StoreRecord | undefined> {
  const key = storeNames(context.root).store;
  const data = await readIfThere(context, key);
  return data && decodeStoreRecord(data, key);
}
