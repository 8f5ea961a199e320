import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import { openOverlay, overlayBudget, type OverlayOptions } from "../../src/data-mover/overlay.ts";

const SIZE = 61 * BLOCK_SIZE + 1536;

/** Every 8 bytes of the image say where they are. */
function pattern(offset: number, length: number, salt: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let index = 0; index < length; index++)
    bytes[index] = ((offset + index) * 31 + ((offset + index) >>> 8) * 7 + salt * 101 + 1) & 0xff;
  return bytes;
}

function imageBelow(random: () => number): BlockDevice & { readonly content: Uint8Array } {
  const content = pattern(0, SIZE, 0);
  return {
    content,
    sizeBytes: SIZE,
    preferredBlockBytes: BLOCK_SIZE,
    readOnly: true,
    async read(target, offset) {
      if (random() < 0.5) await new Promise((resolve) => setTimeout(resolve, random() * 3));
      target.set(content.subarray(offset, offset + target.length));
    },
    write: () => assert.fail("the image below is never written"),
    flush: () => undefined,
    zero: () => assert.fail("the image below is never zeroed"),
    trim: () => assert.fail("the image below is never trimmed"),
    close: async () => undefined,
  };
}

function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

async function inFolder(work: (options: OverlayOptions) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "leeward-overlay-"));
  try {
    await work({ folder, name: "disk", budget: overlayBudget(1 << 30), bootId: "boot-1" });
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function contentOf(device: BlockDevice): Promise<Uint8Array> {
  const content = new Uint8Array(SIZE);
  await device.read(content, 0);
  return content;
}

test("An overlay equals a flat array under random writes, zeroes and restarts, whole blocks or not", async () => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = seeded(seed);
    await inFolder(async (options) => {
      const below = imageBelow(random);
      const expected = below.content.slice();
      let overlay = openOverlay(below, options);
      for (let step = 0; step < 60; step++) {
        const offset = Math.floor(random() * SIZE);
        const whole = random() < 0.4;
        const start = whole ? Math.floor(offset / BLOCK_SIZE) * BLOCK_SIZE : offset;
        const length = Math.min(
          SIZE - start,
          whole ? BLOCK_SIZE * (1 + Math.floor(random() * 8)) : 1 + Math.floor(random() * 20_000),
        );
        const kind = random();
        if (kind < 0.55) {
          const data = pattern(start, length, seed * 1000 + step);
          expected.set(data, start);
          await overlay.write(data, start, { fua: random() < 0.1 });
        } else if (kind < 0.75) {
          expected.fill(0, start, start + length);
          await overlay.zero(start, length);
        } else if (kind < 0.8) {
          await overlay.flush();
        } else if (kind < 0.87) {
          overlay = openOverlay(below, options); // As after kill -9: the old one was never closed.
        } else {
          const seen = new Uint8Array(length);
          await overlay.read(seen, start);
          assert.deepEqual(seen, expected.subarray(start, start + length), `seed ${seed}, step ${step}`);
        }
      }
      assert.deepEqual(await contentOf(overlay), expected, `seed ${seed}`);
      const covered = (await overlay.status?.(0, SIZE)) ?? [];
      assert.equal(
        covered.reduce((sum, run) => sum + run.length, 0),
        SIZE,
      );
      await overlay.close();
    });
  }
});

test("Writes that share an absent block beside each other all land", async () => {
  await inFolder(async (options) => {
    const below = imageBelow(seeded(5));
    const expected = below.content.slice();
    const overlay = openOverlay(below, options);
    const writes: (void | Promise<void>)[] = [];
    for (let part = 0; part < 64; part++) {
      const offset = 3 * BLOCK_SIZE + part * 256 + 100;
      const data = pattern(offset, 156, 900 + part);
      expected.set(data, offset);
      writes.push(overlay.write(data, offset));
    }
    expected.fill(7, 5 * BLOCK_SIZE, 6 * BLOCK_SIZE); // A whole block, behind the partial ones in line.
    writes.push(overlay.write(new Uint8Array(BLOCK_SIZE).fill(7), 5 * BLOCK_SIZE));
    await Promise.all(writes);
    assert.deepEqual(await contentOf(overlay), expected);
    await overlay.close();
  });
});

test("After a power loss everything flushed is there, and nothing that was not becomes garbage", async () => {
  await inFolder(async (options) => {
    const below = imageBelow(() => 1);
    const overlay = openOverlay(below, options);
    const flushed = pattern(0, 5 * BLOCK_SIZE, 11);
    await overlay.write(flushed, 2 * BLOCK_SIZE);
    await overlay.flush();
    await overlay.write(pattern(0, BLOCK_SIZE, 12), 40 * BLOCK_SIZE); // Never flushed: its state is not on the disk.
    const again = openOverlay(below, { ...options, bootId: "boot-2" });
    const expected = below.content.slice();
    expected.set(flushed, 2 * BLOCK_SIZE);
    assert.deepEqual(await contentOf(again), expected);
    await again.close();
  });
});

test("A full overlay refuses with OVERLAY_FULL, and rewriting what it holds still works", async () => {
  await inFolder(async (options) => {
    const below = imageBelow(() => 1);
    const overlay = openOverlay(below, { ...options, budget: overlayBudget(8 * BLOCK_SIZE) });
    await overlay.write(pattern(0, 8 * BLOCK_SIZE, 1), 0);
    await assert.rejects(
      async () => overlay.write(pattern(0, BLOCK_SIZE, 2), 20 * BLOCK_SIZE),
      (error) => isFault(error, "OVERLAY_FULL"),
    );
    await overlay.write(pattern(0, 8 * BLOCK_SIZE, 3), 0);
    await overlay.zero(30 * BLOCK_SIZE, 10 * BLOCK_SIZE); // Zeroes need no space.
    const seen = new Uint8Array(8 * BLOCK_SIZE);
    await overlay.read(seen, 0);
    assert.deepEqual(seen, pattern(0, 8 * BLOCK_SIZE, 3));
    await overlay.close();
  });
});
