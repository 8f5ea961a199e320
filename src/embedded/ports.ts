/**
 * Ports of the embedded installation: picked free once, then kept in the state folder, so that URLs survive a restart.
 * A kept port that somebody else has taken meanwhile is picked anew.
 */
import { createServer } from "node:net";
import { readJsonFile, writeJsonFile } from "./json-file.ts";

/** One port per name. Ports of `kept` that are free (or in `inUse`, ours) stay. */
export async function reservePorts(
  file: string,
  names: readonly string[],
  inUse: ReadonlySet<number> = new Set(),
): Promise<Record<string, number>> {
  const kept = (readJsonFile(file) ?? {}) as Record<string, number>;
  const ports: Record<string, number> = {};
  for (const name of names) {
    const port = kept[name];
    ports[name] =
      port !== undefined && (inUse.has(port) || (await isFree(port)))
        ? port
        : await freePort(new Set(Object.values(ports)));
  }
  writeJsonFile(file, ports);
  return ports;
}

async function freePort(taken: ReadonlySet<number>): Promise<number> {
  for (;;) {
    const port = await probe(0);
    if (port !== undefined && !taken.has(port)) return port;
  }
}

async function isFree(port: number): Promise<boolean> {
  return (await probe(port)) !== undefined;
}

/** Listen and close again: the port number, or undefined when it is taken. */
function probe(port: number): Promise<number | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(undefined));
    server.listen(port, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : undefined));
    });
  });
}
