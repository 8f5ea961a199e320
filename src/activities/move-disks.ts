/**
 * Moving the disks of running machines to other block servers: one activity asks the hypervisor until all are there, or its window ends.
 *
 * Invariants:
 * - nothing is remembered here: `moveDisk` begins or looks, so a second attempt, or two at once, find what is there;
 * - a fault that may pass by itself is asked past for a while (a tap is restarted, a disk is full); then it leaves, for the workflow to say so;
 * - a heartbeat carries how far it is. It goes on during a call, since a pivot may wait for a server that is being restarted.
 */
import { Context } from "@temporalio/activity";
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { Hypervisor } from "#ports/hypervisor.ts";
import type { MoveDisksInput, MoveDisksResult } from "./contract.ts";

const POLL_MS = 500;
const BEAT_MS = 2_000;
const PATIENCE_MS = 60_000;

interface Moving {
  readonly machineId: string;
  readonly disk: MoveDisksInput["disks"][number];
  copiedBytes: number;
  totalBytes: number;
  done: boolean;
  failingSince: number | undefined;
}

/** Throws NOT_FOUND (no machine of that operation has the disk), and what `moveDisk` throws. */
export async function moveDisks(hypervisor: Hypervisor, clock: Clock, input: MoveDisksInput): Promise<MoveDisksResult> {
  const context = Context.current();
  const end = clock.monotonic() + input.windowMs;
  let all: readonly Moving[] = [];
  const result = (): MoveDisksResult => ({
    done: all.every(({ done }) => done),
    copiedBytes: all.reduce((sum, { copiedBytes }) => sum + copiedBytes, 0),
    totalBytes: all.reduce((sum, { totalBytes }) => sum + totalBytes, 0),
  });
  const beat = setInterval(() => context.heartbeat(result()), BEAT_MS);
  const work = async (): Promise<MoveDisksResult> => {
    all = await find(hypervisor, input);
    for (;;) {
      for (const one of all) if (!one.done) await ask(hypervisor, clock, one);
      context.heartbeat(result());
      if (result().done || clock.monotonic() >= end) return result();
      await clock.sleep(POLL_MS, context.cancellationSignal);
    }
  };
  try {
    return await Promise.race([work(), context.cancelled]);
  } finally {
    clearInterval(beat);
  }
}

/** A disk of a machine that is off is not being moved. */
export async function giveUpMoves(
  hypervisor: Hypervisor,
  { operationId, disks }: Omit<MoveDisksInput, "windowMs">,
): Promise<void> {
  for (const machine of await hypervisor.list({ operationId })) {
    if (machine.power === "off") continue;
    for (const { diskId, url } of machine.disks ?? []) {
      const sizeBytes = disks.find((disk) => disk.diskId === diskId)?.sizeBytes;
      if (sizeBytes !== undefined) await hypervisor.moveDisk?.(machine.id, { diskId, url, sizeBytes });
    }
  }
}

async function find(hypervisor: Hypervisor, input: MoveDisksInput): Promise<readonly Moving[]> {
  const machines = await hypervisor.list({ operationId: input.operationId });
  return input.disks.map((disk) => {
    const machine = machines.find(({ disks }) => disks?.some(({ diskId }) => diskId === disk.diskId) === true);
    if (machine === undefined)
      throw new Fault(
        "NOT_FOUND",
        `No machine of operation "${input.operationId}" at site "${input.site}" has disk "${disk.diskId}"`,
        { details: { operationId: input.operationId, diskId: disk.diskId } },
      );
    const { id: machineId } = machine;
    return { machineId, disk, copiedBytes: 0, totalBytes: disk.sizeBytes, done: false, failingSince: undefined };
  });
}

async function ask(hypervisor: Hypervisor, clock: Clock, one: Moving): Promise<void> {
  if (hypervisor.moveDisk === undefined)
    throw new Fault("REFUSED", `The hypervisor "${hypervisor.kind}" cannot move the disk of a running machine`, {
      details: { machineId: one.machineId },
      hint: "Use a hypervisor that can",
    });
  try {
    const { state, copiedBytes, totalBytes } = await hypervisor.moveDisk(one.machineId, one.disk);
    Object.assign(one, { done: state === "done", copiedBytes, totalBytes, failingSince: undefined });
  } catch (error) {
    if (!isFault(error) || !error.retryable) throw error;
    one.failingSince ??= clock.monotonic();
    if (clock.monotonic() - one.failingSince >= PATIENCE_MS) throw error;
  }
}
