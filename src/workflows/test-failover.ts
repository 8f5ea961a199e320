/**
 * Test failover: a point on a throw-away overlay, machines in an isolated network, a lease, and nothing left behind.
 *
 * Invariants:
 * - replication never notices: no fence, no order, no commit;
 * - the janitor is started before anything is created, and released only when everything is gone;
 * - it ends by the clean-up command, at the end of the lease, by cancellation, or because a real failover wants the room: whichever is
 *   first, and always through the same clean-up;
 * - running means step "lease" is running and `machines` says where they answer.
 */
import { CancellationScope, condition, isCancellation, setHandler } from "@temporalio/workflow";
import { duration } from "#model/health.ts";
import { MOVE_STEPS } from "#model/move-steps.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOfOperation, faultOf } from "./failures.ts";
import { startGuard, type Guard } from "./guard.ts";
import type { OperationState, ProtectedMachine } from "./messages.ts";
import { reporter, reportEnd } from "./operation-view.ts";
import { awaitAnswers, createMachines, startMachines, type BootPlan } from "./replica-machines.ts";
import { runOperation, type Runbook } from "./runbook.ts";
import { cleanUp } from "./signals.ts";
import { timestamp, now } from "./workflow-time.ts";

const ANSWER_MS = 180_000;
/** How long this workflow tries to clean up before it reports failure; the janitor goes on. */
const CLEAN_UP_MS = 60_000;

export interface TestFailoverInput {
  readonly groupId: string;
  readonly groupName: string;
  readonly operationId: string;
  readonly workflowId: string;
  readonly by: string;
  readonly point: string;
  readonly leaseMs: number;
  readonly site: string;
  /** The line that points are chosen on. */
  readonly branch?: string;
  readonly machines: readonly ProtectedMachine[];
  readonly answerMs?: number;
}

export async function testFailover(input: TestFailoverInput): Promise<OperationState> {
  const ending: Ending = { reason: undefined, awaited: false };
  const body = new CancellationScope();
  setHandler(cleanUp, ({ reason }) => {
    ending.reason ??= reason;
    // In the lease it is awaited. Before that the set-up is cut short.
    if (!ending.awaited) body.cancel();
  });
  let guard: Guard | undefined;
  const { operation, notUndone } = await runOperation(
    {
      operationId: input.operationId,
      kind: "testFailover",
      workflowId: input.workflowId,
      groupId: input.groupId,
      by: input.by,
    },
    MOVE_STEPS["test-failover"],
    reporter(input.groupId, `${input.groupName}: test failover at ${input.site}`),
    async (run) => {
      guard = await run.step(
        "guard",
        async () =>
          await startGuard({
            groupId: input.groupId,
            groupName: input.groupName,
            site: input.site,
            operationId: input.operationId,
          }),
      );
      run.undo("clean up", async () => await removeAll(input));
      try {
        await body.run(async () => await bringUpAndWait(input, run, ending));
      } catch (error) {
        // Ended on request, at whatever step: that is the ordinary way. A cancellation of the whole workflow goes the other way.
        if (!(isCancellation(error) && ending.reason !== undefined)) throw error;
      }
      await run.step("clean up", async (note) => {
        note(ending.reason ?? "the lease has ended");
        await CancellationScope.nonCancellable(async () => await removeAll(input));
      });
      run.keep();
    },
  );
  const cleanupFailed = notUndone.length > 0;
  if (!cleanupFailed) await guard?.release();
  await reportEnd(input.groupId, { operation, test: { cleanupFailed } });
  if (operation.state !== "done") throw failureOfOperation(operation);
  return operation;
}

interface Ending {
  reason: string | undefined;
  awaited: boolean;
}

async function bringUpAndWait(input: TestFailoverInput, run: Runbook, ending: Ending): Promise<void> {
  const { groupId, operationId, site } = input;
  const plan: BootPlan = { site, operationId, machines: input.machines, mode: "isolated", priority: PRIORITY.test };
  const at = { at: site, priority: PRIORITY.test };
  const point = await run.step("choose point", async (note) => {
    const chosen = await act(
      "choosePoint",
      {
        site,
        groupId,
        selector: input.point,
        ...(input.branch === undefined ? {} : { branch: input.branch }),
      },
      { ...at, summary: `choose point ${input.point}`, budgetMs: 30_000 },
    );
    note(`barrier ${chosen.barrier}, ${chosen.consistency}-consistent`);
    run.set({ pointId: chosen.id, pointCutAtMs: chosen.cutAtMs });
    return chosen;
  });
  const opened = await run.step("open disks", async (note) => {
    const status = await act(
      "openExport",
      { site, groupId, operationId, point: point.id, mode: "throw-away" },
      { ...at, summary: "open the disks on a throw-away overlay" },
    );
    note(`${status.disks.length} disks`);
    return status;
  });
  const created = await run.step("create machines", async () => await createMachines(plan, opened.disks));
  const booted = await run.step("start machines", async (note) => {
    const result = await startMachines(plan, created, opened.disks);
    const [first] = result.failed;
    // A drill that brings up only a part has found something: it fails, and says what.
    if (first !== undefined) throw first.fault;
    note(`${result.machines.length} started`);
    return result;
  });
  run.set({ machines: booted.machines });
  await run.step(
    "verify",
    async (note) => {
      try {
        note((await awaitAnswers(plan, booted.machines, input.answerMs ?? ANSWER_MS)).detail);
      } catch (error) {
        if (isCancellation(error)) throw error;
        // They run: somebody may want to look at them before the lease ends.
        note(`not known: ${faultOf(error).message}`);
      }
    },
    { waitsFor: "the machines to answer", budgetMs: input.answerMs ?? ANSWER_MS },
  );
  await run.step(
    "lease",
    async (note) => {
      note(`until ${timestamp(now() + input.leaseMs)}`);
      ending.awaited = true;
      await condition(() => ending.reason !== undefined, input.leaseMs, {
        summary: `lease of ${duration(input.leaseMs)}`,
      });
    },
    {
      waitsFor: `clean-up ("leeward test-failover cleanup ${input.groupName}") or the end of the lease`,
      budgetMs: input.leaseMs,
    },
  );
}

async function removeAll(input: TestFailoverInput): Promise<void> {
  await act(
    "removeOperation",
    { site: input.site, operationId: input.operationId, discard: true },
    {
      at: input.site,
      summary: "remove machines and disks of the test",
      budgetMs: CLEAN_UP_MS,
      priority: PRIORITY.test,
    },
  );
}
