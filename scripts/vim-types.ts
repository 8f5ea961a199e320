/**
 * Writes src/adapters/vsphere/vim-*.ts from tools/vsphere/types.txt and the Go types of govmomi.
 *
 *   node scripts/vim-types.ts [FOLDER]
 *
 * test/adapters/vsphere/vim-types.test.ts compares what it would write with what is there.
 */
import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { promisify } from "node:util";
import { format, resolveConfig } from "prettier";
import { buildVsphereSimulator, SIMULATOR_SOURCES } from "./vsphere-simulator.ts";

export const GENERATED = ["vim-types.ts", "vim-methods.ts", "vim-schema.ts"] as const;

export async function generateVimTypes(folder: string): Promise<void> {
  const list = path.join(SIMULATOR_SOURCES, "types.txt");
  await promisify(execFile)(await buildVsphereSimulator(), ["types", list, folder]);
  const style = (await resolveConfig(import.meta.filename)) ?? {};
  for (const name of GENERATED) {
    const file = path.join(folder, name);
    await writeFile(file, await format(await readFile(file, "utf8"), { ...style, parser: "typescript" }));
  }
}

if (import.meta.main) {
  await generateVimTypes(process.argv[2] ?? path.join(import.meta.dirname, "..", "src", "adapters", "vsphere"));
}
