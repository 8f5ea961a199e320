/**
 * The move that a failed-over group makes by itself when nobody has decided in time: commit or undo, as the failover was told.
 *
 * It is tried once. An undo that is refused then (its source is not there) stands among the operations as failed, and a person decides
 * after all. Any move that a person makes before takes its place.
 */
import { CancellationScope } from "@temporalio/workflow";
import { refusalOf } from "#model/group-phase.ts";
import { faultOf } from "./failures.ts";
import { beginUndo, commitFailover } from "./group-moves.ts";
import { factsOf, putOperation, type GroupRecord } from "./group-record.ts";
import { beginMove, refused, type Group } from "./group-updates.ts";
import { groupWorkflowId } from "./messages.ts";
import { begun } from "./operation-view.ts";
import { assertSourceAnswers } from "./undo.ts";
import { now } from "./workflow-time.ts";

export function isDue({ replica }: GroupRecord): boolean {
  return replica?.due !== undefined && now() >= replica.due.atMs;
}

/** Not under the cancellation of the turn: beginning a move ends the turn. */
export async function moveByItself(group: Group): Promise<void> {
  const { record } = group;
  if (record.replica?.due === undefined) throw new RangeError("Nothing is due");
  const { due, ...replica } = record.replica;
  record.replica = replica;
  const { move } = due;
  const request = { operationId: `${replica.operationId}.${move}`, by: "timer", note: "nobody decided in time" };
  const workflowId = groupWorkflowId(record.groupId);
  await CancellationScope.nonCancellable(async () => {
    try {
      if (move === "undo") await assertSourceAnswers({ ...record, groupName: record.name });
      const refusal = refusalOf(factsOf(record), move);
      if (refusal !== undefined) throw refused(record, refusal);
      if (move === "commit") commitFailover(record, request, workflowId);
      else
        await beginMove(group, request, "undo", async (child, lost) => await beginUndo(record, request, child, lost));
    } catch (error) {
      const { details: _details, ...fault } = faultOf(error).toJSON();
      const { waitsFor: _waitsFor, ...operation } = begun(record, request, move, workflowId);
      putOperation(record, { ...operation, state: "failed", endedAtMs: now(), fault });
    }
  });
  group.show();
}
