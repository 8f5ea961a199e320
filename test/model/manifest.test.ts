import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import { ANCHOR_WINDOW_MS, thinAnchors } from "#model/anchor-choice.ts";
import { type Anchor, decodeManifest, encodeManifest, type Manifest } from "#model/format/manifest.ts";
import { DISK_ID, STORE_ID } from "../support/format-samples.ts";

const mac = (data: Uint8Array): Uint8Array => createHmac("sha256", "key").update(data).digest();
const DAY_MS = 86_400_000;
const HASH = "0123456789abcdef0123456789abcdef";

function anchorAt(seq: number, cutAtMs: number, branch = "root"): Anchor {
  const position = { epoch: 2, seq, commitHash: HASH };
  const shared = { shard: 0, name: "000000000001-aa", head: HASH, bytes: 1000 };
  const own = { shard: 7, name: `${seq}-bb`, head: HASH, bytes: 2000 };
  const data = { ...position, cycle: seq, cutAtMs, writerId: "0123456789abcdef" };
  return { branch, ...position, data, cutAtMs, sizeBytes: 1 << 30, sectorBytes: 512, maps: [shared, own] };
}

const MANIFEST: Manifest = {
  no: 12,
  storeId: STORE_ID,
  diskId: DISK_ID,
  writerId: "00112233aabbccdd",
  createdAtMs: 1_786_000_000_000,
  anchors: [anchorAt(5, 100), anchorAt(9, 200), anchorAt(2, 300, "b-1")],
};

test("A manifest is read as it was written, and writes a shard that anchors share once", () => {
  const data = encodeManifest(MANIFEST, mac);
  assert.deepEqual(decodeManifest(data, "key", mac), MANIFEST);
  const { maps } = JSON.parse(Buffer.from(data).toString()) as { maps: unknown[] };
  assert.equal(maps.length, 4);
});

test("A manifest in which any byte was changed is refused", () => {
  const data = encodeManifest(MANIFEST, mac);
  for (let at = 0; at < data.length; at++) {
    const changed = data.slice();
    changed[at]! ^= 1;
    assert.throws(() => decodeManifest(changed, "key", mac), { name: "Fault" }, `byte ${at}`);
  }
});

test("Anchors of the last three days are all listed, of older days and each branch the last one; time counts from the newest", () => {
  const now = 100 * DAY_MS;
  const old = [0, 1, 2, 3].flatMap((day) =>
    [1, 2, 3].map((part) => anchorAt(day * 10 + part, now - 20 * DAY_MS + day * DAY_MS + part)),
  );
  const recent = Array.from({ length: 50 }, (_, index) =>
    anchorAt(1000 + index, now - ANCHOR_WINDOW_MS + 1 + index * 5_000_000),
  );
  const side = anchorAt(4, now - 20 * DAY_MS + 2, "b-1");
  const kept = thinAnchors([...old, side, ...recent]);
  assert.deepEqual(
    kept.map(({ branch, seq }) => `${branch}/${seq}`),
    ["root/3", "root/13", "root/23", "root/33", "b-1/4", ...recent.map(({ seq }) => `root/${seq}`)],
  );
  assert.deepEqual(thinAnchors(kept), kept);
});
