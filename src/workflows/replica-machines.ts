/** From an export to running machines: what failover and test failover have in common. */
import type { Machine, MachineNetwork } from "#ports/hypervisor.ts";
import type { ExportedDisk } from "#ports/master-target.ts";
import { Fault } from "#model/fault.ts";
import { act } from "./act.ts";
import { faultOf } from "./failures.ts";
import type { ProtectedMachine, ReplicaMachine } from "./messages.ts";

export interface BootPlan {
  readonly site: string;
  readonly operationId: string;
  readonly machines: readonly ProtectedMachine[];
  readonly mode: MachineNetwork["mode"];
  readonly priority: number;
}

interface Created {
  readonly protected: ProtectedMachine;
  readonly machine: Machine;
}

/** One powered-off machine per member, on its exported disks. */
export async function createMachines(plan: BootPlan, disks: readonly ExportedDisk[]): Promise<readonly Created[]> {
  return await Promise.all(
    plan.machines.map(async (member) => ({
      protected: member,
      machine: await createMachine(plan, member, disks, plan.mode === "user"),
    })),
  );
}

export interface Booted {
  readonly machines: readonly ReplicaMachine[];
  readonly failed: readonly { readonly name: string; readonly fault: Fault }[];
}

/**
 * Start them beside each other. A member that does not start leaves the others up. A published port that is taken at this host is
 * replaced by a free one: the machine matters more than its port.
 */
export async function startMachines(
  plan: BootPlan,
  created: readonly Created[],
  disks: readonly ExportedDisk[],
): Promise<Booted> {
  const failed: { readonly name: string; readonly fault: Fault }[] = [];
  const machines = await Promise.all(
    created.map(async ({ protected: member, machine }): Promise<ReplicaMachine | undefined> => {
      try {
        const running = await start(plan, member, machine, disks);
        return { name: member.name, machineId: running.id, site: plan.site, forwards: running.forwards };
      } catch (error) {
        failed.push({ name: member.name, fault: faultOf(error) });
        return undefined;
      }
    }),
  );
  return { machines: machines.filter((machine) => machine !== undefined), failed };
}

export interface Answering {
  readonly all: boolean;
  readonly detail: string;
}

/** Wait until they answer. Not answering in time is a finding, not a failure: the machines run. */
export async function awaitAnswers(
  plan: BootPlan,
  machines: readonly ReplicaMachine[],
  timeoutMs: number,
): Promise<Answering> {
  const answers = await Promise.all(
    machines.map(async (machine) => {
      const seen = await act(
        "awaitReady",
        { site: plan.site, machineId: machine.machineId, timeoutMs },
        { at: plan.site, summary: `wait until ${machine.name} answers`, priority: plan.priority },
      );
      return { ready: seen.ready, text: `${machine.name}: ${seen.detail}` };
    }),
  );
  return { all: answers.every((one) => one.ready), detail: answers.map((one) => one.text).join("; ") };
}

async function createMachine(
  plan: BootPlan,
  member: ProtectedMachine,
  disks: readonly ExportedDisk[],
  keepPorts: boolean,
): Promise<Machine> {
  const forwards = member.forwards.map(({ guestPort, hostPort }) => ({
    guestPort,
    hostPort: keepPorts ? hostPort : 0,
  }));
  const own = disks.filter((disk) => disk.machine === member.name);
  return await act(
    "createMachine",
    {
      site: plan.site,
      operationId: plan.operationId,
      name: member.name,
      config: member.config,
      disks: own.map(({ diskId, url, bootIndex }) => ({
        diskId,
        url,
        ...(bootIndex === undefined ? {} : { bootIndex }),
      })),
      network: { mode: plan.mode, forwards },
    },
    { at: plan.site, summary: `create machine ${member.name}`, priority: plan.priority },
  );
}

async function start(
  plan: BootPlan,
  member: ProtectedMachine,
  machine: Machine,
  disks: readonly ExportedDisk[],
): Promise<Machine> {
  const options = { at: plan.site, summary: `start machine ${member.name}`, priority: plan.priority };
  if (plan.mode === "isolated" || member.forwards.every(({ hostPort }) => hostPort === 0)) {
    return await act("startMachine", { site: plan.site, machineId: machine.id }, options);
  }
  try {
    return await act("startMachine", { site: plan.site, machineId: machine.id }, { ...options, attempts: 1 });
  } catch (error) {
    const { code } = faultOf(error);
    let id = machine.id;
    if (code === "PORT_IN_USE") {
      await act(
        "destroyMachine",
        { site: plan.site, machineId: id },
        { ...options, summary: `remove machine ${member.name}: a port is taken` },
      );
      ({ id } = await createMachine(plan, member, disks, false));
    }
    return await act("startMachine", { site: plan.site, machineId: id }, options);
  }
}
