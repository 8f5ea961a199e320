/**
 * The replication orders: one per group, signed, kept on disk, and brought to the process servers of the source site.
 *
 * Invariants:
 * - an order is durable here before any process server sees it, and its version only grows. The same order again is no error (a repeated
 *   activity), another one of the same version is;
 * - a process server that connects gets every order of its site. It keeps what it has when that is newer, so a repeat is harmless;
 * - what is signed is the exact text that travels: nobody has to serialise JSON the same way twice;
 * - delivery is tried until it succeeds, the link ends, or a newer order takes its place.
 */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { Fault, isFault } from "#model/fault.ts";
import { readName, readObject, readText, readWhole } from "#model/json-reader.ts";
import { parseStateFile } from "#model/state-file.ts";
import type { Clock } from "#ports/clock.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { Peer } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { ReplicationOrder, SignedOrder } from "#ports/replication.ts";

const DELIVERY_MS = 5_000;
const RETRY_MS = 2_000;

export interface OrderBook {
  /** REFUSED when the version does not grow. `delivered`: every connected process server of the source site has it, and there is one. */
  put(
    order: ReplicationOrder,
    processServers: () => readonly Peer[],
  ): Promise<{ readonly version: number; readonly delivered: boolean }>;
  /** Bring all orders of its site to a process server that has just connected. */
  greet(peer: Peer): void;
  /** Groups that ever had an order. */
  groups(): readonly ReplicationOrder[];
}

interface Entry {
  readonly order: ReplicationOrder;
  readonly signed: SignedOrder;
}

export async function openOrderBook(options: {
  readonly folder: string;
  /** Ed25519 over the bytes, base64. */
  readonly sign: (bytes: Uint8Array) => string;
  /** Number of this control's term: stands in every order. */
  readonly controlEpoch: number;
  /** Why this control may give no orders about groups that are kept at a site. */
  readonly supersededAt?: (site: string) => Fault | undefined;
  readonly files: DurableFiles;
  readonly clock: Clock;
  readonly log: Log;
}): Promise<OrderBook> {
  const { folder, sign, controlEpoch, supersededAt = () => undefined, files, clock, log } = options;
  const entries = new Map<string, Entry>();
  for (const name of await filesOf(folder)) {
    const path = join(folder, name);
    const entry = parseEntry(
      parseStateFile({ path, text: await files.read(path), hint: "Restore the file from a copy" }),
    );
    entries.set(entry.order.groupId, entry);
  }
  const turns = new Map<string, Promise<unknown>>();

  /** Brings `entry` to `peer` once. Throws the Fault of the far end. */
  async function deliver(peer: Peer, entry: Entry): Promise<void> {
    const { order, signature } = entry.signed;
    await peer.call("processServer.putOrder", { signed: { order, signature } }, { timeoutMs: DELIVERY_MS });
  }

  /** Tries until it succeeds, the link ends, or another order is the newest. */
  async function keepDelivering(peer: Peer, entry: Entry): Promise<void> {
    let gone = false;
    void peer.closed.then(() => (gone = true));
    while (!gone && entries.get(entry.order.groupId) === entry) {
      try {
        await deliver(peer, entry);
        return;
      } catch (error) {
        if (!isFault(error)) throw error;
        log.warn("An order could not be delivered", {
          peer: peer.identity,
          groupId: entry.order.groupId,
          fault: error,
        });
        if (!error.retryable) return; // It said no for good; it is greeted again when it comes back.
      }
      await clock.sleep(RETRY_MS);
    }
  }

  return {
    groups: () => [...entries.values()].map((entry) => entry.order),

    greet(peer) {
      for (const entry of entries.values()) {
        if (supersededAt(entry.order.target.site) !== undefined) continue;
        if (entry.order.sourceSite === peer.identity.site) void keepDelivering(peer, entry);
      }
    },

    async put(asked, processServers) {
      const superseded = supersededAt(asked.target.site);
      if (superseded !== undefined) throw superseded;
      const order = { ...asked, controlEpoch };
      const entry = await inTurn(turns, order.groupId, async () => {
        const text = JSON.stringify(order);
        const kept = entries.get(order.groupId);
        if (kept !== undefined && (kept.signed.order === text || isSameOrder(kept.order, asked))) return kept;
        if (kept !== undefined && order.version <= kept.order.version) {
          throw new Fault(
            "REFUSED",
            `Expected an order of "${order.groupId}" newer than version ${kept.order.version}, got ${order.version}`,
            {
              details: { groupId: order.groupId, version: kept.order.version },
            },
          );
        }
        const made = { order, signed: { order: text, signature: sign(new TextEncoder().encode(text)) } };
        await files.write(join(folder, `${order.groupId}.json`), `${JSON.stringify(made.signed, null, 2)}\n`);
        entries.set(order.groupId, made);
        log.info("An order was issued", {
          groupId: order.groupId,
          version: order.version,
          state: order.state,
          epoch: order.groupEpoch,
          controlEpoch,
        });
        return made;
      });
      const peers = processServers(); // Looked up only now: who connected meanwhile was greeted without this order.
      const outcomes = await Promise.allSettled(peers.map((peer) => deliver(peer, entry)));
      for (const [index, outcome] of outcomes.entries()) {
        if (outcome.status === "fulfilled") continue;
        if (!isFault(outcome.reason)) throw outcome.reason;
        log.warn("An order could not be delivered at once", {
          peer: peers[index]!.identity,
          groupId: order.groupId,
          fault: outcome.reason,
        });
        if (outcome.reason.retryable) void keepDelivering(peers[index]!, entry);
      }
      return {
        version: order.version,
        delivered: outcomes.length > 0 && outcomes.every(({ status }) => status === "fulfilled"),
      };
    },
  };
}

/** One that was signed before orders said a term. */
function isSameOrder({ controlEpoch, ...kept }: ReplicationOrder, asked: ReplicationOrder): boolean {
  return controlEpoch === undefined && JSON.stringify(kept) === JSON.stringify(asked);
}

/** From a link: throws PROTOCOL_INVALID for what cannot be kept. Its meaning is checked by the process server. */
export function parseOrder(json: unknown): ReplicationOrder {
  const fields = readObject(json, "order");
  readName(fields, "groupId");
  readName(fields, "sourceSite");
  readName(readObject(fields["target"], "target"), "site");
  if (readWhole(fields, "version") < 1)
    throw new Fault("PROTOCOL_INVALID", "Expected the version of an order to be at least 1");
  return fields as unknown as ReplicationOrder; // The fields that matter here were checked above.
}

async function inTurn<T>(turns: Map<string, Promise<unknown>>, key: string, work: () => Promise<T>): Promise<T> {
  const mine = (turns.get(key) ?? Promise.resolve()).then(work);
  turns.set(
    key,
    mine.catch(() => undefined), // The next in turn does not depend on it; the caller hears of it.
  );
  return await mine;
}

async function filesOf(folder: string): Promise<readonly string[]> {
  try {
    return (await readdir(folder)).filter((name) => name.endsWith(".json"));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
}

/** An order may be longer than `readText` allows. */
function parseEntry(json: unknown): Entry {
  const fields = readObject(json, "signed order");
  const { order } = fields;
  if (typeof order !== "string") throw new Fault("PROTOCOL_INVALID", "Expected the text of an order in the order book");
  return { order: parseOrder(JSON.parse(order)), signed: { order, signature: readText(fields, "signature") } };
}
