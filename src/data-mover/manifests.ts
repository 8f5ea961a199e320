/**
 * Manifests in the store: the newest that is intact, and how one more anchor gets into the next.
 *
 * A manifest repeats what the one before it says and adds to it; each is created once, under the next number. Whoever finds the number
 * taken reads again. Movers that do not know of each other may both add anchors, and all of them are true.
 */
import { thinAnchors } from "#model/anchor-choice.ts";
import { isFault } from "#model/fault.ts";
import { toHex } from "#model/format/fields.ts";
import { damagedRecord } from "#model/format/json-record.ts";
import { type Anchor, decodeManifest, encodeManifest, type Manifest } from "#model/format/manifest.ts";
import { readOrigin } from "./branch-reader.ts";
import { listNumbers } from "./claims.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, storeOptions, withRetries, type DiskContext } from "./disk-context.ts";
import { isUnusable, type MapAccess } from "./map-access.ts";

/** Damaged manifests that are looked past. So many are no accident, and the commits say everything too. */
const TRIED_MOST = 8;

/**
 * The newest intact manifest, and the highest number that is taken (0: none). `toWrite`: throws FORMAT_UNSUPPORTED when a newer version has
 * written one, for the next would leave out what that one says and we do not know. Throws STORE_….
 */
export async function readNewestManifest(
  access: MapAccess,
  { toWrite = false }: { readonly toWrite?: boolean } = {},
): Promise<{ readonly highest: number; readonly anchors: readonly Anchor[] }> {
  const { disk, log } = access;
  const numbers = await listNumbers(disk, disk.names.manifests);
  for (const no of numbers.slice(-TRIED_MOST).reverse()) {
    try {
      return { highest: numbers.at(-1)!, anchors: (await readManifest(access, no)).anchors };
    } catch (error) {
      if (!isUnusable(error) || (toWrite && isFault(error, "FORMAT_UNSUPPORTED"))) throw error;
      log?.warn("A manifest cannot be used: an older one is read instead", {
        key: disk.names.manifest(no),
        fault: String(error),
      });
    }
  }
  return { highest: numbers.at(-1) ?? 0, anchors: [] };
}

/** Throws OBJECT_CORRUPT, OBJECT_MISSING, FORMAT_UNSUPPORTED, STORE_…. */
export async function readManifest({ disk, keyring, storeId }: MapAccess, no: number): Promise<Manifest> {
  const key = disk.names.manifest(no);
  const data = await withRetries(disk, () => disk.store.get(key, storeOptions(disk)));
  const manifest = decodeManifest(data, key, keyring.manifestMac);
  if (manifest.no === no && manifest.diskId === disk.diskId && manifest.storeId === storeId) return manifest;
  throw damagedRecord(key, `it is manifest ${manifest.no} of disk "${manifest.diskId}"`);
}

/** Make `anchor` known, whoever else does the same. Its maps must be stored. */
export async function addAnchor(access: MapAccess, anchor: Anchor): Promise<Manifest> {
  const { disk, keyring, storeId } = access;
  const writerId = toHex(disk.random.bytes(8));
  for (;;) {
    const { highest, anchors } = await readNewestManifest(access, { toWrite: true });
    const manifest: Manifest = {
      no: highest + 1,
      storeId,
      diskId: disk.diskId,
      writerId,
      createdAtMs: disk.clock.now(),
      anchors: thinAnchors([...anchors, anchor]),
    };
    const key = disk.names.manifest(manifest.no);
    const body = encodeManifest(manifest, keyring.manifestMac);
    const other = await createOnce(disk, {
      key,
      body,
      look: () => readIfThere(disk, key),
      isMine: (found) => Buffer.compare(found, body) === 0,
    });
    if (other === undefined) return manifest;
  }
}

/** The anchors from which a position can be reached, nearest first: on its branch, then on the parents up to where it left them. */
export async function* anchorsOnLine(
  disk: DiskContext,
  anchors: readonly Anchor[],
  position: { readonly branch: string; readonly seq: number },
): AsyncGenerator<Anchor, void, void> {
  if (anchors.length === 0) return;
  let at: { readonly branch: string; readonly seq: number } | undefined = position;
  while (at !== undefined) {
    const { branch, seq }: { readonly branch: string; readonly seq: number } = at;
    yield* anchors.filter((anchor) => anchor.branch === branch && anchor.seq <= seq).sort((a, b) => b.seq - a.seq);
    at = (await readOrigin(disk, branch)).parent;
  }
}
