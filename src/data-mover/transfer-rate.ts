/** Bytes per second over the last few seconds, for people: no decision hangs on it. */
export interface TransferRate {
  add(bytes: number, atMs: number): void;
  perSecond(atMs: number): number;
}

const WINDOW_MS = 10_000;
const SLOT_MS = 500;

/** All times on one monotonic clock. */
export function createTransferRate(): TransferRate {
  let slots: { readonly startMs: number; bytes: number }[] = [];
  return {
    add(bytes, atMs) {
      const last = slots.at(-1);
      if (last && atMs - last.startMs < SLOT_MS) last.bytes += bytes;
      else slots.push({ startMs: atMs, bytes });
    },
    perSecond(atMs) {
      slots = slots.filter((slot) => slot.startMs > atMs - WINDOW_MS);
      const first = slots[0];
      if (!first) return 0;
      const bytes = slots.reduce((sum, slot) => sum + slot.bytes, 0);
      return Math.round(bytes / (Math.max(atMs - first.startMs, SLOT_MS) / 1000));
    },
  };
}
