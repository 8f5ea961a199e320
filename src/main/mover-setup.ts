/** What the master target hands to its child processes over IPC, and how they open the store with it. Credentials and keys travel in no other way. */
import { readFileSync } from "node:fs";
import type { JsonObject } from "#model/json.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { systemRandom } from "../adapters/random/system-random.ts";
import { s3ObjectStore, type S3ObjectStore } from "../adapters/s3/s3-object-store.ts";
import { openMoverStore, type DiskKeys, type MoverStore } from "../data-mover/mover-store.ts";

export interface StoreSettings {
  readonly endpoint: string;
  readonly region: string;
  readonly bucket: string;
  readonly root: string;
  readonly accessKey: string;
  readonly secretKey: string;
}

/** First message to a child. Keys in base64, by disk. */
export interface ChildSetup {
  readonly site: string;
  readonly name: string;
  readonly store: StoreSettings;
  readonly expectedStoreId?: string;
  readonly keys: Readonly<Record<string, string>>;
}

/** About ten seconds: then whoever waits is told, and repeats. */
const RETRY = { attempts: 9, firstMs: 50, mostMs: 3_000 } as const;
const REQUEST_MS = 15_000;

export function openStore(settings: StoreSettings): S3ObjectStore {
  const { endpoint, region, bucket, accessKey, secretKey } = settings;
  return s3ObjectStore(
    { endpoint, region, bucket, accessKey, secretKey, timeoutMs: REQUEST_MS },
    { clock: systemClock, random: systemRandom },
  );
}

export function openReplica(
  store: S3ObjectStore,
  options: { readonly root: string; readonly keys: DiskKeys; readonly expectedStoreId?: string | undefined },
): MoverStore {
  const context = { store, root: options.root, clock: systemClock, random: systemRandom, retry: RETRY };
  return openMoverStore(context, {
    keys: options.keys,
    ...(options.expectedStoreId === undefined ? {} : { expectedStoreId: options.expectedStoreId }),
  });
}

/** `known` may grow: keys of groups that come later are put into it. */
export function keysFrom(known: ReadonlyMap<string, Uint8Array>): DiskKeys {
  return (diskId) => known.get(diskId);
}

export function decodeKeys(keys: Readonly<Record<string, string>>): [string, Uint8Array][] {
  return Object.entries(keys).map(([diskId, key]) => [diskId, new Uint8Array(Buffer.from(key, "base64"))]);
}

export function encodeKeys(diskIds: readonly string[], keyOf: DiskKeys): JsonObject {
  return Object.fromEntries(
    diskIds.flatMap((diskId) => {
      const key = keyOf(diskId);
      return key ? [[diskId, Buffer.from(key).toString("base64")]] : [];
    }),
  );
}

/** Changes with every boot of the machine, and with nothing else. */
export function readBootId(): string {
  return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
}
