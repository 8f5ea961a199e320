import assert from "node:assert/strict";
import { test } from "node:test";
import { Fault, isFault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Hypervisor } from "#ports/hypervisor.ts";
import type { Handlers, Peer } from "#ports/link.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import { hypervisorProxy, masterTargetProxy, peerCall, relayCall } from "../../../src/adapters/relay/proxy.ts";
import { serveHypervisor, serveMasterTarget } from "../../../src/adapters/relay/serve.ts";

interface Seen {
  readonly method: string;
  readonly params: JsonObject;
  readonly timeoutMs: number | undefined;
}

/** A link without a wire: JSON there and back, as the real one. */
function loopback(handlers: Handlers, seen: Seen[] = []): Peer {
  const peer: Peer = {
    identity: { site: "here", role: "control", name: "test" },
    call: async (method, params, options) => {
      seen.push({ method, params, timeoutMs: options?.timeoutMs });
      const handler = handlers[method];
      if (handler === undefined) throw new Fault("PROTOCOL_INVALID", `No method "${method}"`);
      const result = await handler(JSON.parse(JSON.stringify(params)) as JsonObject, {
        peer,
        payload: undefined,
        signal: new AbortController().signal,
      });
      return JSON.parse(JSON.stringify(result ?? null)) as JsonValue;
    },
    notify: async () => {},
    closed: new Promise(() => {}),
    close: () => {},
  };
  return peer;
}

const machine = {
  id: "m-1",
  operationId: "op",
  name: "web",
  power: "off",
  config: { cpus: 1, memoryMiB: 128, firmware: "bios" },
  forwards: [],
  consoleTail: "",
} as const;

test("a hypervisor's positional arguments arrive as they were given", async () => {
  const calls: unknown[][] = [];
  const record =
    (name: string, result: unknown) =>
    async (...args: unknown[]) => {
      calls.push([name, ...args]);
      return result;
    };
  const real = {
    kind: "fake",
    createMachine: record("createMachine", machine),
    start: record("start", machine),
    shutdown: record("shutdown", machine),
    powerOff: record("powerOff", machine),
    inspect: record("inspect", machine),
    list: record("list", [machine]),
    destroy: record("destroy", undefined),
  } as unknown as Hypervisor;
  const proxy = hypervisorProxy(peerCall(loopback(serveHypervisor(real))));
  assert.deepEqual(await proxy.shutdown("m-1", { timeoutMs: 5 }), machine);
  assert.deepEqual(await proxy.list(), [machine]);
  assert.deepEqual(await proxy.list({ operationId: "op" }), [machine]);
  await proxy.destroy("m-1");
  assert.deepEqual(calls, [
    ["shutdown", "m-1", { timeoutMs: 5 }],
    ["list"],
    ["list", { operationId: "op" }],
    ["destroy", "m-1"],
  ]);
});

test("a fault passes, a missing parameter is named before the method runs", async () => {
  let asked = 0;
  const real = {
    fence: async () => {
      asked += 1;
      throw new Fault("FENCED", "Another site is active", { hint: "Look there" });
    },
  } as unknown as MasterTarget;
  const proxy = masterTargetProxy(peerCall(loopback(serveMasterTarget(real))));
  await assert.rejects(
    proxy.fence({ groupId: "g", operationId: "o", activeSite: "s" }),
    (error) => isFault(error, "FENCED") && error.hint === "Look there",
  );
  await assert.rejects(
    proxy.fence({ groupId: "g", operationId: "o" } as never),
    (error) => isFault(error, "PROTOCOL_INVALID") && error.message.includes("activeSite"),
  );
  assert.equal(asked, 1);
});

test("through control a call names its site and role, and waits as long as its parameters ask", async () => {
  const seen: Seen[] = [];
  const control = loopback(
    { relay: async (params) => ({ groupId: (params["params"] as JsonObject)["groupId"] }) },
    seen,
  );
  const proxy = masterTargetProxy(relayCall(async () => control, "secondary", "master-target"));
  await proxy.observeGroup({ groupId: "g", cursor: "", waitMs: 30_000 });
  assert.equal(seen[0]?.method, "relay");
  assert.equal(seen[0]?.params["site"], "secondary");
  assert.equal(seen[0]?.params["role"], "master-target");
  assert.equal(seen[0]?.params["method"], "masterTarget.observeGroup");
  assert.ok((seen[0]?.params["timeoutMs"] as number) > 30_000);
  assert.ok((seen[0]?.timeoutMs ?? 0) > (seen[0]?.params["timeoutMs"] as number));
});
