/** What a group's record says to others: the replication order for its source, and the disks that its target prepares. */
import type { GroupDisk } from "#ports/master-target.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import type { GroupRecord } from "./group-record.ts";
import type { ProtectedMachine } from "./messages.ts";

/** The order as it would be sent now, with the next version; the version is taken at once. */
export function nextOrder(record: GroupRecord, state: ReplicationOrder["state"]): ReplicationOrder {
  record.order = { version: record.order.version + 1, state };
  return currentOrder(record);
}

export function currentOrder(record: GroupRecord): ReplicationOrder {
  return {
    groupId: record.groupId,
    groupName: record.name,
    version: record.order.version,
    state: record.order.state,
    branch: record.branch,
    groupEpoch: record.epoch,
    sourceSite: record.sourceSite,
    target: { site: record.targetSite, host: record.target.host, port: record.target.port },
    intervalMs: record.policy.intervalMs,
    compressAt: record.policy.compressAt,
    members: orderMembers(record.machines),
  };
}

/** One member for each agent, whatever machines its disks are of. */
export function orderMembers(machines: readonly ProtectedMachine[]): ReplicationOrder["members"] {
  const agents = [...new Set(machines.map(({ name, agent = name }) => agent))];
  return agents.map((machine) => ({
    machine,
    disks: machines
      .filter(({ name, agent = name }) => agent === machine)
      .flatMap(({ disks }) =>
        disks.map(({ diskId, source, sizeBytes, bootIndex }) => ({
          diskId,
          source,
          ...(source.startsWith("replica:") ? { sizeBytes } : {}),
          ...(bootIndex === undefined ? {} : { bootIndex }),
        })),
      ),
  }));
}

export function groupDisks(record: GroupRecord): readonly GroupDisk[] {
  return record.machines.flatMap((machine) =>
    machine.disks.map(({ diskId, sizeBytes, sectorBytes, bootIndex }) => ({
      diskId,
      machine: machine.name,
      sizeBytes,
      sectorBytes,
      ...(bootIndex === undefined ? {} : { bootIndex }),
    })),
  );
}
