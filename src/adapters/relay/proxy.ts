/**
 * The other end of a site's interfaces: objects that look like a MasterTarget, a ProcessServer or a Hypervisor and ask a peer.
 *
 * They work over any call: `relayCall` goes through `control` to a site, `peerCall` straight to a connected role.
 */
import { Fault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Hypervisor } from "#ports/hypervisor.ts";
import type { Peer } from "#ports/link.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import type { ProcessServer } from "#ports/process-server.ts";
import { HYPERVISOR_METHODS, MASTER_TARGET_METHODS, PROCESS_SERVER_METHODS, type RelayMethod } from "./methods.ts";

/** Who answers at a site: hypervisors are served by the master target's process. */
export type RelayRole = "master-target" | "process-server";

/** Throws the Fault of the far end; PEER_UNREACHABLE when it is not connected; TIMED_OUT after `timeoutMs`. */
export type RemoteCall = (method: string, params: JsonObject, timeoutMs: number) => Promise<JsonValue>;

/** Straight to a connected peer. */
export function peerCall(peer: Peer): RemoteCall {
  return (method, params, timeoutMs) => peer.call(method, params, { timeoutMs });
}

/**
 * Through `control`, whose handler `relay {site, role, method, params, timeoutMs}` asks the role of that site. `control` yields the
 * connection at the time of the call, so that one proxy survives reconnects; it throws PEER_UNREACHABLE while there is none.
 */
export function relayCall(control: () => Promise<Peer>, site: string, role: RelayRole): RemoteCall {
  return async (method, params, timeoutMs) => {
    const peer = await control();
    // The margin lets the far bound, which knows more, speak first.
    return peer.call("relay", { site, role, method, params, timeoutMs }, { timeoutMs: timeoutMs + 2_000 });
  };
}

export function masterTargetProxy(call: RemoteCall): MasterTarget {
  return objectProxy<MasterTarget>("masterTarget", MASTER_TARGET_METHODS, call);
}

export function processServerProxy(call: RemoteCall): ProcessServer {
  return objectProxy<ProcessServer>("processServer", PROCESS_SERVER_METHODS, call);
}

/** `kind` is only for people; the far hypervisor's own kind does not matter to a caller. */
export function hypervisorProxy(call: RemoteCall, kind = "remote"): Hypervisor {
  const methods: Record<string, unknown> = { kind };
  for (const [name, method] of Object.entries<RelayMethod>(HYPERVISOR_METHODS)) {
    methods[name] = async (...args: JsonValue[]) => {
      const params: JsonObject = { args: args.filter((argument) => argument !== undefined) };
      return await call(`hypervisor.${name}`, params, method.bound(params));
    };
  }
  // The table has every method of the port: checked where it is declared.
  return methods as unknown as Hypervisor;
}

function objectProxy<T>(prefix: string, table: Readonly<Record<string, RelayMethod>>, call: RemoteCall): T {
  const methods: Record<string, unknown> = {};
  for (const [name, method] of Object.entries(table)) {
    methods[name] = async (params: JsonObject) => {
      if (typeof params !== "object") throw new RangeError(`${prefix}.${name} takes one object`);
      return await call(`${prefix}.${name}`, params, method.bound(params));
    };
  }
  return methods as T;
}

/** What a caller throws while it has no connection to `control`. */
export function controlUnreachable(cause?: unknown): Fault {
  return new Fault("PEER_UNREACHABLE", "Control is not connected, expected a link to it", {
    hint: "Start control; the connection is made again by itself",
    ...(cause === undefined ? {} : { cause }),
  });
}
