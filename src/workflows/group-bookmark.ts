/** A bookmark: a cut of its own, kept under a name. The update answers when it is kept. */
import { Fault } from "#model/fault.ts";
import { act } from "./act.ts";
import { putOperation, remember, type GroupRecord } from "./group-record.ts";
import type { Group } from "./group-updates.ts";
import { groupWorkflowId, type BookmarkRequest, type UpdateResults } from "./messages.ts";
import { runOperation } from "./runbook.ts";

const BOOKMARK_MS = 60_000;

export async function bookmark(group: Group, request: BookmarkRequest): Promise<UpdateResults["bookmark"]> {
  const { record } = group;
  const { groupId, sourceSite, targetSite } = record;
  const { operationId, name } = request;
  let point: UpdateResults["bookmark"] | undefined;
  const { operation } = await runOperation(
    { operationId, kind: "bookmark", workflowId: groupWorkflowId(groupId), groupId, by: request.by },
    ["cut", "keep"],
    (state) => {
      putOperation(record, state);
      group.show();
    },
    async (run) => {
      const cut = await run.step(
        "cut",
        async () =>
          await act(
            "cutNow",
            { site: sourceSite, groupId, operationId, timeoutMs: BOOKMARK_MS },
            { at: targetSite, summary: `cut for bookmark ${name}`, budgetMs: BOOKMARK_MS + 10_000 },
          ),
        {
          waitsFor: "a cut to be committed at the target",
          budgetMs: BOOKMARK_MS,
        },
      );
      point = await run.step(
        "keep",
        async () =>
          await act(
            "bookmark",
            { site: targetSite, groupId, operationId, barrier: cut.barrier, name },
            { at: targetSite, summary: `keep barrier ${cut.barrier} as ${name}` },
          ),
      );
    },
  );
  if (point !== undefined) return rememberPoint(record, operationId, point);
  const { code, message, hint } = operation.fault ?? {
    code: "OPERATION_FAILED",
    message: "The bookmark failed",
    hint: undefined,
  };
  throw new Fault(code as Fault["code"], message, hint === undefined ? {} : { hint });
}

/**
 * A point names all its members, so it is remembered only while it is small: the memory of a group must stay bounded. A repeat of a
 * large one asks again, under the same operation id, and finds the same cut and the same bookmark.
 */
function rememberPoint(
  record: GroupRecord,
  operationId: string,
  point: UpdateResults["bookmark"],
): UpdateResults["bookmark"] {
  return point.members.length > 16 ? point : remember(record, operationId, point);
}
