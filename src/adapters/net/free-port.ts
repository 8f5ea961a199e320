/**
 * A port of loopback that nobody listens on, for a server that is started a moment later.
 *
 * It lies below the ephemeral ports of this host. One of those, free now, may be the local end of anybody's outgoing connection by the time
 * the server listens on it, and stays taken for as long as that connection lives: a server with a fixed port then cannot start, whoever
 * restarts it. Below them only another server takes a port, so one that was picked is lost only to somebody who picks at the same moment;
 * each picks from a random place on, which makes that rare.
 */
import { randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";

/** Below them are services of the host. */
const LOWEST_PORT = 20_000;
const HIGHEST_PORT = 65_535;
const LINUX_FIRST_EPHEMERAL = 32_768;
const FEWEST_PORTS = 1_000;

/** Never one of `taken`. Throws RangeError when every port is in use. */
export async function freePort(taken: ReadonlySet<number> = new Set()): Promise<number> {
  const count = portsBelow(firstEphemeralPort()) - LOWEST_PORT;
  const start = randomInt(count);
  for (let tried = 0; tried < count; tried += 1) {
    const port = LOWEST_PORT + ((start + tried) % count);
    if (!taken.has(port) && (await isFree(port))) return port;
  }
  throw new RangeError(`None of ${count} ports is free`);
}

/** Whether one could listen on this port of loopback now. */
export function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen({ port, host: "127.0.0.1", exclusive: true }, () => server.close(() => resolve(true)));
  });
}

/** Where a host gives nearly all its ports to outgoing connections, there is nothing below to choose from. */
function portsBelow(firstEphemeral: number): number {
  return firstEphemeral < LOWEST_PORT + FEWEST_PORTS ? HIGHEST_PORT + 1 : firstEphemeral;
}

/** Source: `ip_local_port_range` of Linux, Documentation/networking/ip-sysctl. */
function firstEphemeralPort(): number {
  try {
    return Number(
      /^\d+/.exec(readFileSync("/proc/sys/net/ipv4/ip_local_port_range", "utf8"))?.[0] ?? LINUX_FIRST_EPHEMERAL,
    );
  } catch {
    return LINUX_FIRST_EPHEMERAL; // Not Linux, or no /proc: its default is as good as any.
  }
}
