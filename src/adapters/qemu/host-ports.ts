/** Ports of this host, for what a guest publishes. Between picking a free one and listening on it another program may take it. */
import type { MachineNetwork } from "#ports/hypervisor.ts";
import { freePort } from "../net/free-port.ts";

/** Host port 0 becomes one that is free now. */
export async function pickPorts(network: MachineNetwork): Promise<MachineNetwork["forwards"]> {
  return await Promise.all(
    network.forwards.map(async ({ hostPort, guestPort }) => ({
      hostPort: hostPort === 0 ? await freePort() : hostPort,
      guestPort,
    })),
  );
}
