/** All activities over what they need: the sites' interfaces, orders, workflows, a clock. Built once, in main/worker.ts. */
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { Hypervisor } from "#ports/hypervisor.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import type { ProcessServer } from "#ports/process-server.ts";
import type { RecoveryPoint, ReplicationOrder } from "#ports/replication.ts";
import { namesOnePoint, selectPoint } from "#model/point-selector.ts";
import type { Activities } from "./contract.ts";
import { beating, translating } from "./faults.ts";
import { giveUpMoves, moveDisks } from "./move-disks.ts";
import { awaitReady, awaitTaps, awaitWorkflowEnd, findMachines, shutdownMachines, stopMachines } from "./waits.ts";
import { watchGroup, watchReplica } from "./watch.ts";

export interface ActivityDependencies {
  readonly masterTarget: (site: string) => MasterTarget;
  readonly processServer: (site: string) => ProcessServer;
  readonly hypervisor: (site: string) => Hypervisor;
  readonly orders: {
    readonly put: (
      groupId: string,
      order: ReplicationOrder,
    ) => Promise<{ readonly version: number; readonly delivered: boolean }>;
  };
  readonly workflows: { readonly isOpen: (workflowId: string, runId: string) => Promise<boolean> };
  /** Does something answer behind a published port of a replica machine? */
  readonly answers: (hostPort: number) => Promise<boolean>;
  readonly clock: Clock;
}

export function createActivities(dependencies: ActivityDependencies): Activities {
  const { masterTarget, processServer, hypervisor, orders, workflows, answers, clock } = dependencies;
  return {
    inspectDisks: beating(
      async ({ site, groupId, machine, sources }) =>
        await processServer(site).inspectDisks({ groupId, machine, sources }),
    ),
    probeStore: beating(async ({ site }) => await masterTarget(site).probeStore({})),
    prepareGroup: beating(async ({ site, ...input }) => await masterTarget(site).prepareGroup(input)),
    recordGroup: beating(async ({ site, ...input }) => await masterTarget(site).recordGroup(input)),
    putOrder: beating(async ({ order }) => await orders.put(order.groupId, order)),
    awaitTaps: beating(async (input) => await awaitTaps(processServer(input.site), clock, input)),
    sourceState: beating(
      async ({ site, groupId, timeoutMs }) => await sourceState(processServer(site), clock, groupId, timeoutMs),
    ),
    sourceDisks: beating(async ({ site, groupId }) => await sourceDisks(processServer(site), groupId)),
    connectedAgents: beating(async ({ site }) =>
      (await processServer(site).listAgents({})).flatMap(({ machine, connected }) => (connected ? [machine] : [])),
    ),
    turn: beating(async ({ site, ...input }) => await masterTarget(site).turn(input)),
    releaseGroup: beating(
      async ({ site, groupId, operationId }) =>
        await absentIsFine(masterTarget(site).releaseGroup({ groupId, operationId })),
    ),

    watchGroup: translating(async (input) => await watchGroup(masterTarget(input.site), clock, input)),
    watchReplica: translating(
      async (input) => await watchReplica(masterTarget(input.site), hypervisor(input.site), clock, input),
    ),

    cutNow: beating(async ({ site, ...input }) => await processServer(site).cutNow(input)),
    bookmark: beating(async ({ site, ...input }) => await masterTarget(site).bookmark(input)),
    choosePoint: beating(async ({ site, ...input }) => await choosePoint(masterTarget(site), input)),

    expirePoints: beating(async ({ site, ...input }) => await masterTarget(site).expirePoints(input)),

    fence: beating(async ({ site, ...input }) => await masterTarget(site).fence(input)),
    openExport: beating(async ({ site, ...input }) => await masterTarget(site).openExport(input)),
    takePoint: beating(async ({ site, ...input }) => await masterTarget(site).takePoint(input)),
    closeExport: beating(async ({ site, ...input }) => await absentIsFine(masterTarget(site).closeExport(input))),
    createMachine: beating(async ({ site, ...input }) => await hypervisor(site).createMachine(input)),
    startMachine: beating(async ({ site, machineId }) => await hypervisor(site).start(machineId)),
    destroyMachine: beating(async ({ site, machineId }) => await absentIsFine(hypervisor(site).destroy(machineId))),
    awaitReady: beating(async (input) => await awaitReady(hypervisor(input.site), answers, clock, input)),
    findMachines: beating(async ({ site, ...wanted }) => await findMachines(hypervisor(site), wanted)),
    shutdownMachines: beating(async (input) => await shutdownMachines(hypervisor(input.site), input)),
    stopMachines: beating(async (input) => await stopMachines(hypervisor(input.site), input)),
    startMachines: beating(async ({ site, machineIds }) => {
      for (const machineId of machineIds) await hypervisor(site).start(machineId);
    }),
    moveDisks: translating(async (input) => await moveDisks(hypervisor(input.site), clock, input)),
    giveUpMoves: beating(async (input) => await giveUpMoves(hypervisor(input.site), input)),
    removeOperation: beating(
      async (input) => await removeOperation(masterTarget(input.site), hypervisor(input.site), input),
    ),

    awaitWorkflowEnd: beating(async (input) => await awaitWorkflowEnd(workflows.isOpen, clock, input)),
  };
}

async function sourceState(
  processServer: ProcessServer,
  clock: Clock,
  groupId: string,
  timeoutMs: number,
): ReturnType<Activities["sourceState"]> {
  const bound = new AbortController();
  const late = clock
    .sleep(timeoutMs, bound.signal)
    .then(() => new Fault("TIMED_OUT", `The process server did not answer within ${timeoutMs / 1_000} s`));
  // Aborted below: nobody waits for it any more.
  late.catch(() => undefined);
  try {
    const first = await Promise.race([processServer.groupState({ groupId }), late]);
    return isFault(first) ? { reachable: false, fault: first.toJSON() } : { reachable: true };
  } catch (error) {
    if (!isFault(error)) throw error;
    // It answered, so it is there: what it says about the group is another matter.
    const reachable =
      error.code !== "PEER_UNREACHABLE" && error.code !== "TIMED_OUT" && error.code !== "SOURCE_UNREACHABLE";
    return { reachable, fault: error.toJSON() };
  } finally {
    bound.abort();
  }
}

async function sourceDisks(processServer: ProcessServer, groupId: string): ReturnType<Activities["sourceDisks"]> {
  try {
    return (await processServer.groupState({ groupId })).disks;
  } catch (error) {
    if (isFault(error, "NOT_FOUND")) return [];
    throw error;
  }
}

async function choosePoint(
  masterTarget: MasterTarget,
  { groupId, selector, branch }: { readonly groupId: string; readonly selector: string; readonly branch?: string },
): Promise<RecoveryPoint> {
  const onLine = branch !== undefined && !namesOnePoint(selector);
  return selectPoint(await masterTarget.listPoints({ groupId, ...(onLine ? { branch } : {}) }), selector);
}

/** Machines first: an export is not closed under a machine that runs on it. */
async function removeOperation(
  masterTarget: MasterTarget,
  hypervisor: Hypervisor,
  input: Parameters<Activities["removeOperation"]>[0],
): Promise<{ readonly machines: number }> {
  const machines = await hypervisor.list({ operationId: input.operationId });
  for (const machine of machines) await absentIsFine(hypervisor.destroy(machine.id));
  await absentIsFine(masterTarget.closeExport({ operationId: input.operationId, discard: input.discard }));
  return { machines: machines.length };
}

/** What is to be gone and was never there is gone. */
async function absentIsFine(work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (!isFault(error, "NOT_FOUND")) throw error;
  }
}
