/**
 * A create-only PUT whose outcome is known when it returns, whatever the network did.
 *
 * The store says "created", "exists", or nothing (a lost reply, a time-out, a 5xx). Only the first is an answer: "exists" may be our
 * own bytes from an attempt whose reply was lost, or from a PUT that the network doubled. So we look. If the place is free,
 * we put *the same bytes* again: an earlier attempt may still be on its way, and then it lands as what we meant.
 *
 * Source: docs/replication.md, "Writing a commit".
 */
import { Fault } from "#model/fault.ts";
import { backOff, DEFAULT_RETRY, isPassing, storeOptions, withRetries, type StoreContext } from "./disk-context.ts";

export interface CreateOnce<Found> {
  readonly key: string;
  readonly body: Uint8Array | readonly Uint8Array[];
  /** What is at `key`; undefined when nothing is. */
  readonly look: () => Promise<Found | undefined>;
  readonly isMine: (found: Found) => boolean;
}

/**
 * Resolves to undefined when `body` is at `key` and this caller put it there, else to what is.
 *
 * Throws: what the store threw, when it keeps failing or refuses. The outcome is then unknown: bytes of ours may still land.
 */
export async function createOnce<Found>(context: StoreContext, request: CreateOnce<Found>): Promise<Found | undefined> {
  for (let attempt = 1; ; attempt++) {
    let trouble: Fault | undefined;
    try {
      if ((await context.store.create(request.key, request.body, storeOptions(context))) === "created")
        return undefined;
    } catch (error) {
      if (!isPassing(error)) throw error;
      trouble = error;
    }
    const found = await withRetries(context, request.look); // [read back]
    if (found !== undefined) return request.isMine(found) ? undefined : found;
    // Free, so nothing of ours has landed yet. (Taken a moment ago and free now: collected. The caller's next look sees why.)
    if (attempt >= (context.retry ?? DEFAULT_RETRY).attempts) throw trouble ?? vanished(request.key);
    await backOff(context, attempt);
  }
}

function vanished(key: string): Fault {
  return new Fault("STORE_UNAVAILABLE", `Object "${key}" cannot be created, and cannot be read`, {
    details: { key },
    hint: "Run the store's probe: its reads may lag behind its writes.",
  });
}
