/**
 * What process servers of a site share through Redis: the digests of what their streams said last, and the tokens of the WAN's bandwidth. Redis is
 * never the only home of anything: without it a repeat is shipped again, and each process server keeps the limit for itself.
 *
 * Digests of a disk, as of one commit:
 *
 * ```
 *  leeward:said/3:GROUP:DISK   hash   "branch" → name, "commit" → hash of the last commit, BLOCK:BLOCKS → "cycle d d d d" or "cycle -"
 * ```
 *
 * Invariants:
 * - a commit's statements and its hash are written in one transaction, and only on top of the commit before it: a lost write makes the next
 *   one begin anew;
 * - a statement is replaced only by one about exactly the same blocks: what overlaps is replayed in the order of its cycles, or a shorter later
 *   one would bring an older one back to life;
 * - it is believed only when branch and commit are those of the store's tail (two process servers may give a cycle the same number). Otherwise it
 *   is deleted.
 */
import type { Redis } from "ioredis";
import type { Statement } from "#model/repeat-filter.ts";
import type { Log } from "#ports/log.ts";

export interface SiteCache {
  /** What the stream of this disk said, in order; undefined when nothing is known of exactly this tail. Never throws. */
  said(disk: CachedDisk, commitHash: string): Promise<readonly Statement[] | undefined>;
  /** This commit said that; `said` undefined: too much to keep. Settles soon, never throws. */
  committed(disk: CachedDisk, commit: CachedCommit, said: readonly Statement[] | undefined): Promise<void>;
  /** Ms to wait before `bytes` may be sent, shared by all process servers of the site; undefined when Redis does not answer. */
  waitForTokens(bytes: number, bytesPerSecond: number): Promise<number | undefined>;
}

export interface CachedCommit {
  readonly cycle: number;
  readonly commitHash: string;
}

export interface CachedDisk {
  readonly groupId: string;
  readonly diskId: string;
  readonly branch: string;
}

/** Without Redis. */
export const noSiteCache: SiteCache = {
  said: () => Promise.resolve(undefined),
  committed: () => Promise.resolve(),
  waitForTokens: () => Promise.resolve(undefined),
};

/** Statements of a disk kept at most, about 60 bytes each. */
const STATEMENTS_MAX = 200_000;
const LIFE_SECONDS = 86_400;
const BURST_MS = 250;
/** The time at which all that was taken is paid back, in Redis's own clock: one key, moved forward atomically. */
const TAKE = `
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local free = math.max(now - ARGV[2], tonumber(redis.call('GET', KEYS[1]) or '0')) + ARGV[1]
redis.call('SET', KEYS[1], string.format('%.3f', free), 'PX', 60000)
return string.format('%.3f', free - now)
`;

export function createSiteCache(redis: Redis, options: { readonly site: string; readonly log: Log }): SiteCache {
  const { site, log } = options;
  /** Commit that the cache was last brought to by us, per key. */
  const written = new Map<string, string>();
  let failing = false;

  return {
    said: (disk, commitHash) =>
      attempt(async () => {
        const key = keyOf(disk);
        const fields = await redis.hgetall(key);
        if (fields["branch"] !== disk.branch || fields["commit"] !== commitHash) {
          await redis.del(key);
          return undefined;
        }
        written.set(key, commitHash);
        return Object.entries(fields)
          .flatMap(([field, value]) => parseStatement(field, value) ?? [])
          .sort((a, b) => a.cycle - b.cycle)
          .map(({ statement }) => statement);
      }),
    committed: async (disk, { cycle, commitHash }, said) => {
      const key = keyOf(disk);
      const former = written.get(key);
      written.delete(key); // Until it is known to be written.
      await attempt(async () => {
        const goesOn =
          former !== undefined &&
          said !== undefined &&
          (await redis.hget(key, "commit")) === former &&
          (await redis.hlen(key)) < STATEMENTS_MAX;
        const change = redis.multi();
        if (!goesOn) change.del(key);
        change.hset(key, {
          branch: disk.branch,
          commit: commitHash,
          ...Object.fromEntries(
            (said ?? []).map((statement) => [fieldOf(statement), formatStatement(statement, cycle)]),
          ),
        });
        change.expire(key, LIFE_SECONDS);
        await change.exec();
        written.set(key, commitHash);
      });
    },
    waitForTokens: (bytes, bytesPerSecond) =>
      attempt(async () =>
        Math.max(
          0,
          Number(await redis.eval(TAKE, 1, `leeward:bandwidth:${site}`, (bytes / bytesPerSecond) * 1_000, BURST_MS)),
        ),
      ),
  };

  async function attempt<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      const result = await work();
      failing = false;
      return result;
    } catch (error) {
      // A cache: without it everything is slower, and right.
      if (!failing) log.warn("The site's cache does not answer; going on without", { error });
      failing = true;
      return undefined;
    }
  }
}

function keyOf({ groupId, diskId }: CachedDisk): string {
  return `leeward:said/3:${groupId}:${diskId}`;
}

const fieldOf = ({ block, blocks }: Statement): string => `${block}:${blocks}`;

function formatStatement({ digest }: Statement, cycle: number): string {
  return `${cycle} ${digest === undefined ? "-" : digest.join(" ")}`;
}

function parseStatement(
  field: string,
  value: string,
): { readonly cycle: number; readonly statement: Statement } | undefined {
  const numbers = value.split(" ").map(Number);
  const bounds = /^([0-9]+):([0-9]+)$/.exec(field);
  if (bounds === null) return undefined; // "branch" and "commit".
  const [cycle = 0, a = 0, b = 0, c = 0, d = 0] = numbers;
  return {
    cycle,
    statement: {
      block: Number(bounds[1]),
      blocks: Number(bounds[2]),
      digest: numbers.length === 5 ? [a, b, c, d] : undefined,
    },
  };
}
