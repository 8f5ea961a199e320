/**
 * vCenter's faults in our words. What a fault means depends on what was wanted ("powered on" is no failure of `start`), so callers
 * look at VimError first and hand here what is left.
 */
import { Fault, type FaultDetails } from "#model/fault.ts";
import { VimError } from "./soap.ts";

/** Run `work`; `doing` continues "vCenter cannot …". Faults pass; VimErrors become Faults; bugs stay bugs. */
export async function asFaults<T>(doing: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw error instanceof VimError ? faultOf(error, doing) : error;
  }
}

export function faultOf(error: VimError, doing: string): Fault {
  const { fault, message } = error;
  const said = `vCenter cannot ${doing}: ${describe(error)}`;
  const details: FaultDetails = { vimFault: fault.$type };
  switch (fault.$type) {
    case "NotAuthenticated":
    case "InvalidLogin":
      return new Fault("CREDENTIALS_REJECTED", said, {
        cause: error,
        details,
        hint: "Check the user and the password",
      });
    case "NoPermission":
      return new Fault("REFUSED", said, {
        cause: error,
        details: { ...details, privilege: fault.privilegeId ?? "unknown" },
        hint: `Give the user's role the privilege "${fault.privilegeId ?? message}" (docs/vsphere.md lists all that are needed)`,
      });
    case "NoDiskSpace":
      return new Fault("DISK_FULL", said, {
        cause: error,
        details: { ...details, datastore: fault.datastore },
        hint: `Free space on the datastore "${fault.datastore}", or configure another`,
      });
    case "FileNotFound":
      return new Fault("IMAGE_MISSING", said, {
        cause: error,
        details: { ...details, file: fault.file },
        hint: "Check that the disk was not moved or removed from its datastore",
      });
    case "FileLocked":
      return new Fault("IMAGE_IN_USE", said, { cause: error, details: { ...details, file: fault.file }, hint: IN_USE });
    case "GenericVmConfigFault":
      if (/lock/i.test(fault.reason)) return new Fault("IMAGE_IN_USE", said, { cause: error, details, hint: IN_USE });
      break;
    case "ManagedObjectNotFound":
    case "NotFound":
      return new Fault("NOT_FOUND", said, { cause: error, details });
    case "InvalidArgument":
    case "InvalidProperty":
      return new Fault("CONFIG_INVALID", said, { cause: error, details });
    default:
  }
  return new Fault("HYPERVISOR_UNAVAILABLE", said, {
    cause: error,
    details,
    hint: "Look at the task in vCenter; the same request can be repeated",
  });
}

const IN_USE = "Another machine holds the disk: power it off, or detach the disk there";

/** The type of the fault, what it names, and vCenter's own sentence. */
function describe({ fault, message }: VimError): string {
  const { $type, ...named } = fault;
  const values = Object.entries(named).filter(([, value]) => typeof value === "string");
  const more = values.map(([name, value]) => `${name} "${String(value)}"`).join(", ");
  return [message === "" ? $type : message, message === $type ? "" : `(${$type})`, more].filter(Boolean).join(" ");
}
