/** Ports of this host, for what a guest publishes. Between picking a free one and listening on it another program may take it. */
import { createServer } from "node:net";
import type { MachineNetwork } from "#ports/hypervisor.ts";

/** Host port 0 becomes one that is free now. */
export async function pickPorts(network: MachineNetwork): Promise<MachineNetwork["forwards"]> {
  return await Promise.all(
    network.forwards.map(async ({ hostPort, guestPort }) => ({
      hostPort: hostPort === 0 ? await freePort() : hostPort,
      guestPort,
    })),
  );
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new RangeError("A listening TCP server has an address");
  return address.port;
}
