/**
 * Where machines of ours go, and into which networks: named in the configuration by inventory path, resolved at each use, because an
 * object's id changes when it is made anew and its path does not.
 */
import { Fault } from "#model/fault.ts";
import type { MachineNetwork } from "#ports/hypervisor.ts";
import { readObject } from "./properties.ts";
import type { Vim } from "./session.ts";
import type { AnyVirtualDeviceBackingInfo, Reference } from "./vim-types.ts";

export interface VspherePlacement {
  /** Inventory paths: "DATACENTER/vm/FOLDER" and "DATACENTER/host/CLUSTER/Resources". */
  readonly folder: string;
  readonly resourcePool: string;
  /** By name: where a machine's own files go. */
  readonly datastore: string;
}

/** "DATACENTER/network/NAME" for each mode that machines are started in. `isolated` must have no way out: nobody can check it from here. */
export type VsphereNetworks = Readonly<Partial<Record<MachineNetwork["mode"], string>>>;

/** Throws: NOT_FOUND. `kind` is for the message. */
export async function findByPath(vim: Vim, inventoryPath: string, kind: string): Promise<Reference> {
  const { searchIndex } = vim.content;
  if (searchIndex === undefined) throw new Fault("PROTOCOL_INVALID", "vCenter names no search index");
  const found = await vim.call("FindByInventoryPath", { _this: searchIndex, inventoryPath });
  if (found === undefined)
    throw new Fault("NOT_FOUND", `vCenter has no ${kind} "${inventoryPath}"`, {
      hint: "Check the path in the configuration, and that the user may see it",
    });
  return found;
}

/** How a card is connected to the network of this mode. Throws: CONFIG_INVALID, NOT_FOUND, REFUSED. */
export async function cardFor(
  vim: Vim,
  networks: VsphereNetworks,
  mode: MachineNetwork["mode"],
): Promise<AnyVirtualDeviceBackingInfo> {
  const path = networks[mode];
  if (path === undefined)
    throw new Fault("CONFIG_INVALID", `No network is configured for machines in the mode "${mode}"`, {
      hint: `Name the network for "${mode}" in the configuration of this site's vSphere`,
    });
  const reference = await findByPath(vim, path, "network");
  switch (reference.type) {
    case "Network": {
      const name = (await readObject(vim, reference, ["name"]))?.["name"];
      return { $type: "VirtualEthernetCardNetworkBackingInfo", deviceName: String(name) };
    }
    case "DistributedVirtualPortgroup": {
      const paths = ["key", "config.distributedVirtualSwitch"] as const;
      const group = await readObject(vim, reference, paths);
      const uplink = group?.["config.distributedVirtualSwitch"] as Reference | undefined;
      const uuid = uplink === undefined ? undefined : (await readObject(vim, uplink, ["uuid"]))?.["uuid"];
      return {
        $type: "VirtualEthernetCardDistributedVirtualPortBackingInfo",
        port: { switchUuid: String(uuid), portgroupKey: String(group?.["key"]) },
      };
    }
    default:
      throw new Fault("REFUSED", `"${path}" is a network of the kind "${reference.type}", which is not supported`, {
        hint: "Use a port group of a standard or a distributed switch",
      });
  }
}
