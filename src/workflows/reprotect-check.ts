/**
 * What a reprotect looks at before it changes anything: both sites answer, the machines run, their old ones do not, and an agent is there
 * to take their disks.
 */
import { Fault } from "#model/fault.ts";
import { act, PRIORITY } from "./act.ts";
import { faultOf } from "./failures.ts";
import type { ProtectedMachine } from "./messages.ts";
import type { ReprotectInput } from "./reprotect.ts";

const ANSWER_MS = 8_000;

export interface Checked {
  /** The machines as they will be at their new source site, with agent and source of each disk; the taps are not known yet. */
  readonly machines: readonly ProtectedMachine[];
  /** Every old disk is there. */
  readonly oldDisks: boolean;
  readonly detail: string;
}

/** Throws REFUSED with what to do: nothing has happened yet. */
export async function checkReprotect(input: ReprotectInput): Promise<Checked> {
  const { groupId, to, from } = input;
  const at = { at: from, priority: PRIORITY.watch };
  const seen = await act(
    "sourceState",
    { site: to, groupId, timeoutMs: ANSWER_MS },
    { ...at, summary: `does the process server of ${to} answer?`, attempts: 2 },
  );
  if (!seen.reachable)
    throw refused(
      input,
      `the process server of site "${to}" does not answer (${seen.fault?.code ?? ""}: ${seen.fault?.message ?? ""})`,
      `Start it, then repeat the command`,
    );
  try {
    await act("probeStore", { site: to }, { ...at, summary: `is the store at ${to} safe?`, budgetMs: 60_000 });
  } catch (error) {
    const { code, message, hint } = faultOf(error);
    throw refused(
      input,
      `the master target of site "${to}", or its store, does not answer (${code}: ${message})`,
      hint ?? "Start it, then repeat the command",
    );
  }
  await assertRunning(input);
  const gone = input.withoutOldDisks ? "not asked for" : await goneDisks(input);
  const machines = await atNewSource(input);
  const agents = [...new Set(machines.map(({ name, agent = name }) => agent))].join(", ");
  return {
    machines,
    oldDisks: gone === undefined,
    detail: `disks go to ${agents}; ${gone === undefined ? "the old disks are there, and nobody has them attached" : `the old disks: ${gone}; everything crosses the WAN`}`,
  };
}

async function assertRunning(input: ReprotectInput): Promise<void> {
  const { from, machines } = input;
  const found = await act(
    "findMachines",
    {
      site: from,
      names: machines.map(({ name }) => name),
      machineIds: machines.map(({ machineId = "" }) => machineId),
    },
    { at: from, summary: `do the machines run at ${from}?`, priority: PRIORITY.watch },
  );
  const off = found.filter(({ power }) => power !== "running").map(({ name, power }) => `"${name}" (${power})`);
  if (off.length > 0)
    throw refused(
      input,
      `machine ${off.join(", ")} does not run at site "${from}"`,
      "Start it, then repeat the command",
    );
}

/** Undefined when every old disk is served, and no machine has one attached: then they are only read by us. */
async function goneDisks(input: ReprotectInput): Promise<string | undefined> {
  const { groupId, to, oldMachines } = input;
  const reports = await act(
    "sourceDisks",
    { site: to, groupId },
    { at: input.from, summary: `are the old disks at ${to}, and does nobody write to them?`, priority: PRIORITY.watch },
  );
  const gone: string[] = [];
  for (const { name, agent = name, disks } of oldMachines) {
    for (const { diskId, source } of disks) {
      const report = reports.find((one) => one.diskId === diskId);
      if (report === undefined)
        throw refused(
          input,
          `the agent "${agent}" at site "${to}" does not report the old disk "${source}", so nobody can tell whether the old machine runs`,
          'Start that agent; if the disk is gone for good, add "--without-old-disks"',
        );
      if (report.tapUrl === undefined) gone.push(`"${source}" is not there`);
      else if (report.clients !== 0)
        throw refused(
          input,
          `the old disk "${source}" at site "${to}" is attached to a running machine`,
          "Shut that machine down: what it has written since the failover is read from its disk and kept under a name",
        );
    }
  }
  return gone.length === 0 ? undefined : gone.join(", ");
}

/** At home the machines have their own agents and disks; elsewhere one agent makes images for all of them. */
async function atNewSource(input: ReprotectInput): Promise<readonly ProtectedMachine[]> {
  const { from, machines, isHome } = input;
  if (isHome) return machines;
  const connected = await act(
    "connectedAgents",
    { site: from },
    { at: from, summary: `which agents are at ${from}?`, priority: PRIORITY.watch },
  );
  const agent = input.agent ?? connected[0];
  if (agent === undefined || !connected.includes(agent))
    throw refused(
      input,
      agent === undefined
        ? `no agent is connected at site "${from}"`
        : `no agent "${agent}" is connected at site "${from}"`,
      connected.length === 0
        ? `Start one at "${from}": it serves the machines' disks`
        : `Connected: ${connected.join(", ")}; say which with --agent`,
    );
  return machines.map((machine) => ({
    ...machine,
    agent,
    disks: machine.disks.map(({ tapUrl: _tapUrl, ...disk }) => ({ ...disk, source: `replica:${disk.diskId}` })),
  }));
}

function refused({ groupName }: ReprotectInput, why: string, hint: string): Fault {
  return new Fault("REFUSED", `Group "${groupName}" cannot be reprotected: ${why}`, {
    hint: `Nothing was changed. ${hint}`,
  });
}
