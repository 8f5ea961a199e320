/** What reading and making maps asks of a disk. */
import { isFault } from "#model/fault.ts";
import type { Log } from "#ports/log.ts";
import type { DiskContext } from "./disk-context.ts";
import type { Keyring } from "./keyring.ts";
import type { OpenedDisk } from "./mover-store.ts";

export interface MapAccess {
  readonly disk: DiskContext;
  readonly keyring: Keyring;
  readonly storeId: string;
  /** Hears of damaged maps and manifests, which keep nobody from reading. */
  readonly log?: Log;
}

export function mapAccess(opened: OpenedDisk, log: Log): MapAccess {
  return { disk: opened.context, keyring: opened.keyring, storeId: opened.storeId, log };
}

/** What reading does without: an object that is damaged, gone, or of a later format. Everything else is thrown on. */
export function isUnusable(error: unknown): boolean {
  return (
    isFault(error, "OBJECT_CORRUPT") ||
    isFault(error, "OBJECT_MISSING") ||
    isFault(error, "CHAIN_BROKEN") ||
    isFault(error, "FORMAT_UNSUPPORTED")
  );
}
