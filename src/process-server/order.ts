/**
 * Replication orders: what they must look like, and which of two is obeyed.
 *
 * The version decides, and it only grows: an order that arrives late, or is played back by someone who recorded it, changes nothing. Before it counts the
 * term of the control that signed it: one that was superseded gives no orders, whatever number it puts on them.
 */
import { readChoice, readList, readName, readObject, readText, readWhole, type Fields } from "#model/json-reader.ts";
import { Fault } from "#model/fault.ts";
import type { DiskSpec, ReplicationOrder } from "#ports/replication.ts";

const INTERVAL_MS_MIN = 100;

/** Throws PROTOCOL_INVALID for anything that is not an order. */
export function parseOrder(text: string): ReplicationOrder {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new Fault("PROTOCOL_INVALID", "Expected an order as JSON", { cause: error });
  }
  const fields = readObject(json, "order");
  const target = readObject(fields["target"], "target");
  const order: ReplicationOrder = {
    groupId: readName(fields, "groupId"),
    groupName: readText(fields, "groupName"),
    version: readWhole(fields, "version"),
    ...(fields["controlEpoch"] === undefined ? {} : { controlEpoch: readWhole(fields, "controlEpoch") }),
    state: readChoice(fields, "state", ["active", "paused", "stopped"]),
    branch: readName(fields, "branch"),
    groupEpoch: readWhole(fields, "groupEpoch"),
    sourceSite: readName(fields, "sourceSite"),
    target: { site: readName(target, "site"), host: readText(target, "host"), port: readWhole(target, "port") },
    intervalMs: readWhole(fields, "intervalMs"),
    compressAt: readChoice(fields, "compressAt", ["agent", "process-server"]),
    members: readList(fields, "members", (member) => ({
      machine: readName(member, "machine"),
      disks: readList(member, "disks", readDiskSpec),
    })),
  };
  if (order.intervalMs < INTERVAL_MS_MIN)
    throw new Fault(
      "PROTOCOL_INVALID",
      `Expected "intervalMs" to be at least ${INTERVAL_MS_MIN}, got ${order.intervalMs}`,
    );
  const diskIds = order.members.flatMap((member) => member.disks.map((disk) => disk.diskId));
  if (new Set(diskIds).size !== diskIds.length)
    throw new Fault("PROTOCOL_INVALID", "Expected each disk once in an order");
  return order;
}

export function readDiskSpec(fields: Fields): DiskSpec {
  return {
    diskId: readName(fields, "diskId"),
    source: readText(fields, "source"),
    ...(fields["sizeBytes"] === undefined ? {} : { sizeBytes: readWhole(fields, "sizeBytes") }),
    ...(fields["bootIndex"] === undefined ? {} : { bootIndex: readWhole(fields, "bootIndex") }),
  };
}

/** Whether `next` replaces `kept`. The same version again changes nothing. */
export function supersedes(next: ReplicationOrder, kept: ReplicationOrder | undefined): boolean {
  if (kept === undefined) return true;
  const [term, keptTerm] = [next.controlEpoch ?? 0, kept.controlEpoch ?? 0];
  return term === keptTerm ? next.version > kept.version : term > keptTerm;
}

/** A fence holds until an order of a newer group epoch arrives: control decided anew who is active. */
export function liftsFence(next: ReplicationOrder, fencedEpoch: number): boolean {
  return next.groupEpoch > fencedEpoch;
}
