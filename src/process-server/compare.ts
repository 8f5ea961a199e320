/**
 * The process server's part in comparing a sweep with the replica: it says which disks can be compared, and passes questions on.
 *
 * Invariant: a cycle in which something is compared begins when every cycle before it is committed or given up, and ends with the stream on which it
 * was compared. Why: src/model/comparison.ts. The mover checks the same by itself.
 * Whatever fails here, the blocks are shipped as if there were nothing to compare with.
 */
import { Fault, isFault } from "#model/fault.ts";
import type { JsonValue } from "#model/json.ts";
import type { AgentDisk, SweptDisk } from "#ports/source-link.ts";
import type { ArrivedQuestion } from "./agent-registry.ts";
import type { Cycle } from "./cycle.ts";
import type { GroupContext } from "./group-context.ts";
import type { MoverStream } from "./mover-stream.ts";

/** What an agent is told of a disk that is compared: the stripes that the target has, a bit each, base64. */
export interface ComparedDisk {
  readonly diskId: string;
  readonly stripes: string;
}

/** A new stream says of which disks it has something. */
export function noteStored(group: GroupContext, stream: MoverStream): void {
  group.comparable.clear();
  for (const { diskId, stored } of stream.tails.values()) if (stored === true) group.comparable.add(diskId);
}

/** A disk that was empty at the target when the stream was opened is there once all of it was swept. */
export function noteSynced(group: GroupContext, disks: readonly AgentDisk[]): void {
  for (const { diskId, remainingBytes } of disks) {
    const compares = group.stream?.tails.get(diskId)?.stored !== undefined;
    if (compares && remainingBytes === 0) group.comparable.add(diskId);
  }
}

/** The disks with something to sweep of which the target has something. Empty at an initial sync: nothing is asked then, and nothing waits. */
export function comparable(group: GroupContext, disks: readonly AgentDisk[]): readonly string[] {
  return disks
    .filter(({ diskId, remainingBytes }) => remainingBytes > 0 && group.comparable.has(diskId))
    .map(({ diskId }) => diskId);
}

/** Before the sweep of `cycle`. A disk that cannot be compared is swept without. */
export async function beginCompares(
  group: GroupContext,
  cycle: Cycle,
  disks: readonly AgentDisk[],
): Promise<readonly ComparedDisk[]> {
  const { stream } = group;
  if (stream === undefined || group.cycles[0] !== cycle) return [];
  const begun = await Promise.all(
    comparable(group, disks).map(async (diskId) => {
      const count = cycle.counts.get(diskId);
      if (count === undefined) return [];
      count.compared = true; // Before the mover knows: its answer may be lost.
      try {
        return [{ diskId, stripes: await stream.beginCompare(diskId, cycle.number) }];
      } catch (error) {
        if (!isFault(error)) throw error;
        group.log.warn("A disk is swept without comparing", { diskId, cycle: cycle.number, fault: error });
        // What may pass is tried again in the next cycle; damage and keys would only be met again.
        if (!error.retryable) group.comparable.delete(diskId);
        return [];
      }
    }),
  );
  return begun.flat();
}

/** A lane asks. Throws INTERRUPTED for a cycle that is over, and what the mover throws. */
export async function passQuestion(group: GroupContext, { lane, question }: ArrivedQuestion): Promise<JsonValue> {
  const { current: cycle, stream } = group;
  if (stream === undefined || cycle?.number !== question.cycle || cycle.fault !== undefined)
    throw new Fault("INTERRUPTED", `Cycle ${question.cycle} was given up`);
  if (cycle.counts.get(question.diskId)?.compared !== true)
    throw new Fault("REFUSED", `Disk "${question.diskId}" is not being compared in cycle ${question.cycle}`);
  await group.throttle(question.digests.length, group.stop.signal);
  return stream.compare(lane, question);
}

/** What the sweep of one cycle did, for who watches. */
export function noteSwept(group: GroupContext, disks: readonly SweptDisk[]): void {
  for (const { comparedBytes, sameBytes } of disks) {
    group.syncComparedBytes += comparedBytes;
    group.syncSameBytes += sameBytes;
  }
}
