/**
 * The commits of a branch's line laid over each other, from its start or from an anchor on, up to a position.
 *
 * Source: docs/format.md, "Reading a disk".
 */
import { type ExtentMap, overlayStack, SOURCE_LIMIT } from "#model/extent-map.ts";
import type { CommitIndex } from "#model/format/commit-index.ts";
import { digestBytesOf } from "#model/format/frame-directory.ts";
import { parseContainerId } from "#model/format/header.ts";
import type { Anchor } from "#model/format/manifest.ts";
import type { ShardContainer } from "#model/format/map-shard.ts";
import { readBranch } from "./branch-reader.ts";
import { openHead, readIndex } from "./container-reader.ts";
import { advance, type Tail } from "./counting.ts";
import type { DiskContext } from "./disk-context.ts";
import type { ContainerPlace } from "./image-container.ts";
import type { MapAccess } from "./map-access.ts";

export interface ImagePosition {
  readonly branch: string;
  /** 0: the branch's start. */
  readonly seq: number;
  /** 32 hex digits, as a barrier names it. Without, whatever commit has that number. */
  readonly commitHash?: string;
}

export interface Replay {
  /** `source` counts `places`. */
  readonly extents: ExtentMap;
  readonly places: readonly ContainerPlace[];
  /** The last commit that was read; undefined when there was none. */
  readonly last: (Tail & { readonly branch: string }) | undefined;
  /** Of the newest commit with data, or of the base. Undefined: no commit with data. */
  readonly shape: { readonly sizeBytes: number; readonly sectorBytes: number; readonly cutAtMs: number } | undefined;
  /** A commit gives the disk another size than the one before it. */
  readonly resized: boolean;
  /** It ended at `limits`, and not because the position was reached. */
  readonly limited: boolean;
}

export interface ReplayLimits {
  readonly commits: number;
  /** Of all commits together; each costs some 34 bytes of memory with its frame. */
  readonly extents: number;
}

/**
 * `base` must lie on the line: its commits and those before are not read. `limits` end the replay at the first commit that reaches them.
 *
 * Throws: CHAIN_BROKEN (also when the line does not lead from `base` to the position), OBJECT_CORRUPT, OBJECT_MISSING, NOT_FOUND (branch),
 *         FORMAT_UNSUPPORTED, KEY_…, STORE_….
 */
export async function replayLine(
  access: MapAccess,
  position: ImagePosition,
  options: { readonly base?: Anchor | undefined; readonly limits?: ReplayLimits } = {},
): Promise<Replay> {
  const { keyring } = access;
  const { base, limits } = options;
  const disk = startingAt(access.disk, base);
  const maps = overlayStack();
  const places: ContainerPlace[] = [];
  let shape: Replay["shape"] = base;
  let last: Replay["last"];
  let resized = false;
  let commits = 0;
  let extentCount = 0;
  const ended = (limited: boolean): Replay => ({ extents: maps.finish(), places, last, shape, resized, limited });

  for await (const commit of readBranch(disk, position.branch, position)) {
    const { branch, seq } = commit.header;
    const before = last?.branch === branch ? last : base?.branch === branch ? base : beginningOf(commit.header.chain);
    last = { ...advance(before, commit.header), branch };
    if (commit.header.kind !== "fence") {
      const head = openHead(commit.prefix, keyring);
      if ("needBytes" in head) throw new RangeError("A commit is yielded with its whole index");
      const index = readIndex(head);
      const first = places.length;
      places.push(...placesOf(disk, { branch, seq, ...head, key: commit.key }, index));
      const { extents } = index;
      for (let run = 0; run < extents.count; run++)
        if (extents.source[run]! < SOURCE_LIMIT) extents.source[run]! += first;
      maps.add(extents);
      const { diskSizeBytes, sectorBytes, cutMs } = head.header;
      resized ||= shape !== undefined && shape.sizeBytes !== diskSizeBytes;
      shape = { sizeBytes: diskSizeBytes, sectorBytes, cutAtMs: cutMs };
      extentCount += extents.count;
    }
    commits++;
    if (limits && shape && (commits >= limits.commits || extentCount >= limits.extents)) return ended(true);
  }
  return ended(false);
}

/**
 * The disk as if its history had been collected up to `base`, and nowhere else: a floor says that commits need not be read, and not what they left on
 * the disk. Where they are gone, and no anchor says that, there is a hole.
 */
function startingAt({ checkpoint: _, ...disk }: DiskContext, base: Anchor | undefined): DiskContext {
  if (base === undefined) return disk;
  return { ...disk, checkpoint: async (branch) => (branch === base.branch ? base : undefined) };
}

/** Seq 0 of a branch whose first commit has `chain`. */
function beginningOf(chain: string): Tail {
  const start = { epoch: 0, seq: 0, commitHash: chain };
  return { ...start, data: { ...start, cycle: 0, cutAtMs: 0, writerId: "" } };
}

/** The commit's own object, then its segments, in the order of their ordinals. */
function placesOf(
  disk: DiskContext,
  commit: {
    readonly branch: string;
    readonly seq: number;
    readonly key: string;
    readonly headSha256: Uint8Array;
    readonly header: {
      readonly containerId: string;
      readonly salt: Uint8Array;
      readonly dataKeyId: string;
      readonly indexBytes: number;
    };
  },
  index: CommitIndex,
): ContainerPlace[] {
  const { branch, seq, headSha256 } = commit;
  const { containerId, salt, dataKeyId, indexBytes } = commit.header;
  const own = { containerId, headSha256, salt, dataKeyId, indexBytes, commit: { branch, seq } };
  return [own, ...index.segments].map((container, ordinal) => {
    const directory = index.directories[ordinal]!;
    return { ...container, digestBytes: digestBytesOf(directory), key: containerKey(disk, container), directory };
  });
}

/** Where a container lies. */
export function containerKey(
  disk: Pick<DiskContext, "names">,
  { containerId, commit }: Pick<ShardContainer, "containerId" | "commit">,
): string {
  if (commit !== undefined) return disk.names.commit(commit.branch, commit.seq);
  const { term, counter } = parseContainerId(containerId)!; // The decoders let only such ids pass.
  return disk.names.segment(term, counter);
}
