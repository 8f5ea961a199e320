import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { decodeFooter } from "#model/format/footer.ts";
import { decodeHeader, FOOTER_BYTES, HEADER_BYTES } from "#model/format/header.ts";
import { diskNames, groupNames, storeNames } from "#model/format/object-names.ts";
import * as records from "#model/format/records.ts";
import { openHead, readIndex } from "../../../src/data-mover/container-reader.ts";
import { openImage } from "../../../src/data-mover/image.ts";
import { DISK_ID, GROUP_ID, ROOT, SIZE_BYTES, STORE_ID } from "./facts.ts";
import { goldenContents, goldenStore, openGolden } from "./golden-store.ts";

const disk = diskNames(ROOT, DISK_ID);
const group = groupNames(ROOT, GROUP_ID);

test("The golden files of version 1 are the ones that were made for it", async () => {
  const { objects } = await goldenStore("store");
  const sums = [...objects].map(([key, data]) => `${createHash("sha256").update(data).digest("hex")}  ${key}\n`).sort();
  assert.equal(sums.join(""), await readFile(new URL("./SHA256SUMS", import.meta.url), "utf8"));
});

test("Every block of the golden disk reads as it was written, at each commit", async () => {
  const { context, keyring } = await openGolden();
  const { synced, changed } = goldenContents();
  for (const [seq, expected] of [[2, synced], [3, changed]] as const) {
    const image = await openImage(context, { keyring, storeId: STORE_ID, branch: "root", seq });
    assert.equal(image.sizeBytes, SIZE_BYTES);
    const actual = Buffer.alloc(SIZE_BYTES, 0xee);
    await image.read(actual, 0);
    assert.ok(actual.equals(expected.subarray(0, SIZE_BYTES)), `commit ${seq}`);
  }
});

test("Header, index and footer of the golden commit say what they said when they were written", async () => {
  const { store, keyring } = await openGolden();
  const data = store.objects.get(disk.commit("root", 3))!;
  const header = decodeHeader(data);
  assert.deepEqual(
    [header.kind, header.cipher, header.epoch, header.seq, header.cycle, header.cycleDisks, header.flags, header.frameCount, header.extentCount],
    ["journal", "aes-256-gcm", 1, 3, 2, 1, 2, 2, 3],
  );
  assert.deepEqual([header.cutMs, header.rawCutMs, header.firstWriteMs], [1_786_000_010_000, 1_786_000_009_993, 1_786_000_007_000]);
  const head = openHead(data, keyring);
  assert.ok(!("needBytes" in head));
  const index = readIndex(head);
  assert.deepEqual(index.barrier, { groupId: GROUP_ID, groupEpoch: 1, barrier: 2, point: true });
  assert.deepEqual(index.tracker, { bootId: "4f6c…", generation: 2, lostEvents: 0, holdMs: 4 });
  for (const [key, object] of store.objects) {
    if (!/journal|segments/.test(key)) continue;
    const footer = decodeFooter(object.subarray(-FOOTER_BYTES));
    const headBytes = HEADER_BYTES + decodeHeader(object).indexBytes;
    assert.equal(Buffer.from(footer.headSha256).toString("hex"), createHash("sha256").update(object.subarray(0, headBytes)).digest("hex"));
    assert.equal(
      Buffer.from(footer.bodySha256).toString("hex"),
      createHash("sha256").update(object.subarray(headBytes, -FOOTER_BYTES)).digest("hex"),
    );
    assert.equal(footer.totalBytes, object.length);
  }
});

test("The golden records are read, and the bookmark's MAC holds", async () => {
  const { store, keyring } = await openGolden();
  const at = (key: string): readonly [Uint8Array, string] => [store.objects.get(key)!, key];
  assert.equal(records.decodeStoreRecord(...at(storeNames(ROOT).store)).storeId, STORE_ID);
  assert.equal(records.decodeDiskClaim(...at(disk.epoch(1))).activeSite, "one");
  assert.deepEqual(records.decodeGroupClaim(...at(group.epoch(1))).disks, [DISK_ID]);
  assert.equal(records.decodeBranchOrigin(...at(disk.origin("root"))).reason, "root");
  const barrier = records.decodeBarrier(...at(group.barrier(2)));
  assert.equal(barrier.members[0]!.seq, 3);
  const point = records.decodePoint(...at(group.point(barrier.cutAtMs, 2)), keyring.mac);
  assert.deepEqual([point.name, point.barrier], ["before the move", barrier]);
});
