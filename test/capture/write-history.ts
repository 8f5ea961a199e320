/**
 * Writers over several disks, a record of what they did in real time, and the judge of a point.
 *
 * Time is a counter: it ticks when a write is issued and when its acknowledgement arrives. A *point* is a state of all disks. What it shows of
 * each sector says which writes are in it and which are not. It is consistent when no write that is in it was issued after one
 * that is not in it had been acknowledged: then a machine that had died at that moment could have left exactly these disks.
 *
 * Every sector says which write it belongs to, and where it lies, so no sector can pass for another. Writers never have two writes
 * of one sector in flight (their order would not be known), but share blocks of 4 KiB all the time.
 */
import assert from "node:assert/strict";

export const SECTOR = 512;

export interface HistoryDisk {
  readonly sectors: number;
  write(data: Buffer, offset: number, fua: boolean): Promise<void>;
  zero(offset: number, length: number): Promise<void>;
  trim(offset: number, length: number): Promise<void>;
  flush(): Promise<void>;
}

interface Change {
  readonly id: number;
  readonly issuedAt: number;
  ackedAt: number;
  readonly zero: boolean;
}

export interface History {
  /** The time now. */
  now(): number;
  /** What the disks hold before the first write. */
  initial(disk: number): Buffer;
  /** Runs `writers` until `stop` settles and all of them are done. */
  run(disks: readonly HistoryDisk[], writers: number, stop: Promise<unknown>): Promise<void>;
  /**
   * Throws unless `images` are consistent. With bounds: everything acknowledged before `after` is in it, nothing issued after `before` is.
   * With `torn`, a write that was not acknowledged may be there in part, as after a power cut.
   */
  judge(images: readonly Buffer[], bounds: { readonly after: number; readonly before: number }, torn?: boolean): void;
  readonly changes: number;
}

export function createHistory(diskSectors: readonly number[], random: () => number): History {
  let clock = 0;
  let lastId = 0;
  // Per disk and sector: what was done to it, in order.
  const perSector: Change[][][] = diskSectors.map((sectors) => Array.from({ length: sectors }, () => []));
  const busy = diskSectors.map(() => new Set<number>());
  const integer = (below: number): number => Math.floor(random() * below);

  function stamp(disk: number, sector: number, id: number): Buffer {
    const bytes = Buffer.alloc(SECTOR);
    for (let at = 0; at < SECTOR; at += 16) {
      bytes.writeUInt32LE(id + 1, at);
      bytes.writeUInt32LE(sector, at + 4);
      bytes.writeUInt32LE(disk + 0x5eed, at + 8);
      bytes.writeUInt32LE((Math.imul(id + 1, 2654435761) ^ Math.imul(sector + at, 40503)) >>> 0, at + 12);
    }
    return bytes;
  }

  async function step(disks: readonly HistoryDisk[]): Promise<void> {
    const disk = integer(disks.length);
    const total = diskSectors[disk]!;
    const dice = random();
    if (dice < 0.03) return disks[disk]!.flush();
    // Many writes go to a hot tenth, so that open cuts are overwritten, and many of these to six blocks, so that they meet there.
    const place = random();
    const length = place < 0.25 ? 1 + integer(4) : dice < 0.1 ? 1 + integer(200) : 1 + integer(16);
    const start = Math.min(integer(place < 0.25 ? 48 : place < 0.5 ? Math.ceil(total / 10) : total), total - length);
    const sectors = Array.from({ length }, (_, index) => start + index);
    if (start < 0 || sectors.some((sector) => busy[disk]!.has(sector))) return;
    // Small ones: an image leaves the contents alone then, so there is nothing to record.
    if (dice > 0.98) return disks[disk]!.trim(start * SECTOR, length * SECTOR);
    const zero = dice > 0.9 && sectors.every((sector) => perSector[disk]![sector]!.at(-1)?.zero !== true);
    const change: Change = { id: ++lastId, issuedAt: ++clock, ackedAt: Number.POSITIVE_INFINITY, zero };
    for (const sector of sectors) {
      busy[disk]!.add(sector);
      perSector[disk]![sector]!.push(change);
    }
    if (zero) await disks[disk]!.zero(start * SECTOR, length * SECTOR);
    else
      await disks[disk]!.write(
        Buffer.concat(sectors.map((sector) => stamp(disk, sector, change.id))),
        start * SECTOR,
        dice < 0.15,
      );
    change.ackedAt = ++clock;
    for (const sector of sectors) busy[disk]!.delete(sector);
  }

  return {
    now: () => ++clock,
    initial: (disk) => Buffer.concat(Array.from({ length: diskSectors[disk]! }, (_, sector) => stamp(disk, sector, 0))),
    get changes() {
      return lastId;
    },
    async run(disks, writers, stop) {
      let stopped = false;
      void stop.finally(() => (stopped = true));
      await Promise.all(
        Array.from({ length: writers }, async () => {
          while (!stopped) {
            await step(disks);
            if (random() < 0.2) await new Promise((resolve) => setTimeout(resolve, integer(3)));
          }
        }),
      );
    },
    judge(images, bounds, torn = false) {
      const included = new Set<Change>();
      const excluded = new Set<Change>();
      for (const [disk, image] of images.entries()) {
        for (const [sector, changes] of perSector[disk]!.entries()) {
          const bytes = image.subarray(sector * SECTOR, (sector + 1) * SECTOR);
          const id = bytes.readUInt32LE(0) - 1;
          const candidates =
            id === -1 ? zeroedHere(changes, bounds) : [changes.findIndex((change) => change.id === id)];
          if (candidates.length > 1) continue; // Zeroed twice around the cut: the sector does not say which it shows.
          const shown = candidates[0] ?? -1;
          if (id === -1)
            assert.ok(
              shown !== -1 && bytes.every((byte) => byte === 0),
              `disk ${disk}, sector ${sector}: zeroes that nobody wrote`,
            );
          else {
            assert.ok(id === 0 || shown !== -1, `disk ${disk}, sector ${sector}: write ${id} was never made here`);
            assert.deepEqual(bytes, stamp(disk, sector, id), `disk ${disk}, sector ${sector}: damaged`);
          }
          for (const [index, change] of changes.entries()) (index <= shown ? included : excluded).add(change);
        }
      }
      let latest: Change | undefined;
      for (const change of included) {
        assert.ok(torn || !excluded.has(change), `write ${change.id} is in the point in part`);
        assert.ok(change.issuedAt < bounds.before, `write ${change.id} was issued after the cut and is in it`);
        if (latest === undefined || change.issuedAt > latest.issuedAt) latest = change;
      }
      for (const change of excluded) {
        assert.ok(change.ackedAt > bounds.after, `write ${change.id} was acknowledged before the cut and is not in it`);
        assert.ok(
          latest === undefined || change.ackedAt > latest.issuedAt,
          `write ${latest?.id} was issued after ${change.id} was acknowledged, and only it is in the point`,
        );
      }
    },
  };
}

/** The times a sector was zeroed that a point with these bounds may show. */
function zeroedHere(changes: readonly Change[], bounds: { readonly after: number; readonly before: number }): number[] {
  return [...changes.keys()].filter((index) => {
    const following = changes[index + 1];
    return (
      changes[index]!.zero &&
      changes[index]!.issuedAt < bounds.before &&
      (following === undefined || following.ackedAt > bounds.after)
    );
  });
}
