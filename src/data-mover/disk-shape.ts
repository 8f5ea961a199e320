/** How large a disk is, for a position of which no image can be opened because nothing was written by then. */
import { Fault } from "#model/fault.ts";
import { decodeHeader } from "#model/format/header.ts";
import { listSlots, readCommit, readOrigin } from "./branch-reader.ts";
import type { DiskShape } from "./container-codec.ts";
import type { DiskContext } from "./disk-context.ts";

/**
 * Size and sector size as the commit at a position says them; at the start of a branch, as its first commit or that of its parent does. Even a
 * fence says them. Throws NO_POINT when there is no commit at all.
 */
export async function diskShape(
  disk: DiskContext,
  position: { readonly branch: string; readonly seq: number },
): Promise<DiskShape> {
  const floor = (await disk.checkpoint?.(position.branch))?.seq ?? 0;
  // Below the floor there are anchors, and perhaps no commits.
  const kept = await disk.ledger?.anchorAt(position.seq > 0 ? position : { ...position, seq: floor });
  if (kept !== undefined) return { sizeBytes: kept.sizeBytes, sectorBytes: kept.sectorBytes };
  const seq = position.seq > 0 ? position.seq : await firstSlot(disk, position.branch);
  if (seq !== undefined) {
    const { diskSizeBytes, sectorBytes } = decodeHeader((await readCommit(disk, position.branch, seq)).prefix);
    return { sizeBytes: diskSizeBytes, sectorBytes };
  }
  const { parent } = await readOrigin(disk, position.branch);
  if (parent !== undefined) return diskShape(disk, parent);
  throw new Fault("NO_POINT", `Disk "${disk.diskId}" has no commit that says how large it is`, {
    details: { diskId: disk.diskId, branch: position.branch },
    hint: "Wait for the first recovery point of the group.",
  });
}

async function firstSlot(disk: DiskContext, branch: string): Promise<number | undefined> {
  for await (const seq of listSlots(disk, branch, 0)) return seq;
  return undefined;
}
