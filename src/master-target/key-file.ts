/**
 * The keys of this site, outside the bucket: one for the tenant (it authenticates bookmarks) and one for each disk. Losing the file is
 * losing the replica, on purpose; so every new key is durable before anything is sealed with it.
 */
import { Fault } from "#model/fault.ts";
import { formatStateFile, parseStateFile } from "#model/state-file.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { Log } from "#ports/log.ts";
import type { Random } from "#ports/random.ts";

const KEY_BYTES = 32;

export interface KeyFile {
  readonly tenantKey: Uint8Array;
  keyOf(diskId: string): Uint8Array | undefined;
  /** Make the keys that are missing; durable when it settles. */
  ensure(diskIds: readonly string[]): Promise<void>;
}

interface Stored {
  readonly format: 1;
  readonly tenantKey: string;
  readonly disks: Readonly<Record<string, string>>;
}

/** Throws CONFIG_INVALID for a file that is not one of ours. */
export async function openKeyFile(
  path: string,
  deps: { readonly files: DurableFiles; readonly random: Random; readonly log: Log },
): Promise<KeyFile> {
  const { files, random, log } = deps;
  const fresh = (): string => Buffer.from(random.bytes(KEY_BYTES)).toString("base64");
  let stored = checked(await readJson(path, files), path);
  if (!stored) {
    stored = { format: 1, tenantKey: fresh(), disks: {} };
    await files.write(path, formatStateFile(stored));
    log.info("Made the key file of this site: keep a copy somewhere else, nothing can be recovered without it", {
      path,
    });
  }
  let saving: Promise<void> = Promise.resolve();
  const { tenantKey } = stored;
  return {
    tenantKey: Buffer.from(tenantKey, "base64"),
    keyOf: (diskId) => keysOf(stored!).keyOf(diskId), // Set above.
    ensure(diskIds) {
      const done = saving.then(async () => {
        const { disks } = stored!; // Set above.
        const missing = diskIds.filter((diskId) => disks[diskId] === undefined);
        if (missing.length === 0) return;
        const next: Stored = {
          format: 1,
          tenantKey,
          disks: { ...disks, ...Object.fromEntries(missing.map((diskId) => [diskId, fresh()])) },
        };
        await files.write(path, formatStateFile(next));
        stored = next;
        log.info("Added disk keys to the key file of this site: renew its copy", { path, disks: missing });
      });
      saving = done.catch(() => undefined); // Its caller has the error.
      return done;
    },
  };
}

/** The keys as they are in a file that is there; nothing is made. Throws CONFIG_INVALID. */
export async function readKeyFile(path: string, files: DurableFiles): Promise<Pick<KeyFile, "tenantKey" | "keyOf">> {
  const stored = checked(await readJson(path, files), path);
  if (stored === undefined) {
    throw new Fault("CONFIG_INVALID", `There is no key file "${path}"`, {
      hint: "Give the key file of the master target that wrote the store, or its copy; without it what is sealed stays closed.",
    });
  }
  return keysOf(stored);
}

async function readJson(path: string, files: DurableFiles): Promise<unknown> {
  const hint = "Restore it from its copy; a new one cannot open what is in the store";
  return parseStateFile({ path, text: await files.read(path), hint });
}

function keysOf({ tenantKey, disks }: Stored): Pick<KeyFile, "tenantKey" | "keyOf"> {
  return {
    tenantKey: Buffer.from(tenantKey, "base64"),
    keyOf(diskId) {
      const key = disks[diskId];
      return key === undefined ? undefined : new Uint8Array(Buffer.from(key, "base64"));
    },
  };
}

function checked(value: unknown, path: string): Stored | undefined {
  if (value === undefined) return undefined;
  const { format, tenantKey, disks } = value as Partial<Stored>;
  const keys = [tenantKey, ...Object.values(disks ?? {})];
  const isKey = (key: unknown): boolean => typeof key === "string" && Buffer.from(key, "base64").length === KEY_BYTES;
  if (format === 1 && typeof disks === "object" && keys.every(isKey)) return value as Stored;
  throw new Fault("CONFIG_INVALID", `"${path}" is not a key file, expected keys of ${KEY_BYTES} bytes in base64`, {
    hint: "Restore it from its copy; a new one cannot open what is in the store.",
  });
}
