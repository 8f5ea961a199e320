/** Composition root of `leeward store …`: commands that look at a store without any control plane. */
import type { RescueCommands } from "../cli/rescue-contract.ts";
import { probeStore } from "../data-mover/store-probe.ts";
import { openStoreContext, readStoreAccess } from "./store-access.ts";

export function createStoreCommands(stop: AbortSignal): Pick<RescueCommands, "probe"> {
  return {
    /** Is this S3 safe to keep a replica in? Throws STORE_UNSAFE, STORE_DENIED, STORE_UNAVAILABLE. Writes only below `{root}/scratch/`. */
    async probe(options) {
      const access = readStoreAccess(options);
      const context = openStoreContext(access, stop);
      try {
        await probeStore(context);
      } finally {
        await context.store.close();
      }
      return { endpoint: access.settings.endpoint, bucket: access.settings.bucket, safe: true };
    },
  };
}
