/**
 * Reprotect: the site that the machines came from becomes the target of what runs at the other one. Read it as the runbook it replaces.
 *
 * ```
 *  old disks ──sweep──► store at their own site ──► a point, kept           nothing crosses the WAN yet
 *  export ──mirror and pivot──► images with taps at the machines' site      the guest does not notice
 *  turn: the store's old writer is fenced, the machines' site may write     from here on there is only forward
 *  what differs from the old disks ──WAN──► the first point of the new state: protected, the other way round
 * ```
 *
 * Invariants:
 * - the old machines are proven off before anything begins, and their disks are only read;
 * - what only the old disks have stays readable: its point is kept under a name before another site may write;
 * - until "turn" everything is undone by itself but one thing: disks that left their export stay where they are, for a second pivot would gain
 *   nothing. The group says so, and the same command goes on;
 * - from "turn" on nothing is undone. The group has swapped its sites and goes on by itself, whatever becomes of this workflow.
 *
 * Source: docs/orchestration.md, "Reprotect"; the moves.
 */
import { CancellationScope, condition, executeChild, ParentClosePolicy, setHandler } from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import { MOVE_STEPS } from "#model/move-steps.ts";
import type { GroupDisk } from "#ports/master-target.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOfOperation, faultOf } from "./failures.ts";
import { startGuard, type Guard } from "./guard.ts";
import { initialSync } from "./initial-sync.ts";
import { orderMembers } from "./group-order.ts";
import { CONTROL_QUEUE, groupWorkflowId, type OperationState, type ProtectedMachine } from "./messages.ts";
import { childAttributes, reporter, reportEnd, tellGroup, type Reporter } from "./operation-view.ts";
import { checkReprotect } from "./reprotect-check.ts";
import { runOperation, type Runbook } from "./runbook.ts";
import { reseeded, turned, type ReprotectOutcome } from "./signals.ts";

const PREPARE_MS = 300_000;
const TAPS_MS = 120_000;
const TURN_MS = 600_000;
const MOVE_WINDOW_MS = 60_000;

export interface ReprotectInput {
  readonly groupId: string;
  readonly groupName: string;
  readonly operationId: string;
  readonly workflowId: string;
  readonly by: string;
  /** Where the machines run. */
  readonly from: string;
  /** Where they came from. */
  readonly to: string;
  /** Whose machines they are at `from`. */
  readonly replicaOperationId: string;
  /** The machines as they were at `to`. */
  readonly oldMachines: readonly ProtectedMachine[];
  /** The machines as they run at `from`; without agent, disks or taps there unless `from` is the site that they are from. */
  readonly machines: readonly ProtectedMachine[];
  readonly isHome: boolean;
  readonly agent?: string;
  readonly withoutOldDisks: boolean;
  readonly disks: readonly GroupDisk[];
  /** For the catalog of the store at `to`. */
  readonly record: string;
  /** The group's epoch: the one at `to` begins above it. */
  readonly epoch: number;
  /** The order to stop for `to`. Its version and the `ORDERS - 1` that follow are reserved for us. */
  readonly order: ReplicationOrder;
}

/** Versions of the order that a reprotect needs. */
export const ORDERS = 5;

type OutcomeSoFar = { -readonly [Key in keyof ReprotectOutcome]: ReprotectOutcome[Key] };

export async function reprotect(input: ReprotectInput): Promise<OperationState> {
  const { groupId, operationId, workflowId, by, from, to } = input;
  const outcome: OutcomeSoFar = { turned: false, moved: 0 };
  const end: { known: { readonly instead?: string } | undefined } = { known: undefined };
  setHandler(reseeded, (how) => {
    end.known = how;
  });
  const report = reporter(groupId, `${input.groupName}: reprotect, ${from} → ${to}`);
  let guard: Guard | undefined;
  const { operation } = await runOperation(
    { operationId, kind: "reprotect", workflowId, groupId, by },
    MOVE_STEPS.reprotect,
    report,
    async (run) => {
      await untilTurned(input, run, outcome, { report, guarded: (started) => (guard = started) });
      await run.step(
        "first point",
        async (note) => {
          await condition(() => end.known !== undefined);
          if (end.known?.instead !== undefined)
            throw new Fault("INTERRUPTED", `The first point was not waited for: ${end.known.instead}`);
          note(`site "${to}" has a complete point of the new state`);
        },
        { waitsFor: `the first point of the new state at "${to}"` },
      );
    },
  );
  await guard?.release();
  await reportEnd(groupId, { operation, reprotect: outcome });
  if (operation.state !== "done") throw failureOfOperation(operation);
  return operation;
}

async function untilTurned(
  input: ReprotectInput,
  run: Runbook,
  outcome: OutcomeSoFar,
  { report, guarded }: { readonly report: Reporter; readonly guarded: (guard: Guard) => void },
): Promise<void> {
  const { groupId, groupName, operationId, from, to } = input;
  const at = { at: from, priority: PRIORITY.watch };
  const checked = await run.step(
    "pre-check",
    async (note) => {
      const found = await checkReprotect(input);
      note(found.detail);
      return found;
    },
    { waitsFor: "an answer of both sites" },
  );
  guarded(await run.step("guard", async () => await startGuard({ groupId, groupName, site: from, operationId })));

  run.undo(
    "prepare target",
    async () =>
      await act("releaseGroup", { site: to, groupId, operationId }, { ...at, summary: `undo: release ${to}` }),
  );
  const prepared = await run.step(
    "prepare target",
    async (note) => {
      const made = await act(
        "prepareGroup",
        {
          site: to,
          groupId,
          operationId,
          groupName,
          sourceSite: to,
          disks: input.disks,
          record: input.record,
          atLeastEpoch: input.epoch,
        },
        { ...at, summary: `make the group receivable at ${to}` },
      );
      note(`branch ${made.branch}, epoch ${made.groupEpoch}`);
      return made;
    },
    { budgetMs: PREPARE_MS },
  );
  const orders = ordersOf(input, prepared);
  if (checked.oldDisks) await sweepOldDisks(input, run, { orders, branch: prepared.branch });
  else for (const name of ["sweep old disks", "keep old state", "stop sweep"]) run.skip(name, checked.detail);

  const machines = checked.machines;
  run.undo("serve disks", async () => void (await putOrder(orders.stopped(from, machines), "undo: stop at")));
  const served = await run.step(
    "serve disks",
    async (note) => {
      await putOrder(orders.paused(from, machines), "track at");
      const diskIds = input.disks.map(({ diskId }) => diskId);
      const reports = await act(
        "awaitTaps",
        { site: from, groupId, diskIds, timeoutMs: TAPS_MS },
        { ...at, summary: `wait until an agent of ${from} serves the disks`, budgetMs: TAPS_MS + 30_000 },
      );
      note(`${reports.length} taps`);
      return machines.map((machine) => ({
        ...machine,
        disks: machine.disks.map((disk) => {
          const tapUrl = reports.find(({ diskId }) => diskId === disk.diskId)?.tapUrl;
          return tapUrl === undefined ? disk : { ...disk, tapUrl };
        }),
      }));
    },
    { waitsFor: `an agent of "${from}" to serve the disks`, budgetMs: TAPS_MS },
  );
  await moveDisks(input, run, { outcome, machines: served });

  // No way back from here, and no stopping half-way either.
  await CancellationScope.nonCancellable(async () => {
    await run.step(
      "turn",
      async (note) => {
        await report.told();
        const turn = await act(
          "turn",
          {
            site: to,
            groupId,
            operationId: `${operationId}-turn`,
            activeSite: from,
            atLeastEpoch: prepared.groupEpoch,
          },
          { ...at, summary: `from now on ${from} writes the store at ${to}` },
        );
        run.keep();
        outcome.turned = true;
        await tellGroup(groupId, turned, {
          operationId,
          branch: turn.branch,
          epoch: turn.groupEpoch,
          target: { host: turn.host, port: turn.port },
          machines: served,
          afterBarrier: turn.newestPoint?.barrier ?? 0,
          pointCutAtMs: turn.newestPoint?.cutAtMs ?? 0,
        });
        note(`epoch ${turn.groupEpoch}, branch ${turn.branch} from point ${turn.newestPoint?.id ?? "none"}`);
      },
      { waitsFor: `the store at "${to}" to be given to "${from}"`, budgetMs: TURN_MS },
    );
  });

  async function putOrder(order: ReplicationOrder, what: string): Promise<boolean> {
    const { sourceSite } = order;
    return (await act("putOrder", { order }, { ...at, summary: `${what} ${sourceSite}` })).delivered;
  }
}

/** Off the export, onto taps, while the machines run. What has moved stays when this is not carried through; what is under way is given up. */
async function moveDisks(
  { operationId, replicaOperationId, from, disks: all }: ReprotectInput,
  run: Runbook,
  { outcome, machines }: { readonly outcome: OutcomeSoFar; readonly machines: readonly ProtectedMachine[] },
): Promise<void> {
  const at = { at: from, priority: PRIORITY.watch };
  const move = { site: from, operationId: replicaOperationId };
  const disks = machines.flatMap(({ disks: own }) =>
    own.map(({ diskId, tapUrl = "", sizeBytes }) => ({ diskId, url: tapUrl, sizeBytes })),
  );
  run.undo("move disks", async () => {
    if (outcome.moved === disks.length) return;
    await act("giveUpMoves", { ...move, disks }, { ...at, summary: `undo: give up what ${operationId} was moving` });
  });
  await run.step(
    "move disks",
    async (note) => {
      for (const disk of disks) {
        const summary = `move disk ${disk.diskId} off its export`;
        for (let done = false; !done;) {
          const seen = await act("moveDisks", { ...move, disks: [disk], windowMs: MOVE_WINDOW_MS }, { ...at, summary });
          ({ done } = seen);
          note(
            `${outcome.moved} of ${all.length} disks; ${disk.diskId}: ${seen.copiedBytes} of ${seen.totalBytes} bytes`,
          );
        }
        outcome.moved += 1;
        note(`${outcome.moved} of ${all.length} disks`);
      }
    },
    { waitsFor: "the machines' disks to be copied off their export" },
  );
}

/** The old disks, read where they are into the store beside them, until a complete point of them exists; it is kept under a name. */
async function sweepOldDisks(
  input: ReprotectInput,
  run: Runbook,
  { orders, branch }: { readonly orders: Orders; readonly branch: string },
): Promise<void> {
  const { groupId, groupName, operationId, from, to, oldMachines } = input;
  const at = { at: from, priority: PRIORITY.sync };
  const stop = async (note: (detail: string) => void, summary: string): Promise<void> => {
    const { delivered } = await act("putOrder", { order: orders.stopped(to, oldMachines) }, { ...at, summary });
    note(delivered ? "stopped" : `the order to stop waits for the process server of "${to}"; the turn fences it`);
  };
  run.undo("sweep old disks", async () => await stop(() => undefined, `undo: stop the sweep at ${to}`));
  const kept = await run.step(
    "sweep old disks",
    async (note) => {
      const afterBarrier = await newestBarrier();
      const { delivered } = await act(
        "putOrder",
        { order: orders.active(to, oldMachines) },
        { ...at, summary: `sweep the old disks at ${to}` },
      );
      if (!delivered) note(`waits for the process server of "${to}"`);
      const progress = await executeChild(initialSync, {
        workflowId: `${groupWorkflowId(groupId)}/sync/${operationId}`,
        args: [
          {
            groupId,
            groupName,
            site: to,
            rpoThresholdMs: 0,
            cursor: "",
            line: { branch, afterBarrier },
          },
        ],
        taskQueue: CONTROL_QUEUE,
        // It only watches: it ends with its operation.
        parentClosePolicy: ParentClosePolicy.TERMINATE,
        priority: { priorityKey: PRIORITY.sync },
        staticSummary: `${groupName}: sweep of the old disks at ${to}`,
        typedSearchAttributes: childAttributes("initialSync", groupName, to),
      });
      note(`barrier ${progress.barrier}`);
      return progress.barrier;
    },
    { waitsFor: `a complete point of the old disks in the store at "${to}"` },
  );
  await run.step("keep old state", async (note) => {
    const name = `before-reprotect-${operationId}`;
    await act(
      "bookmark",
      { site: to, groupId, operationId: `${operationId}-before`, barrier: kept, name },
      { ...at, summary: `keep barrier ${kept} as ${name}` },
    );
    note(`@${name}`);
  });
  await run.step("stop sweep", async (note) => await stop(note, `stop the sweep at ${to}`));

  async function newestBarrier(): Promise<number> {
    try {
      const summary = `newest point at ${to}`;
      return (
        await act(
          "choosePoint",
          { site: to, groupId, selector: "latest", branch },
          { ...at, summary, answers: ["NO_POINT"] },
        )
      ).barrier;
    } catch (error) {
      if (faultOf(error).code === "NO_POINT") return 0;
      throw error;
    }
  }
}

interface Orders {
  active(site: string, machines: readonly ProtectedMachine[]): ReplicationOrder;
  paused(site: string, machines: readonly ProtectedMachine[]): ReplicationOrder;
  stopped(site: string, machines: readonly ProtectedMachine[]): ReplicationOrder;
}

/** Each call takes the next of the reserved versions. */
function ordersOf(
  { order }: ReprotectInput,
  prepared: { readonly host: string; readonly port: number; readonly branch: string; readonly groupEpoch: number },
): Orders {
  let used = 0;
  const next = (
    state: ReplicationOrder["state"],
    site: string,
    machines: readonly ProtectedMachine[],
  ): ReplicationOrder => {
    used += 1;
    if (used > ORDERS) throw new RangeError("More orders than versions were reserved");
    return {
      ...order,
      version: order.version + used - 1,
      state,
      sourceSite: site,
      branch: prepared.branch,
      groupEpoch: prepared.groupEpoch,
      target: { ...order.target, host: prepared.host, port: prepared.port },
      members: orderMembers(machines),
    };
  };
  return {
    active: (site, machines) => next("active", site, machines),
    paused: (site, machines) => next("paused", site, machines),
    stopped: (site, machines) => next("stopped", site, machines),
  };
}
