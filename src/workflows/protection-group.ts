/**
 * The entity of a protection group: the only writer of its state, for as long as it is protected.
 *
 * ```
 *  protect ─► seeding: runbook, with the initial sync as child
 *               │
 *               ▼
 *  protected: windows of watching, one activity each ◄──┐
 *               │ failover                              │ undone
 *               ▼                                       │
 *  failing over: waits for the report of its child ─────┘
 *               │ booted                                ▲
 *               ▼                                       │ undone
 *  failed over: windows of watching the replica machines ◄──┐
 *               │ undo, change point                        │
 *               ▼                                           │
 *  undoing, changing point: waits for the report of its child
 * ```
 *
 * Invariants:
 * - what a group may do is decided in #model/group-phase.ts, how well it is in #model/health.ts; here is only order and waiting;
 * - it starts a new run when the server suggests it or after 100 windows, only between two windows, only with all handlers finished,
 *   and never while a child of this run must report: while seeding (that child would be terminated) and while it is moved;
 * - a cancellation from outside ends a protect that is still seeding, nothing else: ending protection is "unprotect".
 *
 * Source: docs/orchestration.md.
 */
import {
  allHandlersFinished,
  CancellationScope,
  condition,
  isCancellation,
  log,
  makeContinueAsNewFunc,
  patched,
  setHandler,
  workflowInfo,
  defineQuery,
} from "@temporalio/workflow";
import { CONDITIONS, isMoving } from "#model/group-phase.ts";
import { nextPhase } from "#model/phase-events.ts";
import { adoptedRecord } from "./adopted-group.ts";
import { keepInCatalog } from "./group-catalog.ts";
import { applyEnd, applyLoss, forgetTest } from "./group-children.ts";
import {
  emptyRecord,
  hasCondition,
  operationOf,
  putOperation,
  restoredRecord,
  setCondition,
  stateOf,
  takeProgress,
  type GroupRecord,
} from "./group-record.ts";
import { applyTurned } from "./group-reprotect.ts";
import { handleUpdates, type Group } from "./group-updates.ts";
import { groupMemo, showGroup } from "./group-view.ts";
import { isDue, moveByItself } from "./group-timer.ts";
import { watchProtected, watchReplicaWindow } from "./group-windows.ts";
import { startJanitor } from "./guard.ts";
import { groupWorkflowId, QUERIES, type GroupStart, type GroupState } from "./messages.ts";
import { protectGroup, unprotectGroup, type Asked } from "./group-protect.ts";
import { operationChanged, operationEnded, resourcesGone, syncProgressed, turned } from "./signals.ts";
import { now } from "./workflow-time.ts";

const WINDOWS_PER_RUN = 100;
/** Windows that wait for handlers to finish before new updates are turned away. */
const PATIENCE_WINDOWS = 10;
/** A run that was started without an accepted protect ends after this. */
const UNUSED_MS = 60_000;

export async function protectionGroup(start: GroupStart): Promise<GroupState> {
  const { adopted: _adopted, ...further } = start;
  const { record, leftOver } = beginning(start);
  record.connectGrace = patched("connect-grace");
  let turn = new CancellationScope({ cancellable: true, parent: CancellationScope.current() });
  let waitsFor = "a command to protect";
  const group: Group = {
    record,
    draining: false,
    givingBack: false,
    answerMs: start.limits?.answerMs,
    interrupt: () => turn.cancel(),
    show: () => showGroup(record, waitsFor),
  };
  setHandler(defineQuery<GroupState>(QUERIES.state), () => stateOf(record));
  handleReports(group);
  handleUpdates(group);
  const root = CancellationScope.current();
  root.cancelRequested.catch(() => {
    if (record.phase === "seeding") turn.cancel();
    else log.warn("A group is not cancelled; end its protection with unprotect", { group: record.name });
  });

  // Everything below runs beside a cancellation, not under it: see the invariants.
  return await CancellationScope.nonCancellable(async () => {
    let windows = 0;
    let overdue = 0;
    for (const operationId of leftOver) await removeLeftOver(record, operationId);
    if (record.phase === "unprotected")
      await condition(() => record.phase !== "unprotected", UNUSED_MS, { summary: "wait for the protect request" });
    while (record.phase !== "unprotected") {
      const fresh =
        workflowInfo().continueAsNewSuggested || windows >= (start.limits?.windowsPerRun ?? WINDOWS_PER_RUN);
      if (fresh && mayStartAfresh(record)) {
        // Search attributes go along by themselves, the memo does not.
        if (allHandlersFinished())
          return await makeContinueAsNewFunc<typeof protectionGroup>({ memo: groupMemo(record) })({
            ...further,
            state: record,
          });
        overdue += 1;
        group.draining = overdue > PATIENCE_WINDOWS;
      }
      turn = new CancellationScope();
      waitsFor = describe(record);
      group.show();
      try {
        await turn.run(async () => {
          await keepInCatalog(record);
          await takeTurn(group, start.limits?.windowMs);
        });
      } catch (error) {
        // Interrupted: something changed that the next turn looks at.
        if (!isCancellation(error)) throw error;
      }
      windows += 1;
    }
    // Or the next control plane would take it for a group that is still protected.
    await keepInCatalog(record, { last: true });
    waitsFor = "nothing: its protection has ended";
    group.show();
    await condition(allHandlersFinished);
    return stateOf(record);
  });
}

function beginning(start: GroupStart): { readonly record: GroupRecord; readonly leftOver: readonly string[] } {
  if (start.state !== undefined) return { record: restoredRecord(start.state), leftOver: [] };
  if (start.adopted !== undefined) return adoptedRecord(start.adopted, now());
  return { record: emptyRecord(start.groupId), leftOver: [] };
}

/** Machines and exports of an operation that ended with the control plane before this one. */
async function removeLeftOver(record: GroupRecord, operationId: string): Promise<void> {
  const { groupId, name: groupName, targetSite: site } = record;
  await startJanitor({ groupId, groupName, site, operationId }, `${groupWorkflowId(groupId)}/adopt/${operationId}`);
}

/** One turn of the main loop. An interrupt cancels it at any await; each turn can therefore be taken again. */
async function takeTurn(group: Group, windowMs: number | undefined): Promise<void> {
  const { record } = group;
  if (hasCondition(record, CONDITIONS.unprotecting)) {
    await endProtection(group);
    return;
  }
  switch (record.phase) {
    case "seeding":
      await seed(group);
      return;
    case "protected":
    case "reseeding":
      await watchProtected(group, windowMs);
      return;
    case "failing-over":
    case "changing-point":
    case "undoing": {
      const { phase } = record;
      await condition(() => record.phase !== phase);
      return;
    }
    case "failed-over":
      if (isDue(record)) await moveByItself(group);
      else await watchReplicaWindow(group, windowMs);
      return;
    case "committed":
      await watchReplicaWindow(group, windowMs);
      return;
    case "unprotected":
      return;
  }
}

async function seed(group: Group): Promise<void> {
  const { record } = group;
  const operation = await protectGroup(record, asked(record, "protect"), group.show);
  // Unprotect interrupted it, and everything is undone. The next turn ends the protection itself.
  if (hasCondition(record, CONDITIONS.unprotecting)) return;
  record.phase = nextPhase(record.phase, operation.state === "done" ? "seeded" : "protect-failed");
  group.show();
}

async function endProtection(group: Group): Promise<void> {
  const { record } = group;
  const operation = await unprotectGroup(record, asked(record, "unprotect"), group.show);
  setCondition(record, CONDITIONS.unprotecting, false);
  if (operation.state === "done") record.phase = nextPhase(record.phase, "unprotect");
  else if (record.phase === "seeding") record.phase = nextPhase(record.phase, "protect-failed");
  group.show();
}

/** The running operation of a kind: who asked for it is kept there. */
function asked(record: GroupRecord, kind: "protect" | "unprotect"): Asked {
  const operation = record.operations.findLast((one) => one.kind === kind && one.state === "running");
  if (operation === undefined) throw new RangeError(`No operation "${kind}" is running`);
  return { operationId: operation.operationId, by: operation.by ?? "" };
}

function mayStartAfresh(record: GroupRecord): boolean {
  if (record.phase === "seeding" || isMoving(record.phase)) return false;
  return !hasCondition(record, CONDITIONS.unprotecting) && !hasCondition(record, CONDITIONS.retrying);
}

function describe(record: GroupRecord): string {
  if (hasCondition(record, CONDITIONS.unprotecting)) return "the end of its protection";
  switch (record.phase) {
    case "seeding":
      return "its first recovery point";
    case "protected":
      return hasCondition(record, CONDITIONS.sourceFenced)
        ? "a person: failover again, or resume"
        : "the next cycles, window by window";
    case "reseeding":
      return hasCondition(record, CONDITIONS.sourceFenced)
        ? "a person: failover again, or resume"
        : `the first point of its new state at ${record.targetSite}`;
    case "failing-over":
      return "the report of its failover";
    case "changing-point":
      return "the report of its change of point";
    case "undoing":
      return "the report of its undo";
    case "failed-over":
    case "committed":
      return "what its replica machines write, window by window";
    case "unprotected":
      return "nothing";
  }
}

function handleReports(group: Group): void {
  const { record } = group;
  setHandler(operationChanged, (operation) => {
    // A late report of an operation that has ended, or that nobody remembers.
    if (operationOf(record, operation.operationId)?.state !== "running") return;
    // How it ended is told by `operationEnded`, together with what that means.
    putOperation(record, operation.state === "running" ? operation : { ...operation, state: "running" });
    group.show();
  });
  setHandler(operationEnded, (end) => {
    applyEnd(record, end);
    group.show();
  });
  setHandler(turned, (turn) => {
    applyTurned(record, turn);
    group.show();
    group.interrupt();
  });
  setHandler(resourcesGone, ({ operationId, lost }) => {
    if (lost) applyLoss(record, operationId);
    forgetTest(record, operationId, undefined);
    group.show();
  });
  setHandler(syncProgressed, ({ progress, cursor }) => {
    if (record.phase !== "seeding") return;
    takeProgress(record, progress, cursor, now());
    group.show();
  });
}
