/**
 * Makes the golden map and manifest of the golden store: an anchor at its commit 2. Run by hand, once; the files are kept for ever:
 *
 *     node test/golden/v1/make-maps.ts
 */
import { mkdir, writeFile } from "node:fs/promises";
import { makeAnchors } from "../../../src/data-mover/anchor-maker.ts";
import { seededRandom } from "../../support/format-samples.ts";
import { STORE_ID } from "./facts.ts";
import { openGolden } from "./golden-store.ts";

const KEY_ID = "549badcef0b7f2cf";
const { store, keyring, context } = await openGolden();
const before = new Set(store.objects.keys());
const random = seededRandom("golden maps v1");
// A month of the golden data key, so that no other is made.
const clock = { ...context.clock, now: () => 1_786_000_000_000 };
const disk = { ...context, random, clock };
const keys = { ...keyring, current: () => Promise.resolve({ id: KEY_ID, key: keyring.keyOf(KEY_ID) }) };
await makeAnchors({ disk, keyring: keys, storeId: STORE_ID }, { branch: "root", seq: 2 }, { limits: { commits: 2, extents: 1e9 } });

const folder = new URL("./maps/", import.meta.url);
for (const [key, data] of store.objects) {
  if (before.has(key)) continue;
  const path = new URL(key, folder);
  await mkdir(new URL("./", path), { recursive: true });
  await writeFile(path, data, { flag: "wx" });
}
