/**
 * Manifests in the store: the newest that is intact, and how the next is made.
 *
 * A manifest repeats what the one before it says, and changes it; each is created once, under the next number. Whoever finds the number
 * taken reads again. What may follow what is the ledger's to say (disk-ledger.ts).
 *
 * One that is damaged is looked past by readers: a version differs from the one before it by one change, and nothing is deleted that either of the
 * two needs.
 */
import { isFault } from "#model/fault.ts";
import { toHex } from "#model/format/fields.ts";
import { damagedRecord } from "#model/format/json-record.ts";
import { type LedgerRecord, NO_LEDGER } from "#model/format/ledger-record.ts";
import { type Anchor, decodeManifest, encodeManifest, type Manifest } from "#model/format/manifest.ts";
import { readOrigin } from "./branch-reader.ts";
import { listNumbers } from "./claims.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, storeOptions, withRetries, type DiskContext } from "./disk-context.ts";
import { isUnusable, type MapAccess } from "./map-access.ts";

/** Damaged manifests that are looked past. So many are no accident, and the commits say everything too. */
const TRIED_MOST = 8;

/** The newest manifest that is intact. */
export interface NewestManifest {
  /** The highest number that is taken; 0: none. */
  readonly highest: number;
  readonly anchors: readonly Anchor[];
  /** Empty when no manifest has one. */
  readonly ledger: LedgerRecord;
  /** Newer ones, which are damaged. */
  readonly lost: readonly number[];
}

/** By the keys of a disk, of which a process opens each once: what was read last, for manifests never change. */
const known = new WeakMap<object, { readonly no: number; readonly manifest: Manifest }>();

/**
 * `toWrite`: throws FORMAT_UNSUPPORTED when a newer version has written one, for the next would leave out what that one says and we do not know.
 * Throws STORE_….
 */
export async function readNewestManifest(
  access: MapAccess,
  { toWrite = false }: { readonly toWrite?: boolean } = {},
): Promise<NewestManifest> {
  const { disk, log } = access;
  const seen = known.get(access.keyring)?.no ?? 0;
  const after = seen > TRIED_MOST ? disk.names.manifest(seen - TRIED_MOST) : "";
  const numbers = await listNumbers(disk, disk.names.manifests, after);
  const lost: number[] = [];
  for (const no of numbers.slice(-TRIED_MOST).reverse()) {
    try {
      const { anchors, ledger = NO_LEDGER } = await readManifest(access, no);
      return { highest: numbers.at(-1)!, anchors, ledger, lost };
    } catch (error) {
      if (!isUnusable(error) || (toWrite && isFault(error, "FORMAT_UNSUPPORTED"))) throw error;
      lost.push(no);
      log?.warn("A manifest cannot be used: an older one is read instead", {
        key: disk.names.manifest(no),
        fault: String(error),
      });
    }
  }
  return { highest: numbers.at(-1) ?? 0, anchors: [], ledger: NO_LEDGER, lost };
}

/** Damage is believed only when it is read twice. Throws OBJECT_CORRUPT, OBJECT_MISSING, FORMAT_UNSUPPORTED, STORE_…. */
export async function readManifest(access: MapAccess, no: number): Promise<Manifest> {
  const last = known.get(access.keyring);
  if (last?.no === no) return last.manifest;
  let manifest: Manifest;
  try {
    manifest = await readOnce(access, no);
  } catch (error) {
    if (!isFault(error, "OBJECT_CORRUPT")) throw error;
    manifest = await readOnce(access, no);
  }
  known.set(access.keyring, { no, manifest });
  return manifest;
}

async function readOnce({ disk, keyring, storeId }: MapAccess, no: number): Promise<Manifest> {
  const key = disk.names.manifest(no);
  const data = await withRetries(disk, () => disk.store.get(key, storeOptions(disk)));
  const manifest = decodeManifest(data, key, keyring.manifestMac);
  if (manifest.no === no && manifest.diskId === disk.diskId && manifest.storeId === storeId) return manifest;
  throw damagedRecord(key, `it is manifest ${manifest.no} of disk "${manifest.diskId}"`);
}

/** Create the manifest `no`. False: somebody else has taken the number. What a lost reply leaves open is looked up. */
export async function writeManifest(
  { disk, keyring, storeId }: MapAccess,
  { no, anchors, ledger }: Pick<Manifest, "no" | "anchors" | "ledger">,
): Promise<boolean> {
  const manifest: Manifest = {
    no,
    storeId,
    diskId: disk.diskId,
    writerId: toHex(disk.random.bytes(8)),
    createdAtMs: disk.clock.now(),
    anchors,
    ...(ledger !== undefined && { ledger }),
  };
  const key = disk.names.manifest(no);
  const body = encodeManifest(manifest, keyring.manifestMac);
  const other = await createOnce(disk, {
    key,
    body,
    look: () => readIfThere(disk, key),
    isMine: (found) => Buffer.compare(found, body) === 0,
  });
  return other === undefined;
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
