/**
 * A device that waits for its store. A machine that gets an I/O error remounts its disks read-only or stops; one that gets its answer late only
 * waits. So reads below an overlay are repeated while the store is away, up to a bound that is longer than a restart of it.
 */
import { Fault, isFault } from "#model/fault.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import type { Clock } from "#ports/clock.ts";
import type { Log } from "#ports/log.ts";

const PATIENCE_MS = 180_000;
const PAUSE_MS = 500;

/** Reads of `device` that fail with a fault that may pass are repeated for `patienceMs`; then the fault goes on. Read-only devices only. */
export function patientDevice(
  device: BlockDevice,
  deps: { readonly clock: Clock; readonly log: Log; readonly patienceMs?: number },
): BlockDevice {
  const { clock, log, patienceMs = PATIENCE_MS } = deps;
  let told = false;
  const again = async (target: Uint8Array, offset: number, first: unknown): Promise<void> => {
    const giveUpAt = clock.monotonic() + patienceMs;
    for (let error = first; ;) {
      if (!passes(error) || clock.monotonic() >= giveUpAt) throw error;
      if (!told) log.warn("The store does not answer; the export's reads wait for it", { fault: error.toJSON() });
      told = true;
      await clock.sleep(PAUSE_MS);
      try {
        await device.read(target, offset);
        told = false;
        return;
      } catch (next) {
        error = next;
      }
    }
  };
  return {
    ...device,
    read(target, offset) {
      const reading = device.read(target, offset);
      return reading?.catch((error: unknown) => again(target, offset, error));
    },
  };
}

function passes(error: unknown): error is Fault {
  return isFault(error, "STORE_UNAVAILABLE") || isFault(error, "STORE_THROTTLED") || isFault(error, "TIMED_OUT");
}
