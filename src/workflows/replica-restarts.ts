/**
 * Replica machines that died are started again by the group itself: the disks are there, and somebody relies on the service.
 *
 * Invariants:
 * - only a machine whose process died is started, never one that was told to go off: by its guest, by a person, by a move;
 * - tries are bounded and take longer each time; after the last one the group's health names the command with which a person tries again;
 * - a machine that has run for a while since its last start begins anew with its tries;
 * - what is tried is written into the record before the first await: an interrupted try counts.
 */
import { isCancellation } from "@temporalio/workflow";
import { CONDITIONS } from "#model/group-phase.ts";
import { RESTART_TRIES } from "#model/health.ts";
import { act, PRIORITY } from "./act.ts";
import { faultOf } from "./failures.ts";
import { hasCondition, type GroupRecord, type MachineRestart, type ReplicaRecord } from "./group-record.ts";
import type { Group } from "./group-updates.ts";
import { now } from "./workflow-time.ts";

/** Before each try; there are RESTART_TRIES. */
const WAITS_MS = [0, 5_000, 15_000, 45_000, 120_000] as const;
/** After running for this long, a death is a new one. */
const SETTLED_MS = 600_000;
const START_MS = 120_000;

/** Each machine's tries, from what was just seen: new ones for the machines that died, none for those that run. */
export function restartsDue(
  replica: ReplicaRecord,
  died: readonly string[],
  nowMs: number,
): Readonly<Record<string, MachineRestart>> {
  const known = replica.restarts ?? {};
  const names = new Set([...Object.keys(known), ...died]);
  const restarts: Record<string, MachineRestart> = {};
  for (const name of names) {
    const before = known[name];
    const off = replica.machinesOff.includes(name);
    // A start that failed is tried again, whatever its process looks like afterwards.
    const wanted = off && (died.includes(name) || before?.fault !== undefined);
    const settled = before !== undefined && nowMs - before.nextAtMs > SETTLED_MS;
    if (wanted) restarts[name] = before ?? { tries: 0, nextAtMs: nowMs };
    else if (before !== undefined && !off && !settled) restarts[name] = before;
  }
  return restarts;
}

/** When the next try is due; undefined when none is. */
export function nextRestartAtMs({ restarts = {}, machinesOff }: ReplicaRecord): number | undefined {
  const waiting = Object.entries(restarts).filter(
    ([name, { tries }]) => machinesOff.includes(name) && tries < RESTART_TRIES,
  );
  return waiting.length === 0 ? undefined : Math.min(...waiting.map(([, { nextAtMs }]) => nextAtMs));
}

/** One try for each machine whose time has come. */
export async function restartDied(group: Group): Promise<void> {
  const { record } = group;
  if (hasCondition(record, CONDITIONS.retrying)) return; // A person is at it.
  for (const { name, machineId } of record.replica?.machines ?? []) {
    const { replica } = record;
    const restart = replica?.restarts?.[name];
    if (replica === undefined || restart === undefined || !replica.machinesOff.includes(name)) continue;
    if (restart.tries >= RESTART_TRIES || restart.nextAtMs > now()) continue;
    const tries = restart.tries + 1;
    setRestart(record, name, { tries, nextAtMs: now() + (WAITS_MS[tries] ?? 0) });
    group.show();
    try {
      await act(
        "startMachine",
        { site: record.targetSite, machineId },
        {
          at: record.targetSite,
          summary: `start machine ${name} again, try ${tries} of ${RESTART_TRIES}`,
          budgetMs: START_MS,
          attempts: 1,
          priority: PRIORITY.failover,
        },
      );
      setRunning(record, name);
    } catch (error) {
      if (isCancellation(error)) throw error;
      const { details: _details, ...fault } = faultOf(error).toJSON();
      setRestart(record, name, { tries, nextAtMs: now() + (WAITS_MS[tries] ?? 0), fault });
    }
    group.show();
  }
}

function setRestart(record: GroupRecord, name: string, restart: MachineRestart): void {
  if (record.replica === undefined) return; // A move has taken it meanwhile.
  record.replica = { ...record.replica, restarts: { ...record.replica.restarts, [name]: restart } };
}

function setRunning(record: GroupRecord, name: string): void {
  const { replica } = record;
  if (replica === undefined) return;
  record.replica = { ...replica, machinesOff: replica.machinesOff.filter((one) => one !== name) };
}
