/**
 * A site's Redis as a cache: what is in it makes things faster or visible, and nothing is lost with it. So no call here throws for an
 * unreachable server; it answers as if nothing were there, and the connection is made again in the background.
 */
import { Redis } from "ioredis";
import type { Log } from "#ports/log.ts";

const COMMAND_MS = 1_000;

export interface SiteCache {
  /** Undefined when it is not there, or Redis is not. */
  get(key: string): Promise<string | undefined>;
  /** With the time it lives; without, until deleted. */
  set(key: string, value: string, options?: { readonly lifeMs?: number }): Promise<void>;
  delete(key: string): Promise<void>;
  reachable(): Promise<boolean>;
  close(): void;
}

/** `url`: redis://HOST:PORT, or unix:///PATH. Connects in the background. */
export function createSiteCache({ url, log }: { readonly url: string; readonly log: Log }): SiteCache {
  const redis = new Redis(url.replace(/^unix:\/\//, ""), {
    lazyConnect: true,
    commandTimeout: COMMAND_MS,
    connectTimeout: COMMAND_MS,
    maxRetriesPerRequest: 0,
    enableOfflineQueue: false, // What cannot be written now is out of date later.
    retryStrategy: (attempt) => Math.min(100 * attempt, 2_000),
  });
  let told = false;
  redis.on("error", (error: Error) => {
    if (!told) log.warn("Redis cannot be reached; going on without", { url, error });
    told = true;
  });
  redis.on("ready", () => (told = false));
  redis.connect().catch(() => undefined); // Told by the "error" event; retried by itself.

  async function attempt<T>(command: () => Promise<T>): Promise<T | undefined> {
    try {
      return await command();
    } catch (error) {
      log.debug("A Redis command failed", { error });
      return undefined;
    }
  }

  return {
    get: async (key) => (await attempt(() => redis.get(key))) ?? undefined,
    async set(key, value, { lifeMs } = {}) {
      await attempt(() => (lifeMs === undefined ? redis.set(key, value) : redis.set(key, value, "PX", lifeMs)));
    },
    async delete(key) {
      await attempt(() => redis.del(key));
    },
    reachable: async () => (await attempt(() => redis.ping())) === "PONG",
    close: () => redis.disconnect(),
  };
}
