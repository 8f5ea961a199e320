/**
 * Ports of the embedded installation: picked free once, then kept in the state folder, so that URLs survive a restart.
 * A kept port that somebody else has taken meanwhile is picked anew.
 */
import { freePort, isFree } from "../adapters/net/free-port.ts";
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
        : await freePort(new Set([...Object.values(ports), ...Object.values(kept)]));
  }
  writeJsonFile(file, ports);
  return ports;
}
