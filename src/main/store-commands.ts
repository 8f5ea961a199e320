/** Composition root of the commands that read a store without any control plane. */
import { readFileSync } from "node:fs";
import { z } from "zod";
import { Fault } from "#model/fault.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { systemRandom } from "../adapters/random/system-random.ts";
import { s3ObjectStore } from "../adapters/s3/s3-object-store.ts";
import { probeStore } from "../data-mover/store-probe.ts";

const storeFile = z.object({
  endpoint: z.url(),
  region: z.string().default("us-east-1"),
  bucket: z.string().min(1),
  root: z.string().default("leeward"),
  credentialsFile: z.string().min(1),
});

export type StoreDescription = z.infer<typeof storeFile>;

const credentials = z.object({ accessKey: z.string().min(1), secretKey: z.string().min(1) });

/** Is this S3 safe to keep a replica in? Throws STORE_UNSAFE, STORE_DENIED, STORE_UNAVAILABLE. Writes only below `{root}/probe`. */
export async function probe(
  storeFileName: string,
): Promise<{ readonly endpoint: string; readonly bucket: string; readonly safe: true }> {
  const { endpoint, region, bucket, root, credentialsFile } = readStoreDescription(storeFileName);
  const keys = credentials.safeParse(JSON.parse(readFileSync(credentialsFile, "utf8")));
  if (!keys.success) {
    throw new Fault("CONFIG_INVALID", `"${credentialsFile}" has no accessKey and secretKey`, {
      hint: "Expected a JSON file with both",
    });
  }
  const store = s3ObjectStore({ endpoint, region, bucket, ...keys.data }, { clock: systemClock, random: systemRandom });
  await probeStore({ store, root, clock: systemClock, random: systemRandom });
  return { endpoint, bucket, safe: true };
}

/** Throws CONFIG_INVALID with the first thing that is wrong. */
export function readStoreDescription(file: string): StoreDescription {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot read "${file}"`, {
      cause,
      hint: "Expected a JSON file with endpoint, region, bucket, root and credentialsFile",
    });
  }
  const parsed = storeFile.safeParse(JSON.parse(text));
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new Fault("CONFIG_INVALID", `"${file}": ${issue?.path.join(".") ?? ""} ${issue?.message ?? "is invalid"}`);
  }
  return parsed.data;
}
