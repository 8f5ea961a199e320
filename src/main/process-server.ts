/** Composition root of the process server. */
import { mkdirSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { Redis } from "ioredis";
import { z } from "zod";
import { Fault } from "#model/fault.ts";
import { createTokenBucket } from "#model/token-bucket.ts";
import type { Log } from "#ports/log.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createDurableFiles } from "../adapters/file/durable-files.ts";
import { keepDialled } from "../adapters/link/keep-dialled.ts";
import { createLink } from "../adapters/link/tls-link.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import { systemRandom } from "../adapters/random/system-random.ts";
import { serveProcessServer } from "../adapters/relay/serve.ts";
import { createCompressPool } from "../process-server/compress-pool.ts";
import { startProcessServer } from "../process-server/process-server.ts";
import { createSiteCache, noSiteCache, type SiteCache } from "../process-server/site-cache.ts";

const address = z.object({ host: z.string().min(1), port: z.int().min(0).max(65535) });

const processServerConfig = z.object({
  site: z.string().min(1),
  name: z.string().min(1),
  stateDir: z.string().min(1),
  /** Where agents dial. */
  listen: address,
  control: address,
  identity: z.object({ certFile: z.string(), keyFile: z.string(), caFile: z.string() }),
  redisUrl: z.string().optional(),
  /** Memory and disk that frames may take while they wait for the WAN. */
  spoolBytesMax: z.int().min(1 << 20),
  /** Control's public Ed25519 key, PEM. */
  orderKeyFile: z.string().min(1),
  /** Limit on what goes to the WAN; none when left out. */
  bandwidthBytesPerSecond: z.int().min(1).optional(),
});
type ProcessServerConfig = z.infer<typeof processServerConfig>;

const COMPRESS_THREADS_MAX = 4;
const BURST_MS = 250;

export async function run(configFile: string, stop: AbortSignal): Promise<void> {
  const config = parseConfig(configFile);
  const log = createLog({ fields: { role: "process-server", site: config.site, name: config.name } });
  mkdirSync(config.stateDir, { recursive: true, mode: 0o700 });
  const link = createLink({
    identity: { site: config.site, role: "process-server", name: config.name },
    cert: readFileSync(config.identity.certFile, "utf8"),
    key: readFileSync(config.identity.keyFile, "utf8"),
    ca: readFileSync(config.identity.caFile, "utf8"),
    clock: systemClock,
    log,
  });
  const pool = createCompressPool(
    sibling("../process-server/compress-worker"),
    Math.min(COMPRESS_THREADS_MAX, availableParallelism()),
  );
  const redis = config.redisUrl === undefined ? undefined : connectRedis(config.redisUrl, log);
  const cache = redis === undefined ? noSiteCache : createSiteCache(redis, { site: config.site, log });
  const server = await startProcessServer({
    link,
    listen: config.listen,
    stateDir: config.stateDir,
    spoolBytesMax: config.spoolBytesMax,
    orderKey: readFileSync(config.orderKeyFile, "utf8"),
    compressPayload: pool.compress,
    cache,
    throttle: throttle(config.bandwidthBytesPerSecond, cache),
    files: createDurableFiles({
      fullHint: "Free space under the process server's state folder; it goes on by itself, the taps track meanwhile",
    }),
    clock: systemClock,
    log,
  });
  const control = keepDialled(link, config.control, {
    expect: "control",
    handlers: serveProcessServer(server),
    clock: systemClock,
    random: systemRandom,
    log,
  });
  if (!stop.aborted) await new Promise((resolve) => stop.addEventListener("abort", resolve, { once: true }));
  await control.close();
  await server.close();
  await pool.close();
  redis?.disconnect();
}

/** Throws CONFIG_INVALID. */
function parseConfig(configFile: string): ProcessServerConfig {
  let text: string;
  try {
    text = readFileSync(configFile, "utf8");
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot read "${configFile}"`, {
      cause,
      hint: "Give the process server's configuration with --config FILE",
    });
  }
  try {
    return processServerConfig.parse(JSON.parse(text));
  } catch (cause) {
    const why = cause instanceof z.ZodError ? z.prettifyError(cause) : String(cause);
    throw new Fault("CONFIG_INVALID", `"${configFile}" is no configuration of a process server: ${why}`, {
      cause,
      hint: "Correct the named fields; `leeward up` writes such a file for each role",
    });
  }
}

/** Commands fail at once while Redis is away: nobody waits for a cache. */
function connectRedis(url: string, log: Log): Redis {
  const redis = new Redis(url, {
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    commandTimeout: 2_000,
    retryStrategy: (attempt) => Math.min(attempt * 200, 5_000),
  });
  let known = false;
  redis.on("error", (error: Error) => {
    if (!known) log.warn("Redis is not reachable; going on without its cache", { error });
    known = true;
  });
  redis.on("ready", () => (known = false));
  return redis;
}

/** Shared with the site's other process servers while Redis answers, our own otherwise. */
function throttle(
  bytesPerSecond: number | undefined,
  cache: SiteCache,
): (bytes: number, signal: AbortSignal) => Promise<void> {
  if (bytesPerSecond === undefined) return () => Promise.resolve();
  const bucket = createTokenBucket(bytesPerSecond, (bytesPerSecond * BURST_MS) / 1_000);
  return async (bytes, signal) => {
    const own = bucket.take(bytes, systemClock.monotonic());
    const waitMs = (await cache.waitForTokens(bytes, bytesPerSecond)) ?? own;
    if (waitMs > 0) await systemClock.sleep(waitMs, signal);
  };
}

/** A module beside this one, as source or as built. */
function sibling(name: string): URL {
  return new URL(name + (import.meta.filename.endsWith(".ts") ? ".ts" : ".js"), import.meta.url);
}
