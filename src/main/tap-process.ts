/** The tap put together: images, their sockets, the control socket. See tap.ts. */
import { readFileSync } from "node:fs";
import { flushCompileCache } from "node:module";
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
  flushCompileCache(); // Not at the exit: a process that is killed has none.
  if (stop.aborted) await tap.stop();
  else stop.addEventListener("abort", () => void tap.stop(), { once: true });
  await tap.stopped;
  log.info("Tap stopped");
}
