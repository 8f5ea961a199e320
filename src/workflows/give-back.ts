/** The replica goes back to its source, without an undo: nothing has run at the target. */
import { CONDITIONS } from "#model/group-phase.ts";
import { act, PRIORITY } from "./act.ts";
import { orderAnew } from "./group-protect.ts";
import { setCondition } from "./group-record.ts";
import type { Group } from "./group-updates.ts";
import type { Operation } from "./messages.ts";

/** A failover failed after the fence and nothing runs at the target: the source may go on where it was. */
export async function giveBack(group: Group, request: Operation): Promise<void> {
  const { record } = group;
  group.givingBack = true;
  try {
    const back = await act(
      "fence",
      {
        site: record.targetSite,
        groupId: record.groupId,
        operationId: request.operationId,
        activeSite: record.sourceSite,
        resume: record.branch,
      },
      { at: record.targetSite, summary: `give the replica back to ${record.sourceSite}`, priority: PRIORITY.failover },
    );
    record.epoch = back.groupEpoch;
    setCondition(record, CONDITIONS.paused, false);
    await orderAnew(record);
    setCondition(record, CONDITIONS.sourceFenced, false);
  } finally {
    group.givingBack = false;
  }
}
