/**
 * Looks at what a disk's manifests say: each by itself, and of the newest that is intact whether what it promises below the floors is there.
 *
 * Commits below a floor may be gone, and what is still there of them is there for its frames. So a line is followed from its floor on, and a position
 * below it stands or falls with the maps of its anchor and the containers that they name.
 */
import { MAX_PLAIN_INDEX_BYTES, tagBytesOf } from "#model/format/commit-index.ts";
import { type LedgerRecord, NO_LEDGER } from "#model/format/ledger-record.ts";
import { type Anchor, decodeManifest, encodeManifest, type Manifest } from "#model/format/manifest.ts";
import { decodeMapShard } from "#model/format/map-shard.ts";
import { type DiskNames, parseNumbered } from "#model/format/object-names.ts";
import { Fault, isFault } from "#model/fault.ts";
import type { DiskCheckOptions } from "./check-objects.ts";
import { openHead } from "./container-reader.ts";
import { readIfThere } from "./disk-context.ts";
import { containerKey } from "./line-replay.ts";
import { decompress } from "./zstd.ts";

export interface LedgerState {
  readonly ledger: LedgerRecord;
  readonly anchors: readonly Anchor[];
  /** Findings by anchor: why it cannot be read. Without a key its maps are only looked for. */
  readonly broken: ReadonlyMap<Anchor, readonly number[]>;
  /** Keys of the containers that the maps of all anchors name. */
  readonly named: ReadonlySet<string>;
}

/** `there`: keys of all commits and segments. */
export async function checkLedger(options: DiskCheckOptions, there: ReadonlySet<string>): Promise<LedgerState> {
  const newest = await checkManifests(options);
  const ledger = newest?.ledger ?? NO_LEDGER;
  const anchors = newest?.anchors ?? [];
  const broken = new Map<Anchor, readonly number[]>();
  const named = new Set<string>();
  const maps = new Map<string, Promise<readonly number[]>>();
  for (const anchor of anchors) {
    const isLast = anchor.seq <= (ledger.floors[anchor.branch] ?? 0);
    const findings: number[] = [];
    for (const reference of anchor.maps) {
      const key = options.names.map(reference.shard, reference.name);
      const looking =
        maps.get(key) ?? checkMap(options, { key, head: reference.head, there, named, branch: anchor.branch });
      maps.set(key, looking);
      findings.push(...(await looking));
    }
    // Above its floor the commits say the same.
    if (isLast && findings.length > 0) broken.set(anchor, findings);
  }
  return { ledger, anchors, broken, named };
}

async function checkManifests(options: DiskCheckOptions): Promise<Manifest | undefined> {
  const { context, names, keyring, records, diskId, storeId } = options;
  const mac = keyring?.manifestMac;
  let newest: Manifest | undefined;
  for await (const { key } of context.store.list(names.manifests)) {
    const no = parseNumbered(names.manifests, key);
    if (no === undefined) continue;
    const { record } = await records.read(key, {
      kind: "manifest",
      more: { diskId },
      decode: (data) => decodeManifest(data, key, mac),
      ...(mac !== undefined && { encode: (manifest: Manifest) => encodeManifest(manifest, mac) }),
      wrong(manifest) {
        if (manifest.no !== no || manifest.diskId !== diskId)
          return `It is manifest ${manifest.no} of disk "${manifest.diskId}"`;
        return storeId === undefined || manifest.storeId === storeId
          ? undefined
          : `It belongs to store "${manifest.storeId}"`;
      },
    });
    newest = record ?? newest;
  }
  return newest;
}

/** Findings about one map. */
async function checkMap(
  options: DiskCheckOptions,
  map: {
    readonly key: string;
    readonly head: string;
    readonly there: ReadonlySet<string>;
    readonly named: Set<string>;
    readonly branch: string;
  },
): Promise<readonly number[]> {
  const { context, keyring, findings, diskId, names } = options;
  const { key, branch } = map;
  const where = { diskId, branch };
  const data = await readIfThere(context, key);
  if (data === undefined)
    return [
      findings.add({
        code: "OBJECT_MISSING",
        kind: "map",
        key,
        message: "A manifest names it, and it is not there",
        ...where,
      }),
    ];
  options.onRead(data.length);
  if (keyring === undefined) return [];
  try {
    const containers = containersOf(data, { keyring, head: map.head, names });
    for (const name of containers) map.named.add(name);
    return containers
      .filter((name) => !map.there.has(name))
      .map((name) => {
        const kind = name.startsWith(names.segments) ? ("segment" as const) : ("commit" as const);
        return findings.add({
          code: "OBJECT_MISSING",
          kind,
          key: name,
          message: `Map "${key}" names it, and it is not there`,
          ...where,
        });
      });
  } catch (error) {
    if (!isFault(error)) throw error;
    return [findings.add({ code: error.code, kind: "map", key, message: error.message, ...where })];
  }
}

function containersOf(
  data: Uint8Array,
  {
    keyring,
    head,
    names,
  }: { readonly keyring: NonNullable<DiskCheckOptions["keyring"]>; readonly head: string; readonly names: DiskNames },
): string[] {
  const opened = openHead(data, keyring);
  if ("needBytes" in opened) throw new Fault("OBJECT_CORRUPT", "It is cut off");
  if (opened.commitHash !== head) throw new Fault("OBJECT_CORRUPT", "It is not the one that the manifest names");
  const { header, packedIndex } = opened;
  const plain = decompress(packedIndex, MAX_PLAIN_INDEX_BYTES, "Map");
  const shard = decodeMapShard(plain, { sizeBytes: header.diskSizeBytes, tagBytes: tagBytesOf(header.cipher) });
  return Array.from({ length: shard.containerCount }, (_, source) => containerKey({ names }, shard.container(source)));
}
