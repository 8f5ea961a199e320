/**
 * How a person says which store they mean: a small file (YAML or JSON), options, or both; and the two secrets it takes, each a file of its own.
 *
 * ```
 *   endpoint: https://s3.example.com      region: eu-west-1        bucket: replica       root: leeward
 *   credentialsFile: s3.json              # accessKey, secretKey
 *   keysFile: disk-keys.json              # the key file of the master target, or its copy
 *   caFile: ca.pem                        # of a server with a certificate of its own
 * ```
 *
 * File names in it are relative to it, so a folder with all of it can be carried anywhere. A master target's own configuration is taken as it is.
 */
import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { parse as parseYaml } from "yaml";
import { z } from "zod";
import { Fault } from "#model/fault.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { systemRandom } from "../adapters/random/system-random.ts";
import { s3ObjectStore, type S3ObjectStore, type S3Settings } from "../adapters/s3/s3-object-store.ts";
import type { StoreChoice } from "../cli/rescue-contract.ts";
import type { StoreContext } from "../data-mover/disk-context.ts";
import { createDurableFiles } from "../adapters/file/durable-files.ts";
import { readKeyFile } from "../master-target/key-file.ts";

export interface StoreAccess {
  readonly settings: S3Settings;
  readonly root: string;
  /** Undefined when no key file was given. */
  readonly keysFile: string | undefined;
}

export interface HeldKeys {
  readonly tenantKey: Uint8Array;
  keyOf(diskId: string): Uint8Array | undefined;
}

const file = z.object({
  endpoint: z.string().optional(),
  region: z.string().optional(),
  bucket: z.string().optional(),
  root: z.string().optional(),
  credentialsFile: z.string().optional(),
  keysFile: z.string().optional(),
  caFile: z.string().optional(),
});
type StoreFile = z.infer<typeof file>;

const credentials = z.object({ accessKey: z.string().min(1), secretKey: z.string().min(1) });

const NEEDED =
  "Expected endpoint, bucket, credentialsFile, and keysFile for what is sealed; region and root have defaults";

/** Throws CONFIG_INVALID with the first thing that is missing or wrong. */
export function readStoreAccess(options: StoreChoice): StoreAccess {
  const given = options.store === undefined ? {} : readStoreFile(options.store);
  const endpoint = options.endpoint ?? given.endpoint;
  const bucket = options.bucket ?? given.bucket;
  if (endpoint === undefined || bucket === undefined) throw missing(endpoint === undefined ? "endpoint" : "bucket");
  if (!/^https?:\/\/[^/]+$/.test(endpoint.replace(/\/$/, ""))) {
    throw new Fault("CONFIG_INVALID", `The endpoint "${endpoint}" is no address, expected http(s)://HOST[:PORT]`, {
      hint: NEEDED,
    });
  }
  const root = (options.root ?? given.root ?? "leeward").replace(/^\/+|\/+$/g, "");
  const caFile = options.ca ?? given.caFile;
  return {
    root,
    keysFile: options.keys ?? given.keysFile,
    settings: {
      endpoint: endpoint.replace(/\/$/, ""),
      region: options.region ?? given.region ?? "us-east-1",
      bucket,
      ...readCredentials(options.credentials ?? given.credentialsFile),
      ...(caFile === undefined ? {} : { ca: readText(caFile) }),
    },
  };
}

/** Who calls closes the object store. */
export function openStoreContext(
  { settings, root }: StoreAccess,
  signal?: AbortSignal,
): StoreContext & { readonly store: S3ObjectStore } {
  const store = s3ObjectStore(settings, { clock: systemClock, random: systemRandom });
  return { store, root, clock: systemClock, random: systemRandom, ...(signal === undefined ? {} : { signal }) };
}

/** Throws CONFIG_INVALID for a file that is not there or no key file. Nothing is ever written to it here. */
export async function readHeldKeys({ keysFile }: StoreAccess): Promise<HeldKeys | undefined> {
  return keysFile === undefined
    ? undefined
    : readKeyFile(keysFile, createDurableFiles({ fullHint: "Free space beside the key file" }));
}

function readStoreFile(path: string): StoreFile {
  let value: unknown;
  const text = readText(path);
  try {
    value = parseYaml(text);
  } catch (cause) {
    // The text may hold a secret; what the parser says quotes it.
    throw new Fault("CONFIG_INVALID", `"${path}" is neither YAML nor JSON`, { hint: NEEDED, cause });
  }
  const outer = value as { readonly store?: unknown; readonly keysFile?: unknown } | null;
  const inner =
    typeof outer?.store === "object" && outer.store !== null ? { keysFile: outer.keysFile, ...outer.store } : value;
  const parsed = file.safeParse(inner);
  if (!parsed.success)
    throw new Fault("CONFIG_INVALID", `"${path}": ${z.prettifyError(parsed.error)}`, { hint: NEEDED });
  const beside = (name: string | undefined): string | undefined =>
    name === undefined ? undefined : resolve(dirname(path), name);
  const { credentialsFile, keysFile, caFile, ...plain } = parsed.data;
  return {
    ...plain,
    ...optional("credentialsFile", beside(credentialsFile)),
    ...optional("keysFile", beside(keysFile)),
    ...optional("caFile", beside(caFile)),
  };
}

function optional<Name extends string>(name: Name, value: string | undefined): { [Key in Name]?: string } {
  return (value === undefined ? {} : { [name]: value }) as { [Key in Name]?: string };
}

/** Without a file, what S3 tools take from the environment. */
function readCredentials(path: string | undefined): z.infer<typeof credentials> {
  if (path === undefined) {
    const { AWS_ACCESS_KEY_ID: accessKey, AWS_SECRET_ACCESS_KEY: secretKey } = process.env;
    if (accessKey === undefined || secretKey === undefined) throw missing("credentialsFile");
    return { accessKey, secretKey };
  }
  let value: unknown;
  try {
    value = JSON.parse(readText(path));
  } catch (error) {
    if (error instanceof Fault) throw error;
    value = undefined;
  }
  const keys = credentials.safeParse(value);
  if (keys.success) return keys.data;
  throw new Fault("CONFIG_INVALID", `"${path}" has no accessKey and secretKey`, {
    hint: "Expected a JSON file with both",
  });
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot read "${path}"`, { cause, hint: NEEDED });
  }
}

function missing(name: string): Fault {
  return new Fault("CONFIG_INVALID", `The store's ${name} is not given`, {
    hint: `${NEEDED}. Give --store FILE, or the options.`,
  });
}
