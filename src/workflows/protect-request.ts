/** What is wrong with a request to protect; undefined when nothing is. Runs in a validator: synchronous, no look at the world. */
import { Fault } from "#model/fault.ts";
import type { ProtectRequest } from "./messages.ts";

const INTERVAL_MS_MIN = 200;

export function protectFault(request: ProtectRequest, groupId: string): Fault | undefined {
  const usage = (message: string, hint?: string): Fault =>
    new Fault("USAGE", message, hint === undefined ? {} : { hint });
  if (request.groupId !== groupId) return usage(`The request is for group "${request.groupId}", expected "${groupId}"`);
  if (request.name === "") return usage(`Name "${request.name}" is empty, expected a name for the group`);
  if (request.sourceSite === request.targetSite)
    return usage(`Source and target are both site "${request.sourceSite}", expected two sites`);
  if (request.machines.length === 0) return usage("No machine was given, expected at least one");
  if (!(request.policy.intervalMs >= INTERVAL_MS_MIN))
    return usage(`Interval of ${request.policy.intervalMs} ms, expected at least ${INTERVAL_MS_MIN}`);
  if (!(request.policy.rpoThresholdMs >= request.policy.intervalMs)) {
    return usage(
      `RPO threshold of ${request.policy.rpoThresholdMs} ms, expected at least the interval of ${request.policy.intervalMs} ms`,
      "Raise the threshold, or lower the interval",
    );
  }
  const names = new Set<string>();
  const diskIds = new Set<string>();
  for (const machine of request.machines) {
    if (names.has(machine.name)) return usage(`Machine "${machine.name}" was given twice`);
    names.add(machine.name);
    if (machine.disks.length === 0) return usage(`Machine "${machine.name}" has no disk, expected at least one`);
    const sources = new Set<string>();
    for (const disk of machine.disks) {
      if (diskIds.has(disk.diskId)) return usage(`Disk id "${disk.diskId}" was given twice`);
      diskIds.add(disk.diskId);
      if (sources.has(disk.source)) {
        return new Fault(
          "DISK_ALREADY_PROTECTED",
          `Disk "${disk.source}" of machine "${machine.name}" was given twice`,
          { hint: "Name each disk once" },
        );
      }
      sources.add(disk.source);
      if (!(Number.isSafeInteger(disk.sizeBytes) && disk.sizeBytes > 0))
        return new Fault("IMAGE_INVALID", `Disk "${disk.source}" has ${disk.sizeBytes} bytes, expected more than none`);
    }
  }
  return undefined;
}
