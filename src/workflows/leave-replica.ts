/**
 * Leaving the replica that a group runs on: its machines off, then its last writes in the store. Undo and change point begin with it.
 *
 * Invariants:
 * - machines first, proven off, then the last commit: nobody writes to an export that is being closed;
 * - nothing is deleted: the branch has everything when "last commit" is done, and the overlay stays until the move has succeeded;
 * - both steps are undone by opening the same disks again, with all that was written, and starting the same machines. The store
 *   refuses that once another move has touched a disk.
 */
import type { ExportStatus } from "#ports/master-target.ts";
import { isCancellation } from "@temporalio/workflow";
import { duration } from "#model/health.ts";
import { act, PRIORITY } from "./act.ts";
import { faultOf } from "./failures.ts";
import { startGuard, type Guard } from "./guard.ts";
import type { SetAside } from "./messages.ts";
import type { Runbook } from "./runbook.ts";

const SHUTDOWN_MS = 30_000;
const STOP_MS = 120_000;
const LAST_COMMIT_MS = 300_000;
const REMOVE_MS = 60_000;

/** The replica as the group knows it when the move begins. */
export interface LeavingReplica {
  readonly operationId: string;
  readonly pointId: string;
  readonly branch: string;
  /** The machines that run: these, and only these, are started again when the move fails. */
  readonly machines: readonly { readonly name: string; readonly machineId: string }[];
}

/** What both moves are told. */
export interface LeaveInput {
  readonly groupId: string;
  readonly groupName: string;
  readonly operationId: string;
  readonly workflowId: string;
  readonly by: string;
  readonly targetSite: string;
  readonly replica: LeavingReplica;
  readonly setsAside: SetAside;
  /** A failure brings the machines back. Not when the replica may have been given back already. */
  readonly comesBack: boolean;
}

/** Its steps are LEAVING of #model/move-steps.ts. */
export async function leaveReplica(input: LeaveInput, run: Runbook): Promise<void> {
  const { groupId, targetSite, replica } = input;
  const at = { at: targetSite, priority: PRIORITY.failover };
  run.set({ setAside: input.setsAside });
  if (input.comesBack) run.undo("stop machines", async () => await startAgain(input));
  await run.step(
    "stop machines",
    async (note) => {
      const { forced } = await act(
        "stopMachines",
        { site: targetSite, operationId: replica.operationId, timeoutMs: SHUTDOWN_MS },
        { ...at, summary: `machines of ${replica.operationId} off` },
      );
      note(forced.length === 0 ? "off" : `off; ${forced.join(", ")} did not shut down and was powered off`);
    },
    { waitsFor: "the replica machines to be off", budgetMs: STOP_MS },
  );
  if (input.comesBack) run.undo("last commit", async () => void (await openAgain(input)));
  await run.step(
    "last commit",
    async (note) => {
      await act(
        "closeExport",
        { site: targetSite, operationId: replica.operationId, discard: false },
        { ...at, summary: `last commit to branch ${replica.branch}` },
      );
      note(`${setAsideText(input.setsAside)}${await newestOf(input)}`);
    },
    { waitsFor: "the last writes of the replica to be in the store", budgetMs: LAST_COMMIT_MS },
  );

  /** For the note alone: a store that does not answer now keeps nobody from going on. */
  async function newestOf({ replica: { branch } }: LeaveInput): Promise<string> {
    try {
      const newest = await act(
        "choosePoint",
        { site: targetSite, groupId, selector: "latest", branch },
        { ...at, summary: `newest point of branch ${branch}`, budgetMs: 20_000 },
      );
      const own = newest.members.length === 0 || newest.members.some((member) => member.branch === branch);
      return own
        ? `, newest point ${newest.id}`
        : `; nothing was committed on it, so it has no point of its own and cannot be chosen later: what it began from is ${newest.id}`;
    } catch (error) {
      if (isCancellation(error)) throw error;
      return `; its newest point is not known (${faultOf(error).code})`;
    }
  }
}

/** Machines and overlay of the replica that was left, once the move has succeeded. What fails is left to a janitor. */
export async function removeReplica(input: LeaveInput, note: (detail: string) => void): Promise<void> {
  const { groupId, groupName, targetSite, replica } = input;
  const guard: Guard = await startGuard(
    { groupId, groupName, site: targetSite, operationId: replica.operationId },
    "remove",
  );
  try {
    const { machines } = await act(
      "removeOperation",
      { site: targetSite, operationId: replica.operationId, discard: true },
      { at: targetSite, summary: `remove what ${replica.operationId} left`, budgetMs: REMOVE_MS },
    );
    note(`${machines} machine${machines === 1 ? "" : "s"} and the overlay; branch ${replica.branch} stays`);
    await guard.release();
  } catch (error) {
    note(`a janitor goes on with it: ${faultOf(error).message}`);
  }
}

/** "sets aside 37 min, 4.1 GiB, as branch x-…", as far as it is known. */
export function setAsideText({ branch, ranMs, bytes }: SetAside): string {
  const parts = [...(ranMs === undefined ? [] : [duration(ranMs)]), ...(bytes === 0 ? [] : [mebibytes(bytes)])];
  return `sets aside ${parts.length === 0 ? "its writes" : parts.join(", ")}, as branch ${branch}`;
}

function mebibytes(bytes: number): string {
  const mib = bytes / 2 ** 20;
  return mib < 1_024 ? `${mib.toFixed(1)} MiB` : `${(mib / 1_024).toFixed(1)} GiB`;
}

async function openAgain({ groupId, operationId, targetSite, replica }: LeaveInput): Promise<ExportStatus> {
  return await act(
    "openExport",
    {
      site: targetSite,
      groupId,
      operationId: replica.operationId,
      point: replica.pointId,
      mode: "read-write",
      reopen: reopening(operationId),
    },
    { at: targetSite, summary: "undo: open the disks again", priority: PRIORITY.failover },
  );
}

async function startAgain({ targetSite, replica }: LeaveInput): Promise<void> {
  if (replica.machines.length === 0) return;
  await act(
    "startMachines",
    { site: targetSite, machineIds: replica.machines.map(({ machineId }) => machineId) },
    { at: targetSite, summary: "undo: start the replica machines again", priority: PRIORITY.failover },
  );
}

/** The operation under which the disks are taken back when `operationId` is not carried through. */
export function reopening(operationId: string): string {
  return `${operationId}-back`;
}
