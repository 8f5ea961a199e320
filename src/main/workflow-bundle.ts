/**
 * The workflows as one file for Temporal's sandbox, made once per content.
 *
 * Bundling takes several seconds. The result depends only on the sources of workflows and model and on the SDK's version, so it is
 * kept under a hash of those; a second start reads it. A file that is there is complete: it was renamed into place.
 */
import { createHash, randomUUID } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Log } from "#ports/log.ts";

/** What a bundle is made from; everything else only types. */
const FOLDERS = ["workflows", "model"] as const;
const KEPT_MAX = 4;

export interface BundleFile {
  readonly codePath: string;
  readonly fromCache: boolean;
}

/** `folder` is created when missing. */
export async function cachedWorkflowBundle(folder: string, log: Log): Promise<BundleFile> {
  const key = await contentHash();
  const codePath = join(folder, `workflows-${key}.js`);
  await mkdir(folder, { recursive: true });
  const entries = await readdir(folder);
  if (entries.includes(`workflows-${key}.js`)) return { codePath, fromCache: true };
  // Loaded only now: webpack is the slow part.
  const { bundleWorkflowCode } = await import("@temporalio/worker");
  const { code } = await bundleWorkflowCode({
    workflowsPath: fileURLToPath(sourceUrl("../workflows/registry")),
    logger: quietLogger(log),
  });
  const partial = join(folder, `.${randomUUID()}.partial`);
  await writeFile(partial, code);
  await rename(partial, codePath);
  // Bundles of older sources: somebody may still run on the last few.
  const old = entries.filter((name) => /^workflows-[0-9a-f]+\.js$/.test(name)).slice(0, -KEPT_MAX);
  await Promise.all(old.map(async (name) => await rm(join(folder, name), { force: true })));
  return { codePath, fromCache: false };
}

async function contentHash(): Promise<string> {
  const hash = createHash("sha256");
  const { version } = createRequire(import.meta.url)("@temporalio/worker/package.json") as { readonly version: string };
  hash.update(version);
  for (const name of FOLDERS) {
    const folder = fileURLToPath(new URL(`../${name}/`, import.meta.url));
    const files = (await readdir(folder, { recursive: true }))
      .filter((file) => /\.[jt]s$/.test(file) && !file.endsWith(".d.ts"))
      .sort();
    for (const file of files) hash.update(`\0${name}/${file}\0`).update(await readFile(join(folder, file)));
  }
  return hash.digest("hex").slice(0, 32);
}

/** A file beside this one, as source or as built. */
function sourceUrl(name: string): URL {
  return new URL(name + (import.meta.filename.endsWith(".ts") ? ".ts" : ".js"), import.meta.url);
}

function quietLogger(log: Log) {
  return {
    log: () => undefined,
    trace: () => undefined,
    debug: () => undefined,
    info: () => undefined,
    warn: (message: string) => log.warn("The workflow bundler warns", { text: message }),
    error: (message: string) => log.error("The workflow bundler failed", { text: message }),
  };
}
