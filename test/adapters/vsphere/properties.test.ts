import assert from "node:assert/strict";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { systemClock } from "../../../src/adapters/clock/system-clock.ts";
import { findMachine } from "../../../src/adapters/vsphere/inventory.ts";
import { readAll, readObject, waitForObject } from "../../../src/adapters/vsphere/properties.ts";
import type { Vim } from "../../../src/adapters/vsphere/session.ts";
import { VimError } from "../../../src/adapters/vsphere/soap.ts";
import type { ObjectContent, UpdateSet } from "../../../src/adapters/vsphere/vim-types.ts";

const MACHINE = { type: "VirtualMachine", value: "vm-7" };
const MANAGER = { type: "SessionManager", value: "SessionManager" };
const SESSION: ObjectContent = { obj: MANAGER, propSet: [{ name: "currentSession", val: { key: "k" } }] };

test("nothing is believed only of a living session: an ended one answers with nothing as well", async () => {
  for (const alive of [true, false]) {
    const answers: readonly ObjectContent[][] = [[], alive ? [SESSION] : [{ obj: MANAGER }]];
    const one = readObject(vim({ answers }), MACHINE, ["name"]);
    const all = readAll(vim({ answers }), "VirtualMachine", ["name"]);
    if (alive) assert.deepEqual([await one, await all], [undefined, []]);
    else for (const read of [one, all]) await assert.rejects(read, isVim("NotAuthenticated"));
  }
});

test("an object without any property may be one that may not be read: the session is asked too", async () => {
  const read = readObject(vim({ answers: [[{ obj: MACHINE }], [{ obj: MANAGER }]] }), MACHINE, ["name"]);
  await assert.rejects(read, isVim("NotAuthenticated"));
});

test("what may not be read is not the same as what is not there", async () => {
  const missing = (type: "NoPermission" | "InvalidProperty"): ObjectContent => ({
    obj: MACHINE,
    propSet: [{ name: "name", val: "web" }],
    missingSet: [{ path: "config", fault: { fault: { $type: type, name: "config" } } }],
  });
  const denied = readObject(vim({ answers: [[missing("NoPermission")]] }), MACHINE, ["name", "config"]);
  await assert.rejects(denied, isVim("NoPermission"));
  const older = await readObject(vim({ answers: [[missing("InvalidProperty")]] }), MACHINE, ["name", "config"]);
  assert.deepEqual(older, { name: "web" });
});

test("a machine that vCenter knows and cannot show is not taken for gone", async () => {
  const name = { name: "name", val: "web" };
  const orphan = findMachine(vim({ answers: [[{ obj: MACHINE, propSet: [name] }]] }), "id");
  await assert.rejects(orphan, (error) => isFault(error, "HYPERVISOR_UNAVAILABLE"));
  assert.equal(await findMachine(vim({ answers: [[], [SESSION]] }), "id"), undefined);
});

test("every page of an inventory is read, and the view is given back even when a page fails", async () => {
  const object = (value: string): ObjectContent => ({ obj: { type: "VirtualMachine", value }, propSet: [] });
  const called: string[] = [];
  const pages = [[object("vm-1"), object("vm-2")], [object("vm-3")], [object("vm-4")]];
  const found = await readAll(vim({ answers: pages, paged: true, called }), "VirtualMachine", ["name"]);
  assert.deepEqual(
    found.map((one) => one.reference.value),
    ["vm-1", "vm-2", "vm-3", "vm-4"],
  );
  assert.equal(called.filter((one) => one === "DestroyView").length, 1);
  await assert.rejects(readAll(vim({ answers: [], paged: true, called }), "VirtualMachine", ["name"]), RangeError);
  assert.equal(called.filter((one) => one === "DestroyView").length, 2);
});

test("a wait gathers changes until they suffice, ends with its bound, and sees that its object goes", async () => {
  const update = (kind: string, val: string): UpdateSet => ({
    version: val,
    filterSet: [
      { filter: MACHINE, objectSet: [{ kind, obj: MACHINE, changeSet: [{ name: "power", op: "assign", val }] }] },
    ],
  });
  const request = {
    paths: ["power"],
    until: (properties: Readonly<Record<string, unknown>>) => properties["power"] === "off",
    timeoutMs: 1_500,
    clock: systemClock,
  };
  const seen = waitForObject(vim({ updates: [update("enter", "on"), update("modify", "off")] }), MACHINE, request);
  assert.deepEqual(await seen, { power: "off" });
  assert.equal(
    await waitForObject(vim({ updates: [update("enter", "on")] }), MACHINE, { ...request, timeoutMs: 150 }),
    undefined,
  );
  const gone = waitForObject(vim({ updates: [update("enter", "on"), update("leave", "")] }), MACHINE, request);
  await assert.rejects(gone, isVim("ManagedObjectNotFound"));
});

interface Script {
  /** What each reading of properties finds, in order. */
  readonly answers?: readonly (readonly ObjectContent[])[];
  readonly paged?: boolean;
  readonly updates?: readonly UpdateSet[];
  readonly called?: string[];
}

function vim({ answers = [], paged = false, updates = [], called = [] }: Script): Vim {
  const waiting = [...answers];
  const changes = [...updates];
  const call = (method: string): Promise<unknown> => {
    called.push(method);
    switch (method) {
      case "RetrievePropertiesEx":
      case "ContinueRetrievePropertiesEx": {
        const objects = waiting.shift();
        if (objects === undefined) return Promise.reject(new RangeError("Nothing more was to be read"));
        return Promise.resolve(paged && waiting.length > 0 ? { objects, token: "more" } : { objects });
      }
      case "WaitForUpdatesEx":
        return Promise.resolve(changes.shift());
      default:
        return Promise.resolve({ type: "Any", value: method });
    }
  };
  return {
    content: {
      rootFolder: { type: "Folder", value: "group-d1" },
      propertyCollector: { type: "PropertyCollector", value: "propertyCollector" },
      viewManager: { type: "ViewManager", value: "ViewManager" },
      sessionManager: MANAGER,
      searchIndex: { type: "SearchIndex", value: "SearchIndex" },
      about: { fullName: "scripted", apiType: "VirtualCenter", apiVersion: "8.0" },
    },
    call: call as Vim["call"], // Scripted by method name.
  };
}

function isVim(type: string): (error: unknown) => boolean {
  return (error) => error instanceof VimError && error.fault.$type === type;
}
