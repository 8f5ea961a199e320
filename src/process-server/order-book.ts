/**
 * The orders this process server obeys: signed by control, kept on its disk, valid until replaced. With them it goes on working while control, the
 * WAN and the whole other site are away.
 *
 * Every order is verified when it comes and again when it is read back: whoever can write our disk cannot give orders.
 */
import { createPublicKey, verify, type KeyObject } from "node:crypto";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { Fault, isFault } from "#model/fault.ts";
import { readObject, readText } from "#model/json-reader.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { Log } from "#ports/log.ts";
import type { ReplicationOrder, SignedOrder } from "#ports/replication.ts";
import { parseOrder, supersedes } from "./order.ts";

export interface OrderBook {
  readonly orders: readonly ReplicationOrder[];
  get(groupId: string): ReplicationOrder | undefined;
  /**
   * Keeps the order if it is newer; durable when it returns. Returns the order that is kept now, and whether it is this one.
   * Throws PEER_REJECTED for a wrong signature or another site's order, PROTOCOL_INVALID for no order at all.
   */
  put(signed: SignedOrder): { readonly order: ReplicationOrder; readonly changed: boolean };
}

/** `orderKey`: control's public Ed25519 key, PEM. */
export function openOrderBook(options: {
  readonly folder: string;
  readonly orderKey: string;
  readonly site: string;
  readonly files: DurableFiles;
  readonly log: Log;
}): OrderBook {
  const { folder, site, files, log } = options;
  const key = publicKey(options.orderKey);
  const orders = new Map<string, ReplicationOrder>();
  for (const name of namesIn(folder)) {
    try {
      const order = verified(JSON.parse(files.readSync(join(folder, name)) ?? "null"));
      orders.set(order.groupId, order);
    } catch (error) {
      // Control sends it again; obeying half an order is worse than waiting for the whole one.
      log.error("A kept order is not obeyed", { file: name, fault: isFault(error) ? error : String(error) });
    }
  }

  return {
    get orders() {
      return [...orders.values()];
    },
    get: (groupId) => orders.get(groupId),
    put(signed) {
      const order = verified(signed);
      const kept = orders.get(order.groupId);
      if (!supersedes(order, kept)) return { order: kept!, changed: false }; // Nothing is superseded only if there is one.
      files.writeSync(join(folder, `${order.groupId}.json`), JSON.stringify(signed));
      orders.set(order.groupId, order);
      return { order, changed: true };
    },
  };

  function verified(value: unknown): ReplicationOrder {
    const fields = readObject(value, "signed");
    const text = typeof fields["order"] === "string" ? fields["order"] : "";
    const signature = Buffer.from(readText(fields, "signature"), "base64");
    if (!verify(undefined, Buffer.from(text), key, signature)) {
      throw new Fault(
        "PEER_REJECTED",
        "An order's signature is not control's, expected one made with the key of its enrolment",
        {
          hint: "Enrol this process server again if control has a new key; otherwise someone else gives orders",
        },
      );
    }
    const order = parseOrder(text);
    if (order.sourceSite !== site) {
      throw new Fault("PEER_REJECTED", `The order is for site "${order.sourceSite}", expected "${site}"`, {
        details: { groupId: order.groupId },
      });
    }
    return order;
  }
}

function publicKey(pem: string): KeyObject {
  const key = createPublicKey(pem);
  if (key.asymmetricKeyType !== "ed25519")
    throw new Fault("CONFIG_INVALID", `The order key is of type "${key.asymmetricKeyType}", expected ed25519`);
  return key;
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).filter((name) => name.endsWith(".json"));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
}
