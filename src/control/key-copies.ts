/**
 * Keeps a sealed copy of control's keys in every store: at each master target that connects, and again when somebody was enrolled. That is also how
 * a control that was superseded hears of it at once. A copy that cannot be kept is tried again until it is, or the link ends.
 */
import { isFault } from "#model/fault.ts";
import type { SealedKeysRecord } from "#model/format/control-records.ts";
import type { JsonObject } from "#model/json.ts";
import type { Clock } from "#ports/clock.ts";
import type { Log } from "#ports/log.ts";
import type { Directory } from "./directory.ts";

const RETRY_MS = 5_000;
const KEEP_MS = 120_000;

export interface KeyCopies {
  /** A master target of `site` connected. */
  keepAt(site: string): void;
  /** The content changed. */
  changed(): void;
  /** Sites whose store has the newest copy. */
  kept(): readonly string[];
}

export function keyCopies(deps: {
  readonly directory: Directory;
  readonly seal: () => Promise<SealedKeysRecord>;
  readonly clock: Clock;
  readonly log: Log;
}): KeyCopies {
  const { directory, clock, log } = deps;
  const kept = new Set<string>();
  const running = new Map<string, { again: boolean }>();

  async function keep(site: string, state: { again: boolean }): Promise<void> {
    while (directory.find(site, "master-target").length > 0) {
      state.again = false;
      try {
        const keys = (await deps.seal()) as unknown as JsonObject; // Plain JSON.
        await directory.call({ site, role: "master-target" }, "masterTarget.keepControlKeys", { keys }, KEEP_MS);
        kept.add(site);
        if (!state.again) return;
        continue;
      } catch (error) {
        if (!isFault(error)) throw error;
        log.warn("The sealed copy of control's keys could not be kept", { site, fault: error });
        if (!error.retryable) return; // It is tried again when that master target comes back.
      }
      await clock.sleep(RETRY_MS);
    }
  }

  function keepAt(site: string): void {
    const known = running.get(site);
    if (known !== undefined) {
      known.again = true;
      return;
    }
    const state = { again: false };
    running.set(site, state);
    void keep(site, state).finally(() => running.delete(site));
  }

  return {
    keepAt,
    changed() {
      kept.clear();
      const sites = directory
        .connected()
        .flatMap(({ identity }) => (identity.role === "master-target" ? [identity.site] : []));
      for (const site of new Set(sites)) keepAt(site);
    },
    kept: () => [...kept],
  };
}
