import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { Fault, isFault, type FaultCode } from "#model/fault.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { serveHypervisor, serveMasterTarget } from "../../src/adapters/relay/serve.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { readControlClaim } from "../../src/data-mover/control-claims.ts";
import { controlGuard } from "../../src/master-target/control-guard.ts";

const isCode = (code: FaultCode) => (error: unknown) => isFault(error, code);
const term = (controlEpoch: number) => ({ controlId: randomUUID(), controlEpoch });

function guarded() {
  const objects = memoryStore();
  let away = false;
  let ensured = 0;
  const list: typeof objects.list = (prefix, options) => {
    if (away) throw new Fault("STORE_UNAVAILABLE", "Nobody answers");
    return objects.list(prefix, options);
  };
  const context = {
    store: { ...objects, list },
    root: "r",
    clock: systemClock,
    random: systemRandom,
    retry: { attempts: 2, firstMs: 1, mostMs: 1 },
  };
  const guard = controlGuard({
    site: "secondary",
    context,
    ensureStore: async () => void (ensured += 1),
    log: silentLog,
  });
  return { guard, context, ensured: () => ensured, storeAway: (now: boolean) => (away = now) };
}

test("the first control is the control; an adopted one takes over, and the old one is stopped at its next order", async () => {
  const { guard, context, ensured } = guarded();
  const first = term(1);
  await Promise.all([guard.check(first), guard.check(first), guard.check(first)]);
  assert.equal((await readControlClaim(context))?.controlId, first.controlId);
  await assert.rejects(guard.check(term(1)), isCode("CONTROL_SUPERSEDED"));
  const second = term(2);
  await guard.check(second);
  await assert.rejects(guard.check(first), isCode("CONTROL_SUPERSEDED"));
  await guard.check(second);
  assert.equal(ensured(), 1);
});

test("a control that says no term is one from before there were terms: obeyed until another has claimed", async () => {
  const { guard } = guarded();
  await guard.check(undefined);
  await guard.check(term(1));
  await assert.rejects(guard.check(undefined), isCode("CONTROL_SUPERSEDED"));
  for (const wrong of [{}, 7, "me", { controlId: "me", controlEpoch: 1 }, { ...term(1), controlEpoch: 0 }])
    await assert.rejects(guard.check(wrong), isCode("PROTOCOL_INVALID"));
});

test("while the store is away, machines obey who was the newest, and nothing else obeys anybody", async () => {
  const { guard, storeAway } = guarded();
  const [first, second] = [term(1), term(2)];
  await guard.check(first);
  await guard.check(second);
  storeAway(true);
  await assert.rejects(guard.check(second), isCode("STORE_UNAVAILABLE"));
  await guard.checkMachines(second);
  await assert.rejects(guard.checkMachines(first), isCode("STORE_UNAVAILABLE"));
  await assert.rejects(guard.checkMachines(undefined), isCode("STORE_UNAVAILABLE"));
});

test("over a link, everything that changes something is checked, reading is not, and the method never sees the term", async () => {
  const seen: unknown[] = [];
  const checked: unknown[] = [];
  const target = new Proxy({} as MasterTarget, {
    get: (_target, name) => async (params: unknown) => void seen.push([name, params]),
  });
  const check = async (value: unknown): Promise<void> => void checked.push(value);
  const handlers = {
    ...serveMasterTarget(target, check),
    ...serveHypervisor(target as never, check),
  };
  const own = term(1);
  const params = {
    groupId: "web",
    operationId: "o",
    requestId: "r",
    machine: "m",
    activeSite: "s",
    cursor: "",
    waitMs: 0,
    groupName: "w",
    sourceSite: "p",
    disks: [],
    record: "{}",
    barrier: 1,
    name: "n",
    point: "latest",
    mode: "read-only",
    discard: false,
    revision: 1,
    keys: {},
    collection: "plans",
    number: 1,
    newest: 1,
    budgetMs: 1,
    atLeastEpoch: 1,
    controlTerm: own,
  };
  const reading = new Set<string>();
  for (const [name, handler] of Object.entries(handlers)) {
    const before = checked.length;
    const args = { args: ["id", {}], controlTerm: own };
    const request = name.startsWith("hypervisor.")
      ? name === "hypervisor.createMachine"
        ? { args: [{}], controlTerm: own }
        : args
      : name === "masterTarget.recordGroup" || name === "masterTarget.keepRecord"
        ? { ...params, record: {} }
        : params;
    await handler(request as never, new Uint8Array() as never);
    if (checked.length === before) reading.add(name);
  }
  assert.deepEqual([...reading].sort(), [
    "hypervisor.inspect",
    "hypervisor.list",
    "masterTarget.exportStatus",
    "masterTarget.listExports",
    "masterTarget.listPoints",
    "masterTarget.observeGroup",
    "masterTarget.probeStore",
    "masterTarget.readCatalog",
    "masterTarget.readRecords",
  ]);
  assert.ok(checked.every((value) => value === own));
  assert.equal(JSON.stringify(seen).includes("controlTerm"), false);
});
