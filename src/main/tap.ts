/**
 * The tap: a process of its own, with few imports, because a machine's disk waits while it starts. Compiled code is cached on disk, and therefore
 * enabled before anything else is imported: that is three quarters of the start.
 *
 * `node tap.ts --config FILE`; FILE is the JSON of a TapConfig. Prints one line, a TapReady, when it serves. SIGTERM and SIGINT, or `stop` over the
 * control socket, are the clean stop. It does not end when its parent does: start it detached, with a log file.
 */
import { enableCompileCache } from "node:module";

/** Serves until `stop`, or until it is stopped over its control socket. Throws CONFIG_INVALID, PORT_IN_USE. */
export async function run(configFile: string, stop: AbortSignal): Promise<void> {
  enableCompileCache();
  const process_ = await import("./tap-process.ts");
  await process_.run(configFile, stop);
}

if (import.meta.main) {
  const [option, configFile] = process.argv.slice(2);
  if (option !== "--config" || configFile === undefined) {
    process.stderr.write("Usage: tap --config FILE\n");
    process.exit(2);
  }
  const stopping = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => stopping.abort());
  process.on("SIGHUP", () => undefined); // The terminal of whoever started us has closed.
  try {
    await run(configFile, stopping.signal);
    process.exit(0);
  } catch (error) {
    const { isFault } = await import("#model/fault.ts");
    if (!isFault(error)) throw error;
    process.stderr.write(`${error.code}: ${error.message}\n`);
    process.exit(1);
  }
}
