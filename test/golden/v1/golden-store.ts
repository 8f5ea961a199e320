/** The golden store of version 1, in memory, and what its disk holds. */
import { readdir, readFile } from "node:fs/promises";
import { diskNames } from "#model/format/object-names.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { memoryStore, type MemoryStore } from "../../../src/adapters/memory/memory-store.ts";
import { containerCodec } from "../../../src/data-mover/container-codec.ts";
import type { DiskContext } from "../../../src/data-mover/disk-context.ts";
import { type Keyring, openKeyring } from "../../../src/data-mover/keyring.ts";
import { blockData, seededRandom } from "../../support/format-samples.ts";
import { DISK_ID, DISK_KEY, ROOT, SIZE_BYTES, STORE_ID } from "./facts.ts";

/** `maps`: what was added to the format later, a map and a manifest of the same disk. */
export async function goldenStore(...folders: readonly ("store" | "maps")[]): Promise<MemoryStore> {
  const store = memoryStore();
  for (const name of folders) {
    const folder = new URL(`./${name}/`, import.meta.url);
    for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile()) continue;
      const path = `${entry.parentPath}/${entry.name}`;
      await store.create(path.slice(folder.pathname.length), await readFile(path));
    }
  }
  return store;
}

export async function openGolden(
  ...folders: readonly ("store" | "maps")[]
): Promise<{ readonly store: MemoryStore; readonly keyring: Keyring; readonly context: DiskContext }> {
  const store = await goldenStore(...(folders.length === 0 ? (["store"] as const) : folders));
  const random = seededRandom("reader");
  const clock = { now: () => 0, monotonic: () => 0, sleep: () => Promise.resolve() };
  const base = { store, root: ROOT, clock, random };
  const keyring = await openKeyring(base, { storeId: STORE_ID, diskId: DISK_ID, diskKey: DISK_KEY, create: false });
  const shape = { sizeBytes: SIZE_BYTES, sectorBytes: 512 };
  const codec = containerCodec({
    storeId: STORE_ID,
    diskId: DISK_ID,
    keyring,
    random,
    now: clock.now,
    shape: () => shape,
  });
  return { store, keyring, context: { ...base, diskId: DISK_ID, names: diskNames(ROOT, DISK_ID), codec } };
}

/** The disk after commit 2, and after commit 3. */
export function goldenContents(): { readonly synced: Buffer; readonly changed: Buffer } {
  const synced = Buffer.concat([blockData(0, 69), Buffer.alloc(31 * BLOCK_SIZE)]);
  const noise = Buffer.from(seededRandom("noise").bytes(BLOCK_SIZE));
  const changed = Buffer.from(synced);
  noise.copy(changed, 70 * BLOCK_SIZE);
  blockData(10, 3, 2).copy(changed, 10 * BLOCK_SIZE);
  changed.fill(0, 20 * BLOCK_SIZE, 24 * BLOCK_SIZE);
  return { synced, changed };
}
