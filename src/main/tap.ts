/**
 * The tap: a process of its own, with few imports, because a machine's disk waits while it starts.
 *
 * `node tap.ts --config FILE`; FILE is the JSON of a TapConfig. Prints one line, a TapReady, when it serves. SIGTERM and SIGINT, or `stop` over the control
 * socket, are the clean stop. It does not end when its parent does: start it detached, with a log file.
 */
import { readFileSync } from "node:fs";
import { isFault } from "#model/fault.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { openImage } from "../adapters/image/image-device.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import { openTapDisk } from "../capture/tap/tap-disk.ts";
import { tapConfig } from "../capture/tap/tap-params.ts";
import type { TapReady } from "../capture/tap/tap-protocol.ts";
import { startTap } from "../capture/tap/tap-server.ts";

/** Serves until `stop`, or until it is stopped over its control socket. Throws CONFIG_INVALID, PORT_IN_USE. */
export async function run(configFile: string, stop: AbortSignal): Promise<void> {
  const config = tapConfig(JSON.parse(readFileSync(configFile, "utf8")));
  const log = createLog({ fields: { role: "tap" }, ...(config.logFile === undefined ? {} : { file: config.logFile }) });
  const tap = await startTap({
    controlSocket: config.controlSocket,
    disks: config.disks,
    openDisk: (disk) =>
      openTapDisk(disk, {
        openImage,
        clock: systemClock,
        log,
        ...(config.frozenBytesMax === undefined ? {} : { frozenBytesMax: config.frozenBytesMax }),
      }),
    log,
  });
  const ready: TapReady = { ready: true, failed: tap.failed };
  process.stdout.on("error", () => undefined); // Whoever started us has gone; the machine has not.
  process.stdout.write(`${JSON.stringify(ready)}\n`);
  if (stop.aborted) await tap.stop();
  else stop.addEventListener("abort", () => void tap.stop(), { once: true });
  await tap.stopped;
  log.info("Tap stopped");
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
    if (!isFault(error)) throw error;
    process.stderr.write(`${error.code}: ${error.message}\n`);
    process.exit(1);
  }
}
