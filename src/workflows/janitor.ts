/**
 * Guaranteed clean-up. A janitor is started before an operation creates anything, and outlives it (ABANDON): terminate skips every
 * `finally`, a janitor does not.
 *
 * Invariants:
 * - it acts only when the operation's workflow is closed without having released it, or when it was started without one to watch;
 * - it never gives up: what it removes is bounded, and every call is idempotent;
 * - a failover releases it before its first machine starts: from then on the disks hold writes that exist nowhere else, and nobody
 *   removes them but a person.
 */
import {
  CancellationScope,
  getExternalWorkflowHandle,
  isCancellation,
  log,
  setCurrentDetails,
  setHandler,
} from "@temporalio/workflow";
import { act } from "./act.ts";
import { groupWorkflowId } from "./messages.ts";
import { release, resourcesGone } from "./signals.ts";

export interface JanitorInput {
  readonly groupId: string;
  readonly groupName: string;
  readonly site: string;
  readonly operationId: string;
  /** The run to watch; left out: clean up at once. */
  readonly watches?: { readonly workflowId: string; readonly runId: string };
}

export async function janitor(input: JanitorInput): Promise<{ readonly cleaned: boolean }> {
  let released = false;
  const watching = new CancellationScope();
  setHandler(release, () => {
    released = true;
    watching.cancel();
  });
  if (input.watches !== undefined) {
    const { watches } = input;
    setCurrentDetails(
      `Stands by for \`${watches.workflowId}\`. If that ends without saying so, its machines and disks are removed at ${input.site}.`,
    );
    try {
      await watching.run(async () => {
        let closed = false;
        while (!closed)
          ({ closed } = await act("awaitWorkflowEnd", watches, {
            at: input.site,
            summary: `watch ${watches.workflowId}`,
          }));
      });
    } catch (error) {
      // Released: the scope was cancelled by us. Cancelled from outside: clean up, that is what a janitor is for.
      if (!isCancellation(error)) throw error;
    }
    if (released) {
      setCurrentDetails("Released: nothing was left to clean up.");
      return { cleaned: false };
    }
  }
  setCurrentDetails(
    `Removes the machines and disks of operation \`${input.operationId}\` at ${input.site}; tries until it works.`,
  );
  await CancellationScope.nonCancellable(async () => {
    await act(
      "removeOperation",
      { site: input.site, operationId: input.operationId, discard: true },
      { at: input.site, summary: `remove what ${input.operationId} left`, budgetMs: "until-it-works" },
    );
    try {
      await getExternalWorkflowHandle(groupWorkflowId(input.groupId)).signal(resourcesGone, {
        operationId: input.operationId,
        lost: input.watches !== undefined,
      });
    } catch (error) {
      // The group may have ended since; there is nobody left to tell.
      log.warn("The group could not be told of the clean-up", { error: String(error) });
    }
  });
  setCurrentDetails(`Removed the machines and disks of operation \`${input.operationId}\` at ${input.site}.`);
  return { cleaned: true };
}
