/** Composition root of the process server. */
import { mkdirSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { Redis } from "ioredis";
import { z } from "zod";
import { Fault } from "#model/fault.ts";
import { createTokenBucket } from "#model/token-bucket.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Log } from "#ports/log.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createDurableFiles } from "../adapters/file/durable-files.ts";
import { keepDialled } from "../adapters/link/keep-dialled.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import { systemRandom } from "../adapters/random/system-random.ts";
import { controlUnreachable } from "../adapters/relay/proxy.ts";
import { serveProcessServer } from "../adapters/relay/serve.ts";
import { createCompressPool } from "../process-server/compress-pool.ts";
import { startProcessServer } from "../process-server/process-server.ts";
import { createSiteCache, noSiteCache, type SiteCache } from "../process-server/site-cache.ts";
import { keepRoleRenewed, openRoleLink, RENEW, type RoleIdentity } from "./role-link.ts";

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
  const config = parseProcessServerConfig(configFile);
  const log = createLog({ fields: { role: "process-server", site: config.site, name: config.name } });
  mkdirSync(config.stateDir, { recursive: true, mode: 0o700 });
  const { site, name, identity } = config;
  const self: RoleIdentity = { site, role: "process-server", name, files: identity };
  const link = openRoleLink(self, log);
  const pool = createCompressPool(
    sibling("../process-server/compress-worker"),
    Math.min(COMPRESS_THREADS_MAX, availableParallelism()),
  );
  const redis = config.redisUrl === undefined ? undefined : connectRedis(config.redisUrl, log);
  const cache = redis === undefined ? noSiteCache : createSiteCache(redis, { site: config.site, log });
  const files = createDurableFiles({
    fullHint: "Free space under the process server's state folder; it goes on by itself, the taps track meanwhile",
  });
  const server = await startProcessServer({
    link,
    listen: config.listen,
    stateDir: config.stateDir,
    spoolBytesMax: config.spoolBytesMax,
    orderKey: readFileSync(config.orderKeyFile, "utf8"),
    compressPayload: pool.compress,
    cache,
    throttle: throttle(config.bandwidthBytesPerSecond, cache),
    renew: (request) => askControl(request),
    files,
    clock: systemClock,
    log,
  });
  /** Also for the agents of this site. */
  async function askControl(request: JsonObject): Promise<JsonValue> {
    if (control.peer === undefined) throw controlUnreachable();
    return control.peer.call(RENEW, request);
  }
  const control = keepDialled(link, config.control, {
    expect: "control",
    handlers: serveProcessServer(server),
    clock: systemClock,
    random: systemRandom,
    log,
  });
  const renewal = await keepRoleRenewed(self, { ask: askControl, files, log });
  if (!stop.aborted) await new Promise((resolve) => stop.addEventListener("abort", resolve, { once: true }));
  await renewal.close();
  await control.close();
  await server.close();
  await pool.close();
  redis?.disconnect();
}

/** Throws CONFIG_INVALID. */
export function parseProcessServerConfig(configFile: string): ProcessServerConfig {
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
