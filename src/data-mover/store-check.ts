/**
 * Is every byte of a store there, and what was written? And if not: which points, disks and blocks does it cost?
 *
 * Everything is listed once and every name accounted for; records are held against each other; every head of every container is read, and of the
 * containers themselves as many as asked for. Nothing is written. What needs a key is looked at where one is held, and the rest as far as it goes
 * without (docs/rescue.md says how far that is).
 */
import { createHash, createHmac, createSecretKey } from "node:crypto";
import { type Fault, isFault } from "#model/fault.ts";
import { decodeCatalogEntry } from "#model/format/catalog-entry.ts";
import { decodeControlClaim, decodeSealedKeys } from "#model/format/control-records.ts";
import { decodeRecord } from "#model/format/json-record.ts";
import { diskNames, storeNames } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import { decodeStoreRecord, encodeStoreRecord } from "#model/format/records.ts";
import { decodeWrappedKey } from "#model/format/wrapped-key.ts";
import { checkDisk, type DiskState } from "./check-disk.ts";
import { findings as newFindings, type Finding, type Findings, type ObjectKind } from "./check-findings.ts";
import { checkGroup, type CheckedPoint } from "./check-group.ts";
import { checkRecords, type CheckRecords } from "./check-records.ts";
import { readIfThere, storeOptions, type StoreContext } from "./disk-context.ts";
import { type Keyring, openKeyring } from "./keyring.ts";
import type { DiskKeys } from "./mover-store.ts";
import { kindOfObject } from "./object-kinds.ts";
import { deriveMacKey } from "./sealing.ts";
import { findDisks, findGroups } from "./store-groups.ts";
import { identifyStore } from "./store-identity.ts";

export interface StoreCheck {
  readonly storeId: string | undefined;
  readonly findings: readonly Finding[];
  /** Newest first within each group. */
  readonly points: readonly CheckedPoint[];
  readonly disks: readonly CheckedDisk[];
  readonly objects: readonly CountedObjects[];
  readonly objectCount: number;
  readonly storedBytes: number;
  readonly readBytes: number;
}

export interface CheckedDisk {
  readonly diskId: string;
  /** Why its content was not looked at; undefined when a key was held. */
  readonly closed: Fault | undefined;
  readonly plainBytes: number;
  readonly packedBytes: number;
  readonly unreferencedBytes: number | undefined;
}

export interface CountedObjects {
  readonly kind: ObjectKind;
  /** "" for what belongs to no disk. */
  readonly diskId: string;
  readonly count: number;
  readonly bytes: number;
}

export interface CheckProgress {
  readonly doneBytes: number;
  readonly diskId: string;
}

export async function checkStore(
  context: StoreContext,
  options: {
    /** Absent: nothing that is sealed is opened. */
    readonly keys?: { readonly tenantKey: Uint8Array; readonly keyOf: DiskKeys };
    /** Share of the containers that are read to their end, 0 … 100. */
    readonly readData: number;
    readonly onProgress?: (progress: CheckProgress) => void;
  },
): Promise<StoreCheck> {
  const { keys } = options;
  const findings = newFindings();
  const records = checkRecords(context, findings);
  const counted = await countObjects(context, findings);
  const keyOf: DiskKeys = keys?.keyOf ?? (() => undefined);
  const storeId = await whoIsIt(context, keyOf, { findings, records });
  const seed = context.random.bytes(16);
  let readBytes = 0;

  const disks = new Map<string, DiskState>();
  const checked: CheckedDisk[] = [];
  for (const diskId of await findDisks(context)) {
    const opened = await openKeys(context, { diskId, diskKey: keyOf(diskId), storeId, findings });
    const state = await checkDisk({
      context,
      diskId,
      names: diskNames(context.root, diskId),
      storeId,
      keyring: opened.keyring,
      findings,
      records,
      sample: (key) => isSampled(key, seed, options.readData),
      onRead(bytes) {
        readBytes += bytes;
        options.onProgress?.({ doneBytes: readBytes, diskId });
      },
    });
    disks.set(diskId, state);
    const { plainBytes, storedBytes, unreferencedBytes } = state.tally;
    checked.push({ diskId, closed: opened.fault, plainBytes, packedBytes: storedBytes, unreferencedBytes });
  }

  const mac = keys === undefined || storeId === undefined ? undefined : tenantMac(keys.tenantKey, storeId);
  await checkCatalog(context, records);
  const points: CheckedPoint[] = [];
  for (const { groupId } of await findGroups(context))
    points.push(...(await checkGroup({ context, groupId, disks, findings, records, mac })));
  return {
    storeId,
    findings: findings.list(),
    points,
    disks: checked,
    objects: counted,
    objectCount: counted.reduce((sum, { count }) => sum + count, 0),
    storedBytes: counted.reduce((sum, { bytes }) => sum + bytes, 0),
    readBytes,
  };
}

/** Everything below the root, by kind and disk; what has no place in the format is said. */
async function countObjects(context: StoreContext, findings: Findings): Promise<CountedObjects[]> {
  const counts = new Map<string, { kind: ObjectKind; diskId: string; count: number; bytes: number }>();
  const prefix = context.root === "" ? "" : `${context.root}/`;
  for await (const { key, size } of context.store.list(prefix, storeOptions(context))) {
    const { kind, diskId } = kindOfObject(key.slice(prefix.length));
    const name = `${kind} ${diskId}`;
    const entry = counts.get(name) ?? { kind, diskId, count: 0, bytes: 0 };
    entry.count++;
    entry.bytes += size;
    counts.set(name, entry);
    if (kind !== "unknown") continue;
    const message = "No object of a replica store has such a name";
    findings.add({ level: "notice", code: "STORE_FOREIGN", kind, key, message });
  }
  return [...counts.values()];
}

/** Records of the control plane: whether they can be read. What they say is not the store's business, and who wrote them takes a key. */
async function checkCatalog(context: StoreContext, records: CheckRecords): Promise<void> {
  const { catalog, catalogGroups, controlEpochs, controlKeys } = storeNames(context.root);
  const decoderOf = (key: string): ((data: Uint8Array, key: string) => unknown) | undefined => {
    if (key.startsWith(controlEpochs)) return decodeControlClaim;
    if (key.startsWith(controlKeys)) return decodeSealedKeys;
    if (key.endsWith(".json")) return decodeRecord;
    return key.startsWith(catalogGroups) ? (data) => decodeCatalogEntry(data, key) : undefined;
  };
  for (const prefix of [catalog(""), controlEpochs, controlKeys]) {
    for await (const { key } of context.store.list(prefix, storeOptions(context))) {
      const decode = decoderOf(key);
      if (decode !== undefined) await records.read(key, { kind: "catalog", decode: (data) => decode(data, key) });
    }
  }
}

/** The id that most of the store agrees on; whoever says otherwise is the one that is damaged. */
async function whoIsIt(
  context: StoreContext,
  keyOf: DiskKeys,
  to: { readonly findings: Findings; readonly records: CheckRecords },
): Promise<string | undefined> {
  let proven: string | undefined;
  try {
    proven = (await identifyStore(context, keyOf)).storeId;
  } catch (error) {
    if (!isFault(error) || error.retryable) throw error;
  }
  const votes = new Map<string, number>();
  for (const diskId of await findDisks(context)) {
    for await (const { key } of context.store.list(diskNames(context.root, diskId).keys, storeOptions(context))) {
      const id = await storeIdOf(context, key);
      if (id !== undefined) votes.set(id, (votes.get(id) ?? 0) + 1);
    }
  }
  const [majority] = [...votes].sort(([, a], [, b]) => b - a);
  const key = storeNames(context.root).store;
  // Without a key nothing proves an id; then the word of two others is worth more than one.
  const agreed = majority !== undefined && majority[1] >= 2 ? majority[0] : proven;
  const { record } = await to.records.read(key, {
    kind: "store",
    decode: (data) => decodeStoreRecord(data, key),
    encode: encodeStoreRecord,
    wrong: ({ storeId }) =>
      agreed === undefined || storeId === agreed
        ? undefined
        : `It says that the store is "${storeId}", and its keys say "${agreed}"`,
  });
  return agreed ?? record?.storeId;
}

async function storeIdOf(context: StoreContext, key: string): Promise<string | undefined> {
  const data = await readIfThere(context, key);
  if (data === undefined) return undefined;
  try {
    return decodeWrappedKey(data, key).storeId;
  } catch (error) {
    if (!isFault(error)) throw error;
    return undefined; // The check of the keys says so.
  }
}

/** A key that is there and wrong is damage; one that nobody gave is not. */
async function openKeys(
  context: StoreContext,
  disk: {
    readonly diskId: string;
    readonly diskKey: Uint8Array | undefined;
    readonly storeId: string | undefined;
    readonly findings: Findings;
  },
): Promise<{ readonly keyring?: Keyring; readonly fault: Fault | undefined }> {
  const { diskId, diskKey, storeId, findings } = disk;
  try {
    return {
      keyring: await openKeyring(context, { storeId: storeId ?? "", diskId, diskKey, create: false }),
      fault: undefined,
    };
  } catch (error) {
    if (!isFault(error) || error.retryable) throw error;
    if (diskKey !== undefined) {
      const at = error.details["key"];
      const key = typeof at === "string" ? at : diskNames(context.root, diskId).keys;
      findings.add({ code: error.code, kind: "key", key, message: error.message, diskId });
    }
    return { fault: error };
  }
}

function tenantMac(tenantKey: Uint8Array, storeId: string): Mac {
  const key = deriveMacKey(createSecretKey(tenantKey), storeId);
  return (data) => createHmac("sha256", key).update(data).digest();
}

/** Another part of the store at each check, so that in time everything is read. */
function isSampled(key: string, seed: Uint8Array, percent: number): boolean {
  if (percent >= 100) return true;
  if (percent <= 0) return false;
  return createHash("sha256").update(seed).update(key).digest().readUInt32LE(0) / 2 ** 32 < percent / 100;
}
