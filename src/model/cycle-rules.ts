/**
 * What a cycle is worth, and what must happen to open cycles when the target has been asked how far it is. Pure: the process server obeys.
 *
 * A cycle is what happened between two cuts. Its commit holds what the sweep read during it and, over that, what the cut's block set names.
 *
 * - A cycle is a *point* only if nothing was swept in it, nothing was left to sweep at its cut, and every tap's tracker lived through it: then
 *   the image after its commit is the source at its cut.
 * - Open cycles are committed in order or not at all: giving one up means giving up every later one.
 */
export interface TrackedDisk {
  readonly diskId: string;
  readonly remainingBytes: number;
  readonly tracker: { readonly bootId: string; readonly generation: number };
}

/** `before`: as the cycle's cut was prepared. `after`: right after its release. */
export function isPoint(before: readonly TrackedDisk[], after: readonly TrackedDisk[], swept: boolean): boolean {
  if (swept || after.length === 0 || before.length !== after.length) return false;
  return after.every((disk) => {
    const earlier = before.find((one) => one.diskId === disk.diskId);
    return disk.remainingBytes === 0 && earlier?.remainingBytes === 0 && sameTracker(earlier, disk);
  });
}

export function sameTracker(a: TrackedDisk, b: TrackedDisk): boolean {
  return a.tracker.bootId === b.tracker.bootId && a.tracker.generation === b.tracker.generation;
}

export interface OpenCycle {
  readonly cycle: number;
  /** Its commit was asked for: it may have happened without our hearing of it. */
  readonly commitSent: boolean;
  /** Disks with records of it, and whether those records can be sent once more. */
  readonly disks: readonly { readonly diskId: string; readonly resendable: boolean }[];
}

export interface Reconciliation {
  /** Give up this cycle and all later ones; undefined: none. */
  readonly giveUpFrom: number | undefined;
  /** Someone else has written meanwhile: nothing we remember of the stream holds. */
  readonly foreign: boolean;
  /** The target lacks what it had acknowledged: these disks must be compared as a whole. */
  readonly behind: readonly string[];
}

/** The last cycle that the store has of a disk. `ours`: its commit was written for this life of this process server. */
export interface StoredTail {
  readonly cycle: number;
  readonly ours: boolean;
}

/**
 * After a stream was opened.
 *
 * `highest`: the highest number in the store. `lastNumber`: the highest we gave out. `known`: per disk the tail as we last knew it; a lower bound.
 *
 * A number alone does not say whose a commit is: a process server that was cut off, or whose files are an old copy, gives the same one again.
 */
export function reconcile(
  open: readonly OpenCycle[],
  target: { readonly highest: number; readonly tails: ReadonlyMap<string, StoredTail> },
  ours: { readonly lastNumber: number; readonly known: ReadonlyMap<string, number> },
): Reconciliation {
  const stored = (diskId: string): number => target.tails.get(diskId)?.cycle ?? 0;
  const behind = [...ours.known].filter(([diskId, cycle]) => stored(diskId) < cycle).map(([diskId]) => diskId);
  const committable = new Set(open.filter((cycle) => cycle.commitSent).map((cycle) => cycle.cycle));
  const foreign =
    target.highest > ours.lastNumber ||
    [...target.tails].some(
      ([diskId, tail]) =>
        ours.known.has(diskId) &&
        tail.cycle > (ours.known.get(diskId) ?? 0) &&
        !(tail.ours && committable.has(tail.cycle)),
    );
  if (foreign || behind.length > 0) return { giveUpFrom: open[0]?.cycle, foreign, behind };
  const lost = open.find((cycle) => cycle.disks.some((disk) => !disk.resendable && stored(disk.diskId) < cycle.cycle));
  return { giveUpFrom: lost?.cycle, foreign, behind };
}
