/** Composition root of the commands that read a store without any control plane. */
import { readFileSync } from "node:fs";
import { z } from "zod";
import { Fault } from "#model/fault.ts";

const storeFile = z.object({
  endpoint: z.url(),
  region: z.string().default("us-east-1"),
  bucket: z.string().min(1),
  root: z.string().default("leeward"),
  credentialsFile: z.string().min(1),
});

export type StoreDescription = z.infer<typeof storeFile>;

/** Throws CONFIG_INVALID with the first thing that is wrong. */
export function readStoreDescription(file: string): StoreDescription {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot read "${file}"`, { cause, hint: "Expected a JSON file with endpoint, region, bucket, root and credentialsFile" });
  }
  const parsed = storeFile.safeParse(JSON.parse(text));
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new Fault("CONFIG_INVALID", `"${file}": ${issue?.path.join(".") ?? ""} ${issue?.message ?? "is invalid"}`);
  }
  return parsed.data;
}
