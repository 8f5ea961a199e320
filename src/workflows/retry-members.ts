/**
 * Starting the machines of a group that did not start with the others: on the same disks, at the point that the others run on, or each at another one.
 *
 * Invariants:
 * - the others are not touched; nothing is undone, for every step only finds or makes what the failover would have made;
 * - a machine that still does not start fails the operation, and those that did start stay;
 * - while disks are being given the content of another point, there is no machine that could be started on them; it is made again afterwards. The group
 *   knows it before the first block is written, so that no later retry starts what is half-way.
 */
import { isCancellation } from "@temporalio/workflow";
import { Fault } from "#model/fault.ts";
import { MOVE_STEPS } from "#model/move-steps.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOfOperation, faultOf } from "./failures.ts";
import type { OperationState, ProtectedMachine } from "./messages.ts";
import { reporter, reportEnd, type Reporter } from "./operation-view.ts";
import type { ExportedDisk } from "#ports/master-target.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import { awaitAnswers, createMachines, startMachines, type BootPlan } from "./replica-machines.ts";
import { runOperation, type Runbook } from "./runbook.ts";
import { timestamp } from "./workflow-time.ts";

const ANSWER_MS = 180_000;

export interface RetryInput {
  readonly groupId: string;
  readonly groupName: string;
  readonly operationId: string;
  readonly workflowId: string;
  readonly by: string;
  readonly targetSite: string;
  readonly replica: { readonly operationId: string; readonly pointId: string };
  /** Those that are missing. */
  readonly machines: readonly ProtectedMachine[];
  /** By machine: the point that it goes on from instead of the others'. */
  readonly points?: Readonly<Record<string, string>>;
  /** What the source wrote: `latest` and times are looked up along this branch. */
  readonly sourceBranch?: string;
  readonly answerMs?: number;
}

const TAKE_WINDOW_MS = 20_000;

export async function retryMembers(input: RetryInput): Promise<OperationState> {
  const { groupId, operationId, workflowId, by } = input;
  const names = input.machines.map(({ name }) => name).join(", ");
  const report = reporter(groupId, `${input.groupName}: start ${names} at ${input.targetSite}`);
  const outcome = { answering: true };
  const { operation } = await runOperation(
    { operationId, kind: "retry", workflowId, groupId, by },
    MOVE_STEPS[input.points === undefined ? "retry-member" : "retry-at-point"],
    report,
    async (run) => {
      outcome.answering = await runRetry(input, run, report);
    },
  );
  await reportEnd(groupId, { operation, retry: outcome });
  if (operation.state !== "done") throw failureOfOperation(operation);
  return operation;
}

/** Whether they answer. */
async function runRetry(input: RetryInput, run: Runbook, report: Reporter): Promise<boolean> {
  const { groupId, targetSite, replica } = input;
  const plan: BootPlan = {
    site: targetSite,
    operationId: replica.operationId,
    machines: input.machines,
    mode: "user",
    priority: PRIORITY.failover,
  };
  const points = input.points === undefined ? [] : await choosePoints(input, run);
  const { disks } = await run.step("open disks", async () => {
    const opened = await act(
      "openExport",
      { site: targetSite, groupId, operationId: replica.operationId, point: replica.pointId, mode: "read-write" },
      { at: targetSite, summary: "find the disks of the others", priority: PRIORITY.failover },
    );
    assertWhole(input, opened.taking ?? {});
    return opened;
  });
  if (points.length > 0) await takePoints(input, run, { points, plan, disks, report });
  const created = await run.step("create machines", async () => await createMachines(plan, disks));
  const booted = await run.step("start machines", async (note) => {
    await report.told();
    const result = await startMachines(plan, created, disks);
    run.set({ machines: result.machines });
    const [first] = result.failed;
    if (first !== undefined) {
      note(`started: ${result.machines.map(({ name }) => name).join(", ") || "none"}`);
      throw first.fault;
    }
    return result;
  });
  return await run.step(
    "verify",
    async (note) => {
      try {
        const seen = await awaitAnswers(plan, booted.machines, input.answerMs ?? ANSWER_MS);
        note(seen.detail);
        return seen.all;
      } catch (error) {
        if (isCancellation(error)) throw error;
        note(`not known: ${faultOf(error).message}`);
        return false;
      }
    },
    { waitsFor: "the machines to answer", budgetMs: input.answerMs ?? ANSWER_MS },
  );
}

/** The group may have forgotten, with a control that was lost, that a retry did not finish; the export has not. */
function assertWhole({ machines, points = {}, replica }: RetryInput, taking: Readonly<Record<string, string>>): void {
  for (const { name } of machines) {
    const point = taking[name];
    if (point === undefined || points[name] !== undefined) continue;
    throw new Fault("REFUSED", `The disks of machine "${name}" are half-way to point "${point}", and so of no point`, {
      details: { machine: name, point },
      hint: `Type "leeward operation retry ${replica.operationId} ${name} --point ${point}", or with any other point`,
    });
  }
}

interface MachinePoint {
  readonly member: ProtectedMachine;
  readonly point: RecoveryPoint;
}

async function choosePoints(input: RetryInput, run: Runbook): Promise<readonly MachinePoint[]> {
  const { groupId, targetSite: site, sourceBranch: branch, points = {} } = input;
  return await run.step("choose point", async (note) => {
    const chosen: MachinePoint[] = [];
    for (const member of input.machines) {
      const selector = points[member.name];
      if (selector === undefined) continue;
      const point = await act(
        "choosePoint",
        { site, groupId, selector, ...(branch === undefined ? {} : { branch }) },
        {
          at: site,
          summary: `choose point ${selector} for ${member.name}`,
          priority: PRIORITY.failover,
          budgetMs: 30_000,
        },
      );
      chosen.push({ member, point });
    }
    note(
      chosen.map(({ member, point }) => `${member.name}: ${point.id}, cut at ${timestamp(point.cutAtMs)}`).join("; "),
    );
    return chosen;
  });
}

async function takePoints(
  input: RetryInput,
  run: Runbook,
  {
    points,
    plan,
    disks,
    report,
  }: {
    readonly points: readonly MachinePoint[];
    readonly plan: BootPlan;
    readonly disks: readonly ExportedDisk[];
    readonly report: Reporter;
  },
): Promise<void> {
  const { operationId, targetSite: site, replica } = input;
  const at = { at: site, priority: PRIORITY.failover };
  await run.step(
    "take point",
    async (note) => {
      run.set({ otherPoints: Object.fromEntries(points.map(({ member, point }) => [member.name, point.id])) });
      await report.told();
      const machines = await createMachines({ ...plan, machines: points.map(({ member }) => member) }, disks);
      for (const { machine } of machines)
        await act(
          "destroyMachine",
          { site, machineId: machine.id },
          { ...at, summary: `no machine on ${machine.name}'s disks` },
        );
      const notes: string[] = [];
      for (const { member, point } of points) {
        const taking = {
          site,
          operationId: replica.operationId,
          requestId: `${operationId}.${member.name}`,
          machine: member.name,
          point: point.id,
          waitMs: TAKE_WINDOW_MS,
        };
        const summary = `disks of ${member.name} as at point ${point.id}`;
        for (let done = false; !done;) {
          const seen = await act("takePoint", taking, { ...at, summary });
          ({ done } = seen);
          const text = `${member.name}: ${seen.comparedBytes} of ${seen.totalBytes} bytes compared, ${seen.writtenBytes} written`;
          note([...notes, text].join("; "));
          if (done) notes.push(text);
        }
      }
    },
    { waitsFor: "the disks to be as at the other point" },
  );
}
