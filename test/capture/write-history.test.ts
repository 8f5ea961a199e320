/** The judge must be able to say no: states that no machine could have left are given to it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { seededRandom } from "./seeded-random.ts";
import { createHistory, SECTOR } from "./write-history.ts";
import type { History, HistoryDisk } from "./write-history.ts";

const SECTORS = [600, 400];

/** Disks that do at once what they are told, so that their contents at any time are a consistent point. */
async function makeHistory(): Promise<{ history: History; snapshots: { at: number; images: Buffer[] }[] }> {
  const history = createHistory(SECTORS, seededRandom(11));
  const images = SECTORS.map((_, disk) => history.initial(disk));
  const snapshots: { at: number; images: Buffer[] }[] = [];
  let changes = 0;
  const stop = Promise.withResolvers<void>();
  const disks = images.map((image): HistoryDisk => {
    const change = async (action: () => void): Promise<void> => {
      await new Promise((resolve) => setImmediate(resolve));
      action();
      if (++changes % 100 === 0) snapshots.push({ at: history.now(), images: images.map((one) => Buffer.from(one)) });
      if (changes === 1200) stop.resolve();
      await new Promise((resolve) => setImmediate(resolve));
    };
    return {
      sectors: image.length / SECTOR,
      write: (data, offset) => change(() => image.set(data, offset)),
      zero: (offset, length) => change(() => void image.fill(0, offset, offset + length)),
      trim: () => Promise.resolve(),
      flush: () => Promise.resolve(),
    };
  });
  await history.run(disks, 6, stop.promise);
  return { history, snapshots };
}

const anyTime = { after: 0, before: Number.POSITIVE_INFINITY };

test("what the disks held at one moment is a point, with and without bounds", async () => {
  const { history, snapshots } = await makeHistory();
  for (const { at, images } of snapshots) {
    history.judge(images, anyTime);
    history.judge(images, { after: at, before: at });
  }
});

test("two disks of two moments, a torn write, a lost one and a damaged sector are none", async () => {
  const { history, snapshots } = await makeHistory();
  const [early, late] = [snapshots[2]!, snapshots[8]!];
  assert.throws(() => history.judge([early.images[0]!, late.images[1]!], anyTime));
  assert.throws(() => history.judge([late.images[0]!, early.images[1]!], anyTime));
  assert.throws(() => history.judge(early.images, { after: late.at, before: late.at + 1 }));
  assert.throws(() => history.judge(late.images, { after: 0, before: early.at }));
  const damaged = late.images.map((image) => Buffer.from(image));
  damaged[0]![100] = damaged[0]![100]! ^ 1;
  assert.throws(() => history.judge(damaged, anyTime));
  const swapped = late.images.map((image) => Buffer.from(image));
  late.images[0]!.copy(swapped[0]!, 0, SECTOR, 2 * SECTOR);
  late.images[0]!.copy(swapped[0]!, SECTOR, 0, SECTOR);
  assert.throws(() => history.judge(swapped, anyTime));
  const half = late.images.map((image) => Buffer.from(image));
  early.images[0]!.copy(half[0]!, 0, 0, 300 * SECTOR);
  assert.throws(() => history.judge(half, anyTime));
});
