/**
 * Anchors in the background of a disk that is written: every so many commits, or so many extents, they are flattened.
 *
 * Nothing waits for it and nothing depends on it. What fails is said to the log and tried again some commits later; meanwhile opening a cut
 * takes longer. Work that is interrupted leaves objects that nobody names.
 */
import { isFault } from "#model/fault.ts";
import { ANCHOR_LIMITS, makeAnchors } from "./anchor-maker.ts";
import type { ImagePosition, ReplayLimits } from "./line-replay.ts";
import { anchorsOnLine, readNewestManifest } from "./manifests.ts";
import type { MapAccess } from "./map-access.ts";
import type { Slots } from "./segment-upload.ts";

export interface Anchoring {
  /** A commit counts; it has so many extents. Returns at once. */
  committed(position: ImagePosition, extents: number): void;
  /** Settles when nothing is under way; nothing is begun any more. */
  close(): Promise<void>;
}

/** Part of the limits after which a failure is tried again. */
const RETRY_SHARE = 10;

/** `turns`: one of the whole process, for a step holds a few MB. */
export function startAnchoring(
  access: MapAccess,
  options: { readonly turns: Slots; readonly limits?: ReplayLimits },
): Anchoring {
  const limits = options.limits ?? ANCHOR_LIMITS;
  const stop = new AbortController();
  /** Behind the last anchor; undefined until that was looked up. */
  let behind: { commits: number; extents: number } | undefined;
  let newest: ImagePosition | undefined;
  let running: Promise<void> | undefined;

  const lookUp = async ({ branch, seq }: ImagePosition): Promise<{ commits: number; extents: number }> => {
    const { anchors } = await readNewestManifest(access);
    for await (const anchor of anchorsOnLine(access.disk, anchors, { branch, seq }))
      // Of what lies on a parent, only the own branch's part is counted: it is as bounded.
      return { commits: seq - (anchor.branch === branch ? anchor.seq : 0), extents: 0 };
    return { commits: seq, extents: 0 };
  };

  const isDue = (): boolean =>
    behind !== undefined && (behind.commits >= limits.commits || behind.extents >= limits.extents);

  const run = async (): Promise<void> => {
    const free = await options.turns.acquire(stop.signal);
    try {
      behind ??= await lookUp(newest!);
      while (isDue()) {
        const target = newest!;
        const counted = { ...behind };
        const made = await makeAnchors(access, target, { limits, signal: stop.signal });
        for (const { branch, seq, maps } of made)
          access.log?.info("An anchor was made", { disk: access.disk.diskId, branch, seq, shards: maps.length });
        // What came meanwhile stays counted; the rest is less than a step behind.
        behind.commits -= counted.commits;
        behind.extents -= counted.extents;
      }
    } finally {
      free();
    }
  };

  const runSafely = async (): Promise<void> => {
    try {
      await run();
    } catch (error) {
      if (stop.signal.aborted) return;
      if (!isFault(error)) throw error;
      access.log?.warn("No anchor could be made: older cuts take longer to open until one is", {
        disk: access.disk.diskId,
        fault: error.toJSON(),
      });
      behind = { commits: limits.commits - Math.ceil(limits.commits / RETRY_SHARE), extents: 0 };
    }
  };

  return {
    committed(position, extents) {
      if (stop.signal.aborted) return;
      newest = position;
      if (behind !== undefined) {
        behind.commits++;
        behind.extents += extents;
      }
      if (running === undefined && (behind === undefined || isDue()))
        running = runSafely().finally(() => (running = undefined));
    },
    async close() {
      stop.abort();
      await running;
    },
  };
}
