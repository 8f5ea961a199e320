/**
 * What control answers on its link: it knows everyone, relays for workers, and issues orders for them.
 *
 * Only a worker may ask for something but the next certificate; a process server and a master target dial in to be asked. The certificate says which one it is, so
 * whoever takes a source site cannot give orders with what is found there.
 */
import { Fault } from "#model/fault.ts";
import { readChoice, readName, readObject, readText, readWhole } from "#model/json-reader.ts";
import type { JsonObject } from "#model/json.ts";
import type { Handlers, Peer } from "#ports/link.ts";
import type { Directory } from "./directory.ts";
import type { Enrolment } from "./enrolment.ts";
import { parseOrder, type OrderBook } from "./order-book.ts";

const RELAY_MS_MAX = 3_600_000;

/** What may be relayed to whom: only what these roles serve for others. */
const RELAYED = {
  "process-server": ["processServer."],
  "master-target": ["masterTarget.", "hypervisor."],
} as const;

/** For `Link.listen`. Throws PEER_REJECTED for a role that has no business here. */
export function createLinkService({
  directory,
  orders,
  enrolment,
  resolvePlan,
  onMasterTarget = () => undefined,
}: {
  readonly directory: Directory;
  readonly orders: OrderBook;
  readonly enrolment: Pick<Enrolment, "renew">;
  /** For a drill; see the API's plan service. */
  readonly resolvePlan: (plan: string) => Promise<JsonObject>;
  /** One of this site has just connected. */
  readonly onMasterTarget?: (site: string) => void;
}): (peer: Peer) => Handlers {
  const renewal = (peer: Peer): Handlers => ({
    "credentials.renew": async (params) => ({ ...(await enrolment.renew(params, peer.identity)) }),
  });
  return (peer) => {
    switch (peer.identity.role) {
      case "worker":
        directory.add(peer);
        return { ...renewal(peer), ...workerHandlers({ directory, orders, resolvePlan }) };
      case "process-server":
        directory.add(peer);
        orders.greet(peer);
        return renewal(peer);
      case "master-target":
        directory.add(peer);
        onMasterTarget(peer.identity.site);
        return renewal(peer);
      case "agent":
      case "control":
      case "cli":
        throw new Fault(
          "PEER_REJECTED",
          `Expected a worker, process server or master target, got "${peer.identity.role}"`,
          {
            ...(peer.identity.role === "agent" ? { hint: "An agent dials its site's process server" } : {}),
          },
        );
    }
  };
}

function workerHandlers({
  directory,
  orders,
  resolvePlan,
}: {
  readonly directory: Directory;
  readonly orders: OrderBook;
  readonly resolvePlan: (plan: string) => Promise<JsonObject>;
}): Handlers {
  return {
    async relay(params) {
      const site = readName(params, "site");
      const role = readChoice(params, "role", ["process-server", "master-target"]);
      const method = readText(params, "method");
      const timeoutMs = Math.min(readWhole(params, "timeoutMs"), RELAY_MS_MAX);
      if (!RELAYED[role].some((prefix) => method.startsWith(prefix)) || method === "processServer.putOrder") {
        throw new Fault("PEER_REJECTED", `Method "${method}" of a ${role} is not relayed`);
      }
      const inner = readObject(params["params"], "params") as JsonObject; // It arrived as JSON.
      return await directory.call({ site, role }, method, inner, timeoutMs);
    },

    "plans.resolve": async (params) => await resolvePlan(readName(params, "plan")),

    async "orders.put"(params) {
      const order = parseOrder(params["order"]);
      if (params["groupId"] !== order.groupId) {
        throw new Fault(
          "PROTOCOL_INVALID",
          `Expected an order of "${String(params["groupId"])}", got one of "${order.groupId}"`,
        );
      }
      return await orders.put(order, () => directory.find(order.sourceSite, "process-server"));
    },
  };
}
