/**
 * Map shards as objects: sealed like a container without frames, created once, believed only if they are the very one that a manifest names.
 *
 * Source: docs/format.md, "A map shard".
 */
import { hash } from "node:crypto";
import { isFault } from "#model/fault.ts";
import { MAX_PLAIN_INDEX_BYTES, tagBytesOf } from "#model/format/commit-index.ts";
import { corrupt, fromHex, toHex } from "#model/format/fields.ts";
import {
  CHAIN_BYTES,
  type ContainerHeader,
  FOOTER_BYTES,
  formatContainerId,
  HEADER_BYTES,
  INDEX_SALT_BYTES,
  SALT_BYTES,
} from "#model/format/header.ts";
import type { Anchor, MapReference } from "#model/format/manifest.ts";
import { decodeMapShard, encodeMapShard, type MapShard } from "#model/format/map-shard.ts";
import { sealHead } from "./container-head.ts";
import { openHead } from "./container-reader.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, storeOptions, withRetries } from "./disk-context.ts";
import { inObject } from "./image-container.ts";
import type { MapAccess } from "./map-access.ts";
import { NO_KEY_ID, requireKey } from "./sealing.ts";
import { compress, decompress } from "./zstd.ts";

/** Store a compact shard as of `anchor`. */
export async function storeMapShard(
  { disk, keyring, storeId }: MapAccess,
  map: MapShard,
  anchor: Omit<Anchor, "maps">,
): Promise<MapReference> {
  const dataKey = await keyring.current();
  const key = requireKey(keyring.cipher, dataKey);
  const tagBytes = tagBytesOf(keyring.cipher);
  const packedIndex = compress(encodeMapShard(map, tagBytes));
  const header: ContainerHeader = {
    kind: "map",
    cipher: keyring.cipher,
    flags: 0,
    incompatible: 0,
    storeId,
    diskId: disk.diskId,
    branchId: anchor.branch,
    epoch: anchor.epoch,
    seq: anchor.seq,
    cycle: 0,
    cycleDisks: 0,
    firstWriteMs: anchor.cutAtMs,
    cutMs: anchor.cutAtMs,
    rawCutMs: anchor.cutAtMs,
    chain: fromHex(anchor.commitHash, CHAIN_BYTES, "commitHash"),
    diskSizeBytes: anchor.sizeBytes,
    sectorBytes: anchor.sectorBytes,
    indexBytes: packedIndex.length + tagBytes,
    frameCount: 0,
    extentCount: map.extents.count,
    bodyBytes: 0,
    // Nothing refers to frames of a map, for it has none: all maps of a term may share this number, as fences do.
    containerId: formatContainerId({ role: "writer", term: anchor.epoch, counter: 0 }),
    salt: disk.random.bytes(SALT_BYTES),
    indexSalt: disk.random.bytes(INDEX_SALT_BYTES),
    dataKeyId: dataKey?.id ?? NO_KEY_ID,
    writerId: toHex(disk.random.bytes(8)),
  };
  const bytes = new Uint8Array(HEADER_BYTES + header.indexBytes + FOOTER_BYTES);
  const bodySha256 = hash("sha256", new Uint8Array(), "buffer");
  const { commitHash: head } = sealHead(bytes, header, { packedIndex, dataKey: key, bodySha256 });
  const name = `${anchor.seq.toString(16).padStart(12, "0")}-${toHex(disk.random.bytes(8))}`;
  const objectKey = disk.names.map(map.shard, name);
  const other = await createOnce(disk, {
    key: objectKey,
    body: bytes,
    look: () => readIfThere(disk, objectKey),
    isMine: (found) => Buffer.compare(found, bytes) === 0,
  });
  if (other !== undefined) throw new RangeError(`Two maps drew the name "${name}"`);
  return { shard: map.shard, name, head, bytes: bytes.length };
}

/** Throws OBJECT_CORRUPT (read twice before it is believed), OBJECT_MISSING, FORMAT_UNSUPPORTED, KEY_MISSING, STORE_…. */
export async function readMapShard(access: MapAccess, reference: MapReference): Promise<MapShard> {
  try {
    return await readOnce(access, reference);
  } catch (error) {
    if (!isFault(error, "OBJECT_CORRUPT")) throw error;
    return await readOnce(access, reference);
  }
}

async function readOnce({ disk, keyring, storeId }: MapAccess, reference: MapReference): Promise<MapShard> {
  const key = disk.names.map(reference.shard, reference.name);
  const data = await withRetries(disk, () => disk.store.get(key, storeOptions(disk)));
  try {
    const opened = openHead(data, keyring);
    if ("needBytes" in opened) throw corrupt("Map", "it is cut off");
    const { header, packedIndex, commitHash } = opened;
    // The hash alone settles which object it is; the rest says what is wrong with one that a writer made wrongly.
    if (commitHash !== reference.head) throw corrupt("Map", "it is not the one that the manifest names");
    if (header.kind !== "map" || header.diskId !== disk.diskId || header.storeId !== storeId)
      throw corrupt("Map", `it is a ${header.kind} of disk "${header.diskId}"`);
    const plain = decompress(packedIndex, MAX_PLAIN_INDEX_BYTES, "Map");
    const map = decodeMapShard(plain, { sizeBytes: header.diskSizeBytes, tagBytes: tagBytesOf(header.cipher) });
    if (map.shard !== reference.shard || map.extents.count !== header.extentCount)
      throw corrupt("Map", `it is of shard ${map.shard} and has ${map.extents.count} extents`);
    return map;
  } catch (error) {
    if (isFault(error, "OBJECT_CORRUPT")) throw inObject(error, key);
    throw error;
  }
}
